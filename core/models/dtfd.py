"""DTFD-MIL: a slide as a handful of pseudo-bags, and what they yield as one small bag.

Zhang et al., "DTFD-MIL: Double-Tier Feature Distillation Multiple Instance Learning for Histopathology Whole Slide
Image Classification", CVPR 2022.

A slide is one training example of thousands of patches. DTFD-MIL splits it into M pseudo-bags that share its label, and
so has M examples for a first attention model; one feature distilled from each is an instance of a second one.

    h_NL    = relu(x_ND W)                                               (W without bias)
    s_N     = w · (tanh(h V) ⊙ sigmoid(h U))
    a_MN    = softmax of s over the instances of pseudo-bag m, 0 elsewhere
    tier 1: logits_m = W₁ (a_m h) + b₁
    f_ML    = a_m h                                                      AFS, aggregated feature selection
            = h of the instance of highest probability in m              MaxS, maximum selection
    tier 2: logits = W₂ (a' f) + b₂,   a' = softmax over the M of w' · (tanh(f V') ⊙ sigmoid(f U'))
    loss    = mean_m CE(logits_m) + CE(logits)

An instance's probabilities are the class activations of tier 1: softmax over the classes of W₁ (a_mn h_n), without b₁.
MaxS takes the instance most likely to be of class 1 where there are two classes, as the paper does; with more, where no
class is "the positive" one, of the class that tier 1 predicts for the pseudo-bag.

In training each draw of a slide is split anew at random into pseudo-bags that differ in size by at most one. In
evaluation patch i belongs to pseudo-bag i modulo M: nothing is drawn, every pseudo-bag has patches of the whole slide,
and the order of the file matters. A slide of fewer patches than M has a pseudo-bag for each.

The gradient of tier 2 flows through the distilled features into tier 1 (AFS: features and attention; MaxS: features),
and one optimizer trains both.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.models.inputs import BagModelOptions, input_norm, paired_inner
from fedpath.core.models.protocol import BagModel, BagOutput, weighted_cross_entropy
from fedpath.core.models.rows import times


class DtfdOptions(BagModelOptions):
    """Options of ``dtfd-afs`` and ``dtfd-maxs``; the defaults are the paper's."""

    inner: Annotated[int, Field(ge=1, le=8192)] | None = Field(
        default=None, description="inner width L; by default ACMIL's pair for the feature width, else half of it"
    )
    attention: Annotated[int, Field(ge=1, le=8192)] = Field(default=128, description="width inside both attentions")
    pseudo_bags: Annotated[int, Field(ge=1, le=256)] = Field(
        default=5, description="pseudo-bags M that a slide is split into"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="dropout on the inner features, in training"
    )


class GatedScore(nn.Module):
    """The raw score of gated attention: (N, L) to (N)."""

    def __init__(self, inner: int, attention: int) -> None:
        super().__init__()
        # tanh half and sigmoid half of the gate in one matrix: one product instead of two.
        self.gate = nn.Linear(inner, 2 * attention)
        self.score = nn.Linear(attention, 1)

    def forward(self, h_NL: Tensor) -> Tensor:
        """Return one score an instance."""
        content_NA, gate_NA = self.gate(h_NL).chunk(2, dim=1)
        scores_N1: Tensor = self.score(torch.tanh(content_NA) * torch.sigmoid(gate_NA))
        return scores_N1[:, 0]


@dataclass(frozen=True, slots=True)
class FirstTier:
    """What the first tier says about a slide; M pseudo-bags, none of them empty."""

    h_NL: Tensor
    member_MN: Tensor
    """Whether an instance is in a pseudo-bag."""
    attention_MN: Tensor
    """Sums to 1 over each pseudo-bag's instances, 0 elsewhere."""
    pooled_ML: Tensor
    logits_MC: Tensor


class Dtfd(BagModel):
    """Both tiers; what is distilled from a pseudo-bag is the subclass's. See the module's docstring for the formulas.

    Args:
        width: feature width D.
        n_classes: C.
        options: see ``DtfdOptions``.
    """

    def __init__(self, width: int, n_classes: int, options: DtfdOptions) -> None:
        super().__init__()
        self.pseudo_bags = options.pseudo_bags
        self.slide_width = inner = options.inner or paired_inner(width)
        self.input_norm = input_norm(options.input_norm, width)
        self.reduce = nn.Linear(width, inner, bias=False)
        self.dropout = nn.Dropout(options.dropout)
        self.first_score = GatedScore(inner, options.attention)
        self.first_head = nn.Linear(inner, n_classes)
        self.second_score = GatedScore(inner, options.attention)
        self.slide_head = nn.Linear(inner, n_classes)

    def forward(self, bag: Bag) -> BagOutput:
        """Classify one bag; in training mode its split and dropout are drawn from torch's global generators.

        ``attention_KN`` is one row, each instance's share of the slide's vector: tier 2's attention on its pseudo-bag
        times its weight in what is distilled from it. So MaxS shows M instances at most, those that its prediction
        rests on. ``branch_logits_KC`` are tier 1's, one row a pseudo-bag.
        """
        weight = self.reduce.weight
        member_MN = split(len(bag), self.pseudo_bags, at_random=self.training).to(weight.device)
        x_ND = self.input_norm(bag.features_ND.to(weight.device))
        h_NL = self.dropout(torch.relu(times(x_ND, weight)))
        attention_MN = torch.softmax(self.first_score(h_NL).masked_fill(~member_MN, float("-inf")), dim=1)
        pooled_ML = attention_MN @ h_NL
        tier = FirstTier(h_NL, member_MN, attention_MN, pooled_ML, self.first_head(pooled_ML))
        distilled_ML, share_MN = self.distil(tier)
        attention_1M = torch.softmax(self.second_score(distilled_ML), dim=0)[None]
        slide_L = (attention_1M @ distilled_ML)[0]
        return BagOutput(
            logits_C=self.slide_head(slide_L),
            attention_KN=attention_1M @ share_MN,
            slide_vector_L=slide_L,
            branch_logits_KC=tier.logits_MC,
        )

    @abstractmethod
    def distil(self, tier: FirstTier) -> tuple[Tensor, Tensor]:
        """Return the pseudo-bags' distilled features (M, L), and each instance's weight in its own's (M, N)."""

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy of the pseudo-bags + that of the slide."""
        if output.branch_logits_KC is None:
            raise ValueError("DTFD-MIL's loss needs the pseudo-bags' logits of DTFD-MIL's forward")
        first = weighted_cross_entropy(output.branch_logits_KC, target, class_weights_C)
        return first + weighted_cross_entropy(output.logits_C[None], target, class_weights_C)


class DtfdAfs(Dtfd):
    """DTFD-MIL with aggregated feature selection."""

    def distil(self, tier: FirstTier) -> tuple[Tensor, Tensor]:
        """Return what tier 1 pooled."""
        return tier.pooled_ML, tier.attention_MN


class DtfdMaxS(Dtfd):
    """DTFD-MIL with maximum selection."""

    def distil(self, tier: FirstTier) -> tuple[Tensor, Tensor]:
        """Return the features of the instance of highest probability in each pseudo-bag."""
        chosen_M = most_probable(tier, self.first_head.weight)
        share_MN = torch.zeros_like(tier.attention_MN).scatter(1, chosen_M[:, None], 1)
        return tier.h_NL[chosen_M], share_MN


def split(n_instances: int, pseudo_bags: int, *, at_random: bool) -> Tensor:
    """Return which instances are in which pseudo-bag, bool (M, N), M = min(pseudo_bags, n_instances).

    Instance i is in pseudo-bag i modulo M; at random, in that of its place in a random order, drawn on the CPU from
    torch's global generator so that every device splits alike.
    """
    n_bags = min(pseudo_bags, n_instances)
    place_N = torch.randperm(n_instances) if at_random else torch.arange(n_instances)
    return place_N % n_bags == torch.arange(n_bags)[:, None]


@torch.no_grad()
def most_probable(tier: FirstTier, head_weight_CL: Tensor) -> Tensor:
    """Return each pseudo-bag's instance (M) of highest probability, by class activation; see the module's docstring."""
    activation_NC = tier.attention_MN.sum(dim=0)[:, None] * (tier.h_NL @ head_weight_CL.T)
    probability_CN = torch.softmax(activation_NC, dim=1).T
    class_M = tier.logits_MC.argmax(dim=1) if len(probability_CN) > 2 else torch.ones_like(tier.logits_MC[:, 0]).long()
    return probability_CN[class_M].masked_fill(~tier.member_MN, -1).argmax(dim=1)
