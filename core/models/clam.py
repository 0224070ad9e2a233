"""CLAM, clustering-constrained attention multiple instance learning, with one branch (SB) or one a class (MB).

Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide images", Nature Biomedical
Engineering 2021. The instance loss: Berrada et al., "Smooth Loss Functions for Deep Top-k Classification", ICLR 2018.

Gated attention pools the slide. Beside it, every class has an instance classifier that learns from pseudo labels: of
the slide's own class, the patches that its branch attends to most should show the class and those that it attends to
least should not. K = 1 branch serves all classes (SB), or K = C (MB).

    h_NL     = dropout(relu(x_ND W + b))
    s_KN     = w_k · (dropout(tanh(h V)) ⊙ dropout(sigmoid(h U)))
    a_KN     = softmax over N of s                       slide_KL = a h
    logits_c = w_c · slide_{k(c)} + b_c                  k(c) = c (MB) or the one branch (SB)
    loss     = β · CE(logits) + (1 - β) · instance loss
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.models.gated_pool import Gate, Hidden, attention_pool
from fedpath.core.models.inputs import BagModelOptions, input_norm, paired_inner
from fedpath.core.models.protocol import BagModel, BagOutput, weighted_cross_entropy


class ClamOptions(BagModelOptions):
    """Options of ``clam-sb`` and ``clam-mb``; the defaults are those of the authors' README."""

    inner: Annotated[int, Field(ge=1, le=8192)] | None = Field(
        default=None, description="inner width L; by default ACMIL's pair for the feature width, else half of it"
    )
    attention: Annotated[int, Field(ge=1, le=8192)] = Field(default=256, description="width inside the gated attention")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.25, description="dropout on the inner features and on both halves of the gate, in training"
    )
    k_sample: Annotated[int, Field(ge=1)] = Field(
        default=8, description="this many most and this many least attended patches get pseudo labels; at most N/2"
    )
    bag_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.7, description="share of the slide's cross-entropy in the loss; the instance loss has the rest"
    )
    instance_loss: Literal["svm", "ce"] = Field(
        default="svm", description="loss of the pseudo labels: smooth SVM (temperature 1, margin 1) or cross-entropy"
    )
    subtyping: bool = Field(
        default=False,
        description="classes exclude one another in every patch: the most attended must not show the other classes",
    )


@dataclass(frozen=True, slots=True)
class ClamOutput(BagOutput):
    """A bag's output with what the instance loss needs, whichever class turns out to be the target."""

    candidate_logits_CM2: Tensor | None = None
    """Scores "does not show it, shows it" from each class's instance classifier for M = 2k candidates of the class's
    branch: the k most attended, then the k least attended. M = 0 for a bag of one patch."""


class Clam(BagModel):
    """CLAM with any number of branches that broadcasts to C; see the module's docstring for the formulas.

    Args:
        width: feature width D.
        n_classes: C.
        options: see ``ClamOptions``.
        n_branches: K, 1 or C.
    """

    def __init__(self, width: int, n_classes: int, options: ClamOptions, n_branches: int) -> None:
        super().__init__()
        self.options = options
        inner = options.inner or paired_inner(width)
        self.slide_width = n_branches * inner
        self.input_norm = input_norm(options.input_norm, width)
        self.reduce = nn.Linear(width, inner)
        self.dropout = nn.Dropout(options.dropout)
        # tanh half and sigmoid half of the gate in one matrix: one product instead of two.
        self.gate = nn.Linear(inner, 2 * options.attention)
        self.score = nn.Linear(options.attention, n_branches)
        self.slide_head = nn.Linear(inner, n_classes)
        bound = inner**-0.5
        self.instance_weight_CL2 = nn.Parameter(torch.empty(n_classes, inner, 2).uniform_(-bound, bound))
        self.instance_bias_C2 = nn.Parameter(torch.empty(n_classes, 2).uniform_(-bound, bound))

    def forward(self, bag: Bag) -> ClamOutput:
        """Classify one bag; in training mode with dropout, drawn from torch's global generator."""
        x_ND = self.input_norm(bag.features_ND.to(self.reduce.weight.device))
        dropout = self.options.dropout if self.training else 0.0
        slide_KL, attention_KN = attention_pool(
            x_ND,
            Hidden(self.reduce.weight, self.reduce.bias, dropout),
            # CLAM drops values of each half of the gate. Their product keeps a value where both halves do, and is
            # scaled twice: one dropout of the product.
            Gate(self.gate.weight, self.gate.bias, 1 - (1 - dropout) ** 2),
            self.score.weight,
            self.score.bias,
        )
        # The few candidates' features are computed anew, with a draw of dropout of their own.
        chosen_KMD = x_ND[most_and_least(attention_KN.detach(), self.options.k_sample)].to(self.reduce.weight.dtype)
        candidates_KML = self.dropout(torch.relu(self.reduce(chosen_KMD)))
        return ClamOutput(
            # The one branch of SB broadcasts over the classes.
            logits_C=(slide_KL * self.slide_head.weight).sum(dim=1) + self.slide_head.bias,
            attention_KN=attention_KN,
            slide_vector_L=slide_KL.flatten(),
            candidate_logits_CM2=candidates_KML @ self.instance_weight_CL2 + self.instance_bias_C2[:, None],
        )

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return bag_weight · cross-entropy of the slide + (1 - bag_weight) · instance loss.

        The instance loss is that of the target's candidates: labels 1 for the most and 0 for the least attended. With
        ``subtyping`` it is the mean over the classes, where in the others the most attended have label 0 and the least
        attended none. A bag of one patch has no candidates and no instance loss. Class weights multiply the
        cross-entropy of the slide alone: pseudo labels come in equal numbers.
        """
        if not isinstance(output, ClamOutput) or output.candidate_logits_CM2 is None:
            raise ValueError("CLAM's loss needs the candidates of CLAM's forward")
        slide = weighted_cross_entropy(output.logits_C[None], target, class_weights_C)
        per_patch = smooth_svm if self.options.instance_loss == "svm" else _cross_entropy
        n_classes, n_candidates, _ = output.candidate_logits_CM2.shape
        k = n_candidates // 2
        labels_M = (torch.arange(n_candidates, device=slide.device) < k).long()
        # Sums, as means over no patch at all would not be numbers.
        terms = [per_patch(output.candidate_logits_CM2[target], labels_M).sum() / max(1, n_candidates)]
        if self.options.subtyping:
            others = [other for other in range(n_classes) if other != target]
            most_Ck2, none_k = output.candidate_logits_CM2[:, :k], torch.zeros_like(labels_M[:k])
            terms += [per_patch(most_Ck2[other], none_k).sum() / max(1, k) for other in others]
        return self.options.bag_weight * slide + (1 - self.options.bag_weight) * torch.stack(terms).mean()


class ClamSB(Clam):
    """CLAM with a single attention branch for all classes."""

    def __init__(self, width: int, n_classes: int, options: ClamOptions) -> None:
        super().__init__(width, n_classes, options, n_branches=1)


class ClamMB(Clam):
    """CLAM with an attention branch for each class, whose slide vector that class's head alone sees.

    ``slide_vector_L`` holds the classes' vectors one after the other: L is C times the inner width.
    """

    def __init__(self, width: int, n_classes: int, options: ClamOptions) -> None:
        super().__init__(width, n_classes, options, n_branches=n_classes)


def most_and_least(attention_KN: Tensor, k_sample: int) -> Tensor:
    """Return (K, 2k) indices: each row's k highest values in falling order, then its k lowest.

    k is ``k_sample`` but at most N // 2, so no instance gets both pseudo labels. Sorting whole rows, rather than a top
    k of each end, keeps that true among equal values.
    """
    n_instances = attention_KN.shape[1]
    k = min(k_sample, n_instances // 2)
    order_KN = attention_KN.argsort(dim=1, descending=True, stable=True)
    return torch.cat([order_KN[:, :k], order_KN[:, n_instances - k :]], dim=1)


def smooth_svm(logits_BC: Tensor, targets_B: Tensor) -> Tensor:
    """Return the smooth top-1 SVM loss (Berrada et al.) of each of B predictions, with temperature 1 and margin 1.

    For scores s and class y it is log Σ_j exp(Δ(j, y) + s_j - s_y) with Δ = 1 for every j ≠ y and 0 for y: the
    cross-entropy of scores in which all other classes have a head start of 1.
    """
    head_start_BC = torch.ones_like(logits_BC).scatter(1, targets_B[:, None], 0)
    return _cross_entropy(logits_BC + head_start_BC, targets_B)


def _cross_entropy(logits_BC: Tensor, targets_B: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits_BC, targets_B, reduction="none")
