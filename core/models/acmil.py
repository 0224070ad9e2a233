"""ACMIL, attention-challenging multiple instance learning, in its gated-attention variant (``acmil_mha``: the other).

Zhang et al., "Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification", ECCV 2024.

Attention models overfit by looking at a few patches. ACMIL holds against it twice: K attention branches, each with a
classifier of its own and pushed apart by a diversity loss, and STKIM, which during training masks a random part of
each branch's most attended instances so that others must be used.

    h_NL    = relu(x_ND W)                                            (W without bias)
    s_KN    = w · (tanh(h V) ⊙ sigmoid(h U))                          raw scores, one row a branch
    a_KN    = softmax over N of s, after STKIM in training
    branch  k: logits = head_k(a_k h)        slide: logits = head(mean_k(a_k) h)
    loss    = mean_k CE(branch k) + CE(slide) + mean over pairs of branches of cos(a_i, a_j)
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.models.gated_pool import Gate, Hidden, attention_pool
from fedpath.core.models.inputs import BagModelOptions, input_norm, paired_inner
from fedpath.core.models.protocol import BagModel, BagOutput, weighted_cross_entropy


class BranchOptions(BagModelOptions):
    """The options that both variants share; the defaults are the paper's."""

    n_branches: Annotated[int, Field(ge=1, le=256)] = Field(default=5, description="attention branches K")
    top_k: Annotated[int, Field(ge=1)] = Field(
        default=10, description="STKIM draws from this many highest scores of each branch"
    )
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.6, description="share of them masked in training; 0 switches STKIM off (strong encoders)"
    )


class AcmilOptions(BranchOptions):
    """Options of ``acmil``; the defaults are the paper's."""

    inner: Annotated[int, Field(ge=1, le=8192)] | None = Field(
        default=None, description="inner width L; by default the authors' pair for the feature width, else half of it"
    )
    attention: Annotated[int, Field(ge=1, le=8192)] = Field(default=128, description="width inside the gated attention")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="dropout on the inner features, in training"
    )


class Acmil(BagModel):
    """ACMIL with gated attention; see the module's docstring for the formulas.

    Args:
        width: feature width D.
        n_classes: C.
        options: see ``AcmilOptions``.
    """

    def __init__(self, width: int, n_classes: int, options: AcmilOptions) -> None:
        super().__init__()
        self.options = options
        self.slide_width = inner = options.inner or paired_inner(width)
        self.input_norm = input_norm(options.input_norm, width)
        self.reduce = nn.Linear(width, inner, bias=False)
        # tanh half and sigmoid half of the gate in one matrix: one product instead of two.
        self.gate = nn.Linear(inner, 2 * options.attention)
        self.score = nn.Linear(options.attention, options.n_branches)
        # The K branch heads as one array: one batched product and one optimizer entry instead of K.
        bound = inner**-0.5
        self.branch_weight_KCL = nn.Parameter(torch.empty(options.n_branches, n_classes, inner).uniform_(-bound, bound))
        self.branch_bias_KC = nn.Parameter(torch.empty(options.n_branches, n_classes).uniform_(-bound, bound))
        self.slide_head = nn.Linear(inner, n_classes)

    def forward(self, bag: Bag) -> BagOutput:
        """Classify one bag; in training mode with STKIM and dropout, drawn from torch's global generator."""
        x_ND = self.input_norm(bag.features_ND.to(self.reduce.weight.device))
        branch_KL, attention_KN = attention_pool(
            x_ND,
            Hidden(self.reduce.weight, dropout=self.options.dropout if self.training else 0.0),
            Gate(self.gate.weight, self.gate.bias),
            self.score.weight,
            self.score.bias,
            select=self._mask if self.training else None,
        )
        # Pooling is linear, so the mean over branches of the pooled vectors is the pooling by their mean attention.
        slide_L = branch_KL.mean(dim=0)
        return BagOutput(
            logits_C=self.slide_head(slide_L),
            attention_KN=attention_KN,
            slide_vector_L=slide_L,
            branch_logits_KC=torch.einsum("kl,kcl->kc", branch_KL, self.branch_weight_KCL) + self.branch_bias_KC,
        )

    def _mask(self, scores_KN: Tensor) -> Tensor:
        return mask_top_instances(scores_KN, self.options.top_k, self.options.mask_ratio)

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return mean branch cross-entropy + slide cross-entropy + diversity, each with weight 1."""
        return branches_and_slide(output, target, class_weights_C) + branch_similarity(output.attention_KN)


def mask_top_instances(scores_KN: Tensor, top_k: int, ratio: float) -> Tensor:
    """STKIM: in each row set ``int(ratio · k)`` of the ``k = min(top_k, N)`` highest scores, at random, to -inf.

    The draw is made on the CPU from torch's global generator, so that every device masks the same instances. As
    ``ratio < 1``, at least one instance of a bag stays.
    """
    n_branches, n_instances = scores_KN.shape
    k = min(top_k, n_instances)
    n_masked = int(ratio * k)
    if n_masked == 0:
        return scores_KN
    top_Kk = scores_KN.detach().topk(k, dim=1).indices
    drawn_Km = torch.rand(n_branches, k).topk(n_masked, dim=1).indices.to(top_Kk.device)
    return scores_KN.scatter(1, top_Kk.gather(1, drawn_Km), float("-inf"))


def branches_and_slide(output: BagOutput, target: int, class_weights_C: Tensor | None) -> Tensor:
    """Return the mean cross-entropy of the branches + that of the slide, the classification terms."""
    if output.branch_logits_KC is None:
        raise ValueError("ACMIL's loss needs the branch logits of ACMIL's forward")
    branches = weighted_cross_entropy(output.branch_logits_KC, target, class_weights_C)
    return branches + weighted_cross_entropy(output.logits_C[None], target, class_weights_C)


def branch_similarity(attention_KN: Tensor) -> Tensor:
    """Return the mean cosine similarity over the pairs of rows, the diversity term; 0 for one branch."""
    n_branches = attention_KN.shape[0]
    if n_branches == 1:
        return attention_KN.new_zeros(())
    unit_KN = nn.functional.normalize(attention_KN, dim=1)
    similarity_KK = unit_KN @ unit_KN.T
    # The diagonal is 1 whatever the attention; without it every pair stands twice.
    return (similarity_KK.sum() - similarity_KK.diagonal().sum()) / (n_branches * (n_branches - 1))
