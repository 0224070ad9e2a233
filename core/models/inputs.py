"""What bag models share at their input: the normalisation of features, the option that says so, inner widths."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpath.core.config.loading import Section

InputNorm = Literal["none", "layer", "bag"]

# Inner widths that ACMIL's authors pair with their encoders' feature widths.
_PAIRED_INNER = {384: 128, 512: 256, 768: 384, 1024: 512, 1536: 768}


class BagModelOptions(Section):
    """The options that all bag models share; each model adds its own."""

    input_norm: InputNorm = Field(
        default="none",
        description="'layer' normalises each feature vector (raw, unscaled tables); 'bag' normalises each feature over "
        "the slide's own patches (slides of different stains and scanners)",
    )


def paired_inner(width: int) -> int:
    """Return the default inner width L for features of ``width`` D: the authors' pair, else half of it, at least 1."""
    return _PAIRED_INNER.get(width) or max(1, width // 2)


def input_norm(kind: InputNorm, width: int) -> nn.Module:
    """Return the normalisation of features of ``width`` D: (N, D) to (N, D), the identity for ``none``.

    It takes features of any float type. The identity leaves them in it, so that a model may convert them as late as it
    can; the normalisations return their own.
    """
    norms: dict[str, type[nn.Module]] = {"layer": VectorNorm, "bag": BagNorm}
    return norms.get(kind, nn.Identity)(width)


class VectorNorm(nn.LayerNorm):
    """Standardises each feature vector, then scales and shifts it by learned amounts."""

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return the normalised features (N, D)."""
        return super().forward(x_ND.to(self.weight.dtype))


class BagNorm(nn.Module):
    """Standardises every feature over the N patches of the bag at hand, then scales and shifts it by learned amounts.

    What all patches of a slide have in common, such as its stain and its scanner, goes; how they differ among
    themselves stays. Nothing is remembered from one bag to the next, so hospitals have no statistics to share, and
    evaluation equals training. A bag of one patch, or of equal ones, has nothing left but the shift.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return the normalised features (N, D)."""
        x_ND = x_ND.to(self.weight.dtype)
        variance_D, mean_D = torch.var_mean(x_ND, dim=0, correction=0)
        # The floor is far below the variance of any feature that varies, and far above rounding in float16 files.
        return (x_ND - mean_D) * torch.rsqrt(variance_D + 1e-5) * self.weight + self.bias
