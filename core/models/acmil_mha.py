"""ACMIL in its multi-head variant: every branch is a multi-head attention with one learned query.

Zhang et al., ECCV 2024 (see ``acmil``); this variant is in the authors' code. For branch k with the H = 8 heads m, each
of width d = L / 8, and with biased projections Q, K, V, O (L to L):

    h_NL     = relu(x_ND W)                                        (W without bias)
    s_km     = (K_k h)_m · (Q_k q_k)_m / √d                        raw scores over N, one row a branch and head
    a_km     = softmax over N of s_km, after STKIM in training
    branch   = norm(dropout(O_k [Σ_n a_km,n (V_k h_n)_m, m = 1…H]))          logits_k = head_k(branch)
    slide    = the same with the means over k of a_km and projections V, O, norm of its own
    loss     = mean_k CE(branch k) + CE(slide) + mean over heads and pairs of branches of cos(a_im, a_jm)

Nothing of this needs keys or values of N × L. One learned query a branch means that key projection and query fold into
one vector a head, (K_k^T)_m (Q_k q_k)_m, with which every h is multiplied; and values are pooled before they are
projected, as V (Σ a h) = Σ a V h and each a sums to 1. The same numbers at the cost of the gated variant instead of
several times that.

Where the source is silent: STKIM draws for each branch and head; the slide's pooling has the branches' dropout and
norm (eps 1e-6); a branch's query starts as N(0, 1e-6) with 1e-6 read as the standard deviation.

Shape letters beside those of ``fedpath.core.models``: H heads, d = L / H, R = K · H rows, I to O the widths of a map.
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.models.acmil import BranchOptions, branch_similarity, branches_and_slide, mask_top_instances
from fedpath.core.models.gated_pool import Hidden, attention_pool
from fedpath.core.models.inputs import input_norm, paired_inner
from fedpath.core.models.protocol import BagModel, BagOutput

_HEADS = 8


class AcmilMhaOptions(BranchOptions):
    """Options of ``acmil-mha``; the defaults are the authors'."""

    inner: Annotated[int, Field(ge=_HEADS, le=8192, multiple_of=_HEADS)] | None = Field(
        default=None,
        description=f"inner width L, a multiple of the {_HEADS} heads; by default as for acmil, rounded up to one",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="dropout on the vector of each branch and of the slide, in training"
    )


class AcmilMha(BagModel):
    """ACMIL with multi-head attention; see the module's docstring for the formulas.

    ``attention_KN`` has a row for each branch and head: the H heads of the first branch, then those of the second.

    Args:
        width: feature width D.
        n_classes: C.
        options: see ``AcmilMhaOptions``.
    """

    def __init__(self, width: int, n_classes: int, options: AcmilMhaOptions) -> None:
        super().__init__()
        self.options = options
        self.slide_width = inner = options.inner or -(-paired_inner(width) // _HEADS) * _HEADS
        n_branches = options.n_branches
        self.input_norm = input_norm(options.input_norm, width)
        self.reduce = nn.Linear(width, inner, bias=False)
        self.query_KL = nn.Parameter(torch.empty(n_branches, inner).normal_(std=1e-6))
        self.to_query = BranchLinear(n_branches, inner, inner)
        self.to_key = BranchLinear(n_branches, inner, inner)
        self.attend = HeadPooling(n_branches, inner, options.dropout)
        self.branch_head = BranchLinear(n_branches, inner, n_classes)
        self.slide_attend = HeadPooling(1, inner, options.dropout)
        self.slide_head = nn.Linear(inner, n_classes)

    def forward(self, bag: Bag) -> BagOutput:
        """Classify one bag; in training mode with STKIM and dropout, drawn from torch's global generator."""
        fold_KHL, bias_KH = self._folded_query()
        pooled_RL, attention_RN = attention_pool(
            self.input_norm(bag.features_ND.to(self.reduce.weight.device)),
            Hidden(self.reduce.weight),
            None,
            fold_KHL.flatten(0, 1),
            bias_KH.flatten(),
            select=self._mask if self.training else None,
        )
        pooled_KHL = pooled_RL.view_as(fold_KHL)
        # Pooling is linear: the mean over branches of what they pooled is pooled by their mean attention.
        slide_L = self.slide_attend(pooled_KHL.mean(dim=0, keepdim=True))[0]
        return BagOutput(
            logits_C=self.slide_head(slide_L),
            attention_KN=attention_RN,
            slide_vector_L=slide_L,
            branch_logits_KC=self.branch_head(self.attend(pooled_KHL)),
        )

    def _folded_query(self) -> tuple[Tensor, Tensor]:
        """Return vectors (K, H, L) and biases (K, H): the scaled scores of h are ``vector · h + bias``."""
        query_KHd = _by_head(self.to_query(self.query_KL), 1) * math.sqrt(_HEADS / self.query_KL.shape[1])
        fold_KHL = torch.einsum("khd,khdl->khl", query_KHd, _by_head(self.to_key.weight_KOI, 1))
        return fold_KHL, (query_KHd * _by_head(self.to_key.bias_KO, 1)).sum(dim=2)

    def _mask(self, scores_RN: Tensor) -> Tensor:
        return mask_top_instances(scores_RN, self.options.top_k, self.options.mask_ratio)

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return mean branch cross-entropy + slide cross-entropy + diversity, each with weight 1."""
        return branches_and_slide(output, target, class_weights_C) + head_similarity(output.attention_KN)


class BranchLinear(nn.Module):
    """K linear maps (I to O) at once, each for its own vector; initialised as ``nn.Linear``."""

    def __init__(self, n_branches: int, n_in: int, n_out: int) -> None:
        super().__init__()
        bound = n_in**-0.5
        self.weight_KOI = nn.Parameter(torch.empty(n_branches, n_out, n_in).uniform_(-bound, bound))
        self.bias_KO = nn.Parameter(torch.empty(n_branches, n_out).uniform_(-bound, bound))

    def forward(self, x_KI: Tensor) -> Tensor:
        """Return (K, O)."""
        return torch.einsum("ki,koi->ko", x_KI, self.weight_KOI) + self.bias_KO


class HeadPooling(nn.Module):
    """From h pooled by the attention of each head to the vectors of K branches: values, output, dropout, norm."""

    def __init__(self, n_branches: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.to_value = BranchLinear(n_branches, inner, inner)
        self.to_output = BranchLinear(n_branches, inner, inner)
        self.dropout = nn.Dropout(dropout)
        self.norm_weight_KL = nn.Parameter(torch.ones(n_branches, inner))
        self.norm_bias_KL = nn.Parameter(torch.zeros(n_branches, inner))

    def forward(self, pooled_KHL: Tensor) -> Tensor:
        """Return (K, L)."""
        value_KHd = torch.einsum("khl,khdl->khd", pooled_KHL, _by_head(self.to_value.weight_KOI, 1))
        value_KL = value_KHd.flatten(1) + self.to_value.bias_KO
        output_KL = self.dropout(self.to_output(value_KL))
        unit_KL = nn.functional.layer_norm(output_KL, output_KL.shape[1:], eps=1e-6)
        return unit_KL * self.norm_weight_KL + self.norm_bias_KL


def head_similarity(attention_RN: Tensor) -> Tensor:
    """Return the diversity term: the mean over the heads of the branches' similarity in that head."""
    heads_HKN = attention_RN.view(-1, _HEADS, attention_RN.shape[1]).transpose(0, 1)
    return torch.stack([branch_similarity(attention_KN) for attention_KN in heads_HKN]).mean()


def _by_head(x: Tensor, dim: int) -> Tensor:
    """Split the width L at ``dim`` into heads of width d."""
    return x.reshape(*x.shape[:dim], _HEADS, -1, *x.shape[dim + 1 :])
