"""timm itself, to hold our encoders against, also where torch's CPU wheel has no torchvision that fits it.

timm imports torchvision, whose import declares shapes for operators that only its binary brings; nothing of it is used.
"""

import re
import sys
from types import ModuleType

import pytest
import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


def timm() -> ModuleType:
    """Return timm; skip the test where it is not installed."""
    for _ in range(10):
        try:
            return pytest.importorskip("timm")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            _LIBRARY.define(f"{missing[1]}() -> ()")
            for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
                del sys.modules[name]
    raise AssertionError("torchvision asks for ever more operators")
