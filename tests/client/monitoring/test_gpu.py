"""What is told of GPUs. There is none where tests run: torch's and NVML's answers are given, and all else is ours."""

import sys
from types import SimpleNamespace

import pytest
import torch

from fedpath.client.monitoring.gpu import gpus

GB = 10**9


class NVMLError(Exception):
    pass


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two, of which this process uses the second."""
    answers = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "current_device": lambda: 1,
        "device_count": lambda: 2,
        "mem_get_info": {1: (30 * GB, 80 * GB)}.__getitem__,  # asking another one takes memory of it
        "max_memory_allocated": {1: 20 * GB}.__getitem__,
        "device_memory_used": {0: 7 * GB}.__getitem__,
        "utilization": {0: 5, 1: 75}.__getitem__,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)


def told(peaks: dict[str, float]) -> dict[tuple[str, ...], float]:
    return {tuple(labels.values()): value for _, labels, value in gpus(peaks)}


def test_without_a_gpu_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert list(gpus({"0": 1.0})) == []


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_ours_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    ours = {("1", "used"): 50 * GB, ("1", "total"): 80 * GB, ("1", "peak"): 20 * GB}
    assert told({}) == ours
    assert told({"0": 3.0 * GB, "1": 2.0 * GB}) == ours | {("0", "peak"): 3 * GB}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert told({"0": 3.0 * GB}) == {("0", "peak"): 3 * GB}


@pytest.mark.usefixtures("two_gpus")
def test_nvml_knows_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NVMLError))
    found = told({})
    assert (found[("0",)], found[("1",)]) == (0.05, 0.75)
    assert found["0", "used"] == 7 * GB

    def unknown(_: int) -> int:
        raise NVMLError("not supported")

    monkeypatch.setattr(torch.cuda, "utilization", unknown)  # as of a slice of a GPU
    assert ("0",) not in told({})
    assert told({})["0", "used"] == 7 * GB
