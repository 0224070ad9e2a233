"""TransMIL: a transformer over all patches of a slide, through Nyström attention.

Shao et al., "TransMIL: Transformer based Correlated Multiple Instance Learning for Whole Slide Image Classification",
NeurIPS 2021.

    h_NL    = relu(x_ND W + b), lengthened to the next square S² by repeating its first patches
    t_TL    = [class token; h]                                        T = 1 + S²
    t       = t + attention(norm(t))                                  see ``fedpath.core.models.nystrom``
    t       = [class token; PPEG(patch tokens as an S × S square)]    t + conv 7×7 + conv 5×5 + conv 3×3, depthwise
    t       = t + attention(norm(t))
    logits  = head(norm(class token))
    loss    = CE(logits)

The square is filled row by row in the order of the feature file, whatever the coordinates: another order of the same
patches is another input. So are the segments that the landmarks are made of.

Of the second layer only the class token is ever read, so only its result is computed. As a Nyström product may be
negative and does not sum to 1, the reported attention is what it approximates: the softmax attention of the class token
on the patches in the second layer, one row a head. A repeated patch's share is added to the patch's own; what the class
token gives itself is left out and the rest scaled to sum to 1.
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.errors import ConfigError
from fedpath.core.models.inputs import BagModelOptions, input_norm
from fedpath.core.models.nystrom import NystromAttention
from fedpath.core.models.protocol import BagModel, BagOutput
from fedpath.core.models.rows import times


class TransMilOptions(BagModelOptions):
    """Options of ``transmil``; the defaults are the authors'."""

    inner: Annotated[int, Field(ge=1, le=8192)] = Field(
        default=512, description="width of the tokens L, a multiple of heads"
    )
    heads: Annotated[int, Field(ge=1, le=256)] = Field(default=8, description="attention heads")
    landmarks: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=256,
        description="landmarks of the attention, at most; exact softmax attention where a bag has no more tokens",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="dropout on each attention's result, in training"
    )


class TransMil(BagModel):
    """TransMIL; see the module's docstring for the formulas.

    Args:
        width: feature width D.
        n_classes: C.
        options: see ``TransMilOptions``.

    Raises:
        ConfigError: the heads do not divide the tokens.
    """

    def __init__(self, width: int, n_classes: int, options: TransMilOptions) -> None:
        super().__init__()
        inner = options.inner
        if inner % options.heads:
            raise ConfigError(
                f"model.options.inner = {inner}: not a multiple of heads = {options.heads}",
                remedy=f"take inner = {math.ceil(inner / options.heads) * options.heads}, or other heads",
            )
        self.slide_width = inner
        self.input_norm = input_norm(options.input_norm, width)
        self.reduce = nn.Linear(width, inner)
        self.class_token_1L = nn.Parameter(torch.randn(1, inner))
        self.first_norm = nn.LayerNorm(inner)
        self.first = NystromAttention(inner, options.heads, options.landmarks, options.dropout)
        self.position = PyramidPosition(inner)
        self.second_norm = nn.LayerNorm(inner)
        self.second = NystromAttention(inner, options.heads, options.landmarks, options.dropout)
        self.norm = nn.LayerNorm(inner)
        self.slide_head = nn.Linear(inner, n_classes)

    def forward(self, bag: Bag) -> BagOutput:
        """Classify one bag; in training mode with dropout, drawn from torch's global generators."""
        x_ND = self.input_norm(bag.features_ND.to(self.reduce.weight.device))
        h_NL = torch.relu(times(x_ND, self.reduce.weight, self.reduce.bias))
        n_repeated = _side(len(bag)) ** 2 - len(bag)
        t_TL = torch.cat([self.class_token_1L, h_NL, h_NL[:n_repeated]])
        t_TL = t_TL + self.first(self.first_norm(t_TL))
        class_1L, square_TL = torch.split(t_TL, [1, len(t_TL) - 1])
        x_TL = self.second_norm(torch.cat([class_1L, self.position(square_TL)]))
        slide_L = self.norm(class_1L + self.second.first_token(x_TL))[0]
        return BagOutput(
            logits_C=self.slide_head(slide_L),
            attention_KN=_fold(torch.softmax(self.second.first_token_scores(x_TL)[:, 1:], dim=1), len(bag)),
            slide_vector_L=slide_L,
        )


class PyramidPosition(nn.Module):
    """PPEG: each token of the square gains what 7 × 7, 5 × 5 and 3 × 3 depthwise convolutions see around it."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.around7 = nn.Conv2d(inner, inner, 7, groups=inner)
        self.around5 = nn.Conv2d(inner, inner, 5, groups=inner)
        self.around3 = nn.Conv2d(inner, inner, 3, groups=inner)

    def forward(self, x_TL: Tensor) -> Tensor:
        """Return the S² tokens (row by row) with their neighbourhoods, in the same order."""
        side, width = _side(len(x_TL)), x_TL.shape[1]
        # The three and the identity are one 7 × 7 convolution: one pass over the tokens instead of four. The tokens are
        # its image as they lie, with the channels innermost.
        image_1LSS = x_TL.view(side, side, width).permute(2, 0, 1)[None]
        image_1LSS = nn.functional.conv2d(image_1LSS, self._kernel(), padding=3, groups=width)
        biases = (convolution.bias for convolution in (self.around7, self.around5, self.around3))
        bias_L = torch.stack([bias_L for bias_L in biases if bias_L is not None]).sum(dim=0)
        return image_1LSS[0].permute(1, 2, 0).reshape(len(x_TL), width) + bias_L

    def _kernel(self) -> Tensor:
        """Return the sum of the identity and the three kernels, as one kernel (L, 1, 7, 7)."""
        kernels = (self.around7.weight, self.around5.weight, self.around3.weight)
        identity_77 = torch.zeros_like(kernels[0][0, 0])
        identity_77[3, 3] = 1
        padded = [nn.functional.pad(kernel, [half] * 4) for half, kernel in enumerate(kernels)]
        return torch.stack(padded).sum(dim=0) + identity_77


def _side(n: int) -> int:
    """Return the edge of the smallest square of at least n ≥ 1 cells, in exact arithmetic."""
    return math.isqrt(n - 1) + 1


def _fold(attention_KT: Tensor, n_instances: int) -> Tensor:
    """Add the attention of the repeated tokens, which stand behind the N patches, to that of their originals."""
    repeated_KT = attention_KT[:, n_instances:]
    room = n_instances - repeated_KT.shape[1]
    return attention_KT[:, :n_instances] + nn.functional.pad(repeated_KT, (0, room))
