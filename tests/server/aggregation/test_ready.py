"""What is compiled before hospitals wait for it."""

import json
import subprocess
import sys

import pytest

_COUNT = """
import json, sys
from fedpath.core.config.federated import AggregationSection
from fedpath.server.aggregation import make_ready
make_ready(AggregationSection({settings}), {size})
loops = {{}}
if "fedpath.server.aggregation.infiles" in sys.modules:
    from fedpath.server.aggregation import infiles
    loops["infiles"] = len(infiles.weighted_sum.signatures)
if "fedpath.server.aggregation.kernels" in sys.modules:
    from fedpath.server.aggregation import kernels
    compiled = [name for name, loop in vars(kernels).items() if getattr(loop, "signatures", None)]
    loops["kernels"] = len(compiled)
print(json.dumps(loops))
"""


def loops(settings: str, size: int) -> dict[str, int]:
    """How many loops of each module a fresh process has compiled."""
    command = [sys.executable, "-c", _COUNT.format(settings=settings, size=size)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    return dict(json.loads(printed))


def test_the_mean_of_a_large_model_is_compiled() -> None:
    assert loops("", 100_000_000) == {"infiles": 1}


@pytest.mark.parametrize(
    ("settings", "size"), [("", 1_000_000), ("order='arrival'", 100_000_000), ("engine='ray'", 100_000_000)]
)
def test_what_needs_no_compiler_loads_none(settings: str, size: int) -> None:
    assert loops(settings, size) == {}


@pytest.mark.parametrize("combine", ["median", "bulyan"])
def test_a_robust_estimator_is_compiled_for_any_model(combine: str) -> None:
    assert loops(f"combine='{combine}', byzantine=1", 1000)["kernels"] >= 2
