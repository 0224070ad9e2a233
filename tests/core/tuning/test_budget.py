"""A plan that falls short, for real: the CPU's memory is counted and limited by the tracker."""

from pathlib import Path

import pytest
import torch
from tuning_steps import HEAD, make_examples, make_tuner

from fedpath.core.config.site import ComputeSection
from fedpath.core.config.stages import Patches, TuningSection
from fedpath.core.errors import ConfigError
from fedpath.core.training import TrainSettings, train
from fedpath.core.tuning.account import MemoryTracker
from fedpath.core.tuning.budget import available_memory, budget_of, within_budget
from fedpath.core.tuning.choice import MemoryChoice
from fedpath.core.tuning.model import SparseTuner
from fedpath.core.tuning.plan import GB, Plan, plan_memory

K, PX = 32, 64
TUNING = TuningSection(patches=Patches(most=K, least=4))


def make_plan() -> Plan:
    return plan_memory(
        "tiny-resnet", HEAD, TUNING, n_classes=2, patch_px=PX, budget_bytes=GB, device="cpu", precision="float32"
    )


class Attempts:
    """Training from the same start each time, in a memory of some size."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.choices: list[MemoryChoice] = []

    def __call__(self, choice: MemoryChoice) -> SparseTuner:
        self.choices.append(choice)
        tuner = make_tuner("tiny-resnet", TUNING, choice)
        examples = make_examples(2, K, PX)
        tracker = MemoryTracker(self.limit)
        tracker.add(tuner)
        with tracker:
            train(tuner, examples, TrainSettings(), seed=4)
        return tuner


def test_a_plan_that_fits_is_used_as_it_is() -> None:
    plan, told = make_plan(), list[Plan]()
    attempt = Attempts(int(plan.peak_bytes * 1.02))
    within_budget(attempt, plan, device="cpu", tightened=told.append)
    assert attempt.choices == [plan.choice]
    assert told == []


def test_a_plan_that_falls_short_is_tightened_once_and_gives_what_the_tighter_one_gives() -> None:
    plan, told = make_plan(), list[Plan]()
    tighter = plan.tighter()
    assert tighter is not None
    assert tighter.peak_bytes < plan.peak_bytes
    attempt = Attempts((plan.peak_bytes + tighter.peak_bytes) // 2)
    tuner = within_budget(attempt, plan, device="cpu", tightened=told.append)
    assert attempt.choices == [plan.choice, tighter.choice]
    assert [found.choice for found in told] == [tighter.choice]
    alone = Attempts(GB)(tighter.choice)
    for name, value in tuner.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name


def test_a_second_failure_is_a_clear_error() -> None:
    plan, told = make_plan(), list[Plan]()
    attempt = Attempts(plan.parts.weights * 2)
    with pytest.raises(ConfigError, match=r"out of memory with 32 patches a slide in micro-batches of 16") as caught:
        within_budget(attempt, plan, device="cpu", tightened=told.append)
    assert len(attempt.choices) == 2
    assert len(told) == 1
    assert "compute.vram_gb" in caught.value.remedy


def test_other_errors_pass() -> None:
    def fail(choice: MemoryChoice) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        within_budget(fail, make_plan(), device="cpu")


def test_a_full_computer_is_out_of_memory_as_a_full_gpu_is() -> None:
    sizes: list[int] = []

    def attempt(choice: MemoryChoice) -> int:
        sizes.append(choice.micro_batch)
        # More than any machine has: torch's own error of a CPU.
        return int(torch.empty(2**60, dtype=torch.uint8).numel()) if len(sizes) == 1 else 7

    assert within_budget(attempt, make_plan(), device="cpu") == 7
    assert sizes == [32, 16]


def test_the_budget_is_what_the_site_says_or_half_of_the_free_memory() -> None:
    assert budget_of(ComputeSection(vram_gb=8), "cpu") == 8 * GB
    free = available_memory()
    assert 0.2 * free < budget_of(ComputeSection(), "cpu") < 0.8 * free
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        total = int(next(line for line in meminfo.read_text().splitlines() if "MemTotal" in line).split()[1])
        assert 0 < free <= total * 1024
