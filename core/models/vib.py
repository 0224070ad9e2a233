"""The selector of VIB fine-tuning: an information bottleneck that keeps the few patches which a label needs.

Li et al., "Task-specific Fine-tuning via Variational Information Bottleneck for Weakly-supervised Pathology Whole Slide
Image Classification", CVPR 2023, stage 1. Each instance is kept with a probability π of its own. The class must be told
from what is kept (cross-entropy), while every π is held near a small prior r (KL): the minimal sufficient statistics.

    h_NL   = dropout(relu(x_ND W + b))
    s_N    = w · h + c                                       logit of the mask, π = sigmoid(s)
    m_SN   = sigmoid((s + log u - log(1 - u)) / τ)           S relaxed Bernoulli draws, u uniform in (0, 1)
    m_N    = mean over the draws; in evaluation π itself, without noise
    z_NL   = m ⊙ h
    a_N    = softmax over N of v · (tanh(z V) ⊙ sigmoid(z U))
    slide  = a z                                             logits = head(slide)
    loss   = CE(logits) + β · mean over N of KL[Bernoulli(π) ‖ Bernoulli(r)]

The draws are reparameterised: the gradient of the cross-entropy reaches s through them. The released code differs, and
not by design: it drew without a gradient, so that only the prior taught the mask; it passed log sigmoid(s), never above
0, where a logit was due, so that no mask could rise above one half; and its "KL" is a squared distance of the mean mask
from the prior, which holds no single instance to anything. Ours is the paper's, with the closed form of the KL;
``kl = "surrogate"`` takes (mean over N of m - r)² in its place, for comparisons.

Of N instances a few numbers each are kept for the backward pass: instances go through in chunks, each of which is
computed a second time when its gradient is due, and the softmax is put together from those of the chunks.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint

from fedpath.core.bags.bag import Bag
from fedpath.core.models.dropout import keep_mask, kept_share
from fedpath.core.models.inputs import BagModelOptions, input_norm, paired_inner
from fedpath.core.models.protocol import BagModel, BagOutput, weighted_cross_entropy

# Instances a chunk. One chunk keeps about 16 kB an instance at L = 512: 64 MB on a CPU.
_CPU_ROWS, _GPU_ROWS = 4096, 16384


class VibOptions(BagModelOptions):
    """Options of ``vib``; the defaults are the authors'."""

    prior: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1, description="the probability of being kept that each patch is held near"
    )
    beta: Annotated[float, Field(ge=0)] = Field(default=0.1, description="weight of the KL in the loss")
    temperature: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="of the relaxed draws; towards 0 they become 0 or 1"
    )
    samples: Annotated[int, Field(ge=1, le=1000)] = Field(default=10, description="draws of the mask, averaged")
    kl: Literal["bernoulli", "surrogate"] = Field(
        default="bernoulli",
        description="the closed form for each patch, or the released code's squared distance of the mean mask from "
        "the prior",
    )
    inner: Annotated[int, Field(ge=1, le=8192)] | None = Field(
        default=None, description="inner width L; by default ACMIL's pair for the feature width, else half of it"
    )
    attention: Annotated[int, Field(ge=1, le=8192)] = Field(default=256, description="width inside the gated attention")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.25, description="dropout on the inner features, in training"
    )


@dataclass(frozen=True, slots=True)
class VibOutput(BagOutput):
    """A bag's output with its mask. ``selection_N`` is s, the logit of the probability π that a patch is kept."""

    mask_N: Tensor | None = None
    """m: the mean of the relaxed draws in training, π in evaluation."""


class Vib(BagModel):
    """The selector, which also classifies; see the module's docstring for the formulas.

    Args:
        width: feature width D.
        n_classes: C.
        options: see ``VibOptions``.
    """

    def __init__(self, width: int, n_classes: int, options: VibOptions) -> None:
        super().__init__()
        self.options = options
        self.slide_width = inner = options.inner or paired_inner(width)
        self.input_norm = input_norm(options.input_norm, width)
        self.reduce = nn.Linear(width, inner)
        self.select = nn.Linear(inner, 1)
        # tanh half and sigmoid half of the gate in one matrix: one product instead of two.
        self.gate = nn.Linear(inner, 2 * options.attention)
        self.score = nn.Linear(options.attention, 1)
        self.slide_head = nn.Linear(inner, n_classes)

    def forward(self, bag: Bag) -> VibOutput:
        """Classify one bag; in training mode with masks and dropout drawn from torch's global generators.

        The noise of the masks is drawn on the CPU, so that every device masks alike.
        """
        device = self.reduce.weight.device
        x_ND = self.input_norm(bag.features_ND.to(device))
        noise_SN = logistic_noise(self.options.samples, len(bag)).to(device) if self.training else None
        rows = _CPU_ROWS if device.type == "cpu" else _GPU_ROWS
        # What fits one chunk is kept: nothing is computed twice for a small bag.
        again = torch.is_grad_enabled() and len(bag) > rows
        parts = []
        for start in range(0, len(bag), rows):
            chunk = slice(start, start + rows)
            arguments = x_ND[chunk], None if noise_SN is None else noise_SN[:, chunk]
            part = checkpoint(self._chunk, *arguments, use_reentrant=False) if again else self._chunk(*arguments)
            parts.append(part)
        logits, masks, scores, totals, pooled = zip(*parts, strict=True)
        # The softmax over all from those over the chunks: each weighs as much as its share of the whole sum.
        totals_P, scores_N = torch.stack(totals), torch.cat(scores)
        slide_L = (torch.softmax(totals_P, dim=0) @ torch.stack(pooled)).to(self.slide_head.weight.dtype)
        return VibOutput(
            logits_C=self.slide_head(slide_L),
            attention_KN=torch.exp(scores_N - torch.logsumexp(totals_P, dim=0))[None],
            slide_vector_L=slide_L,
            selection_N=torch.cat(logits),
            mask_N=torch.cat(masks),
        )

    def _chunk(self, x_nD: Tensor, noise_Sn: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return a chunk's s, m, raw scores, log Σ exp of these, and their softmax times z."""
        sums = torch.promote_types(self.reduce.weight.dtype, torch.float32)
        h_nL = torch.relu(self.reduce(x_nD.to(self.reduce.weight.dtype)))
        if self.training and self.options.dropout:
            kept_nL = keep_mask(tuple(h_nL.shape), self.options.dropout, h_nL.device)
            h_nL = h_nL * kept_nL / kept_share(self.options.dropout)
        logit_n = self.select(h_nL)[:, 0].to(sums)
        if noise_Sn is None:
            mask_n = torch.sigmoid(logit_n)
        else:
            mask_n = relaxed_bernoulli(logit_n, noise_Sn.to(sums), self.options.temperature)
        z_nL = mask_n[:, None].to(h_nL.dtype) * h_nL
        v_nA, u_nA = self.gate(z_nL).chunk(2, dim=1)
        score_n = self.score(torch.tanh(v_nA) * torch.sigmoid(u_nA))[:, 0].to(sums)
        return logit_n, mask_n, score_n, torch.logsumexp(score_n, 0), torch.softmax(score_n, 0) @ z_nL.to(sums)

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return the slide's cross-entropy + beta · the distance from the prior; class weights act on the former."""
        if not isinstance(output, VibOutput) or output.selection_N is None or output.mask_N is None:
            raise ValueError("the loss of vib needs the mask of vib's forward")
        slide = weighted_cross_entropy(output.logits_C[None], target, class_weights_C)
        if self.options.kl == "bernoulli":
            distance = bernoulli_kl(output.selection_N, self.options.prior).mean()
        else:
            distance = (output.mask_N.mean() - self.options.prior) ** 2
        return slide + self.options.beta * distance


def logistic_noise(samples: int, n_instances: int) -> Tensor:
    """Return standard logistic draws (S, N), float32, on the CPU, from torch's global generator: log u - log(1 - u)."""
    epsilon = torch.finfo(torch.float32).eps
    return torch.rand(samples, n_instances).clamp_(epsilon, 1 - epsilon).logit_()


def relaxed_bernoulli(logit_N: Tensor, noise_SN: Tensor, temperature: float) -> Tensor:
    """Return the mean over S draws of relaxed Bernoulli variables (N), differentiable in their logits.

    Maddison et al., "The Concrete Distribution", ICLR 2017, eq. 11 with logistic noise.
    """
    return torch.sigmoid((logit_N + noise_SN) / temperature).mean(dim=0)


def bernoulli_kl(logit_N: Tensor, prior: float) -> Tensor:
    """Return KL[Bernoulli(sigmoid(logit)) ‖ Bernoulli(prior)] of each instance (N), in nats: ≥ 0, 0 at the prior.

    π (log π - log r) + (1 - π) (log(1 - π) - log(1 - r)), finite for any logit.
    """
    r = torch.tensor(prior, dtype=logit_N.dtype, device=logit_N.device)
    kept_N, left_N = logsigmoid(logit_N), logsigmoid(-logit_N)
    return kept_N.exp() * (kept_N - r.log()) + left_N.exp() * (left_N - torch.log1p(-r))
