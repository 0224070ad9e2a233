"""Mixed precision: bfloat16 matrix products where the device makes them fast, float32 everywhere else.

It is torch's autocast: parameters, their gradients and the optimizer stay float32, and so does what is exchanged;
products of matrices run in bfloat16. Its exponents reach as far as float32's, so no loss is scaled. The loss itself is
computed in float32. Evaluation is always float32: figures of different machines are compared.
"""

from typing import Literal

import torch

from fedpath.core.bags.bag import Bag
from fedpath.core.errors import ConfigError
from fedpath.core.models.protocol import BagModel, BagOutput, change_tensors

Precision = Literal["auto", "float32", "bfloat16"]
Chosen = Literal["float32", "bfloat16"]


def fast_bfloat16(device: torch.device | str) -> bool:
    """Tell whether the device multiplies bfloat16 matrices faster than float32 ones.

    A CPU does with AMX tiles only: with AVX-512 or AVX2 torch still takes bfloat16, several times slower than float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return False
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def choose_precision(wanted: Precision, device: torch.device | str) -> Chosen:
    """Return the precision to train in on ``device``; "auto" takes bfloat16 where it is fast.

    A CPU without AMX is slow in bfloat16 but right, so asking for it there is obeyed.

    Raises:
        ConfigError: "bfloat16" is asked for on a GPU that lacks it.
    """
    if wanted == "auto":
        return "bfloat16" if fast_bfloat16(device) else "float32"
    if wanted == "bfloat16" and torch.device(device).type == "cuda" and not fast_bfloat16(device):
        raise ConfigError(
            "site.toml asks for precision 'bfloat16', which this GPU does not have",
            remedy='set compute.precision = "auto"; GPUs have bfloat16 from compute capability 8.0 on',
        )
    return wanted


def forward(model: BagModel, bag: Bag, *, device: torch.device, precision: Chosen) -> BagOutput:
    """Return what the model says about a bag, computed in ``precision`` and handed over in float32."""
    if precision == "float32":
        return model(bag)
    with torch.autocast(device.type, torch.bfloat16):
        output = model(bag)
    return change_tensors(output, lambda tensor: tensor.float() if tensor.dtype == torch.bfloat16 else tensor)
