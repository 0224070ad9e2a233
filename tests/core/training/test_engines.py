"""Engines: the torch engine's weights are what DeepSpeed must find, whatever it splits; and how it fails."""

import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from engine_models import Broken, Parts, make_examples
from torch import Tensor

from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.config.site import ComputeSection, DeepSpeedSection
from fedpath.core.errors import ConfigError
from fedpath.core.events import Event, EventLog
from fedpath.core.models import BagModel
from fedpath.core.monitoring.children import Mailbox
from fedpath.core.training import TrainResult, TrainSettings, evaluate, train
from fedpath.core.training.engines import TORCH, EngineSettings, choose, engine_settings
from fedpath.core.training.engines.base import parameter_groups
from fedpath.core.training.engines.launch import TrainingProcessError, check

DEEPSPEED = ComputeSection(engine="deepspeed")
FIVE_BAGS_IN_TWOS = TrainSettings(2, 1e-2, accumulate_bags=2, precision="float32")


def engine(stage: int = 1, processes: int = 1, offload: bool = False) -> EngineSettings:
    return EngineSettings("deepspeed", stage, processes, offload)


def state_of(model: BagModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def children(parent: int) -> list[int]:
    """Process ids of a process's children that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def trained(
    settings: EngineSettings, dropout: float, how: TrainSettings = FIVE_BAGS_IN_TWOS
) -> tuple[Parts, TrainResult, list[float], list[float]]:
    """The model, the result, each bag's loss, and what an evaluation said after each epoch."""
    model, losses, evaluated = Parts(dropout), [], []
    result = train(
        model,
        make_examples(5),
        how,
        seed=2**63 - 1,
        engine=settings,
        progress=lambda done, total, loss: losses.append(loss),
        after_epoch=lambda _: evaluated.append(evaluate(model, make_examples(5)).loss),
    )
    return model, result, losses, evaluated


# --- the choice -------------------------------------------------------------------------------------------------------


def test_torch_is_the_default() -> None:
    assert engine_settings(ComputeSection(), "cpu", offload=True) == TORCH


def test_deepspeed_takes_every_gpu_and_one_process_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_settings(DEEPSPEED, "cpu", offload=True) == engine(1, 1, True)
    asked = ComputeSection(engine="deepspeed", deepspeed=DeepSpeedSection(zero_stage=3, processes=2))
    assert engine_settings(asked, "cpu") == engine(3, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert engine_settings(DEEPSPEED, "cuda") == engine(1, 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"2 processes.*1 GPUs.*compute\.deepspeed\.processes"):
        engine_settings(asked, "cuda")
    assert "deepspeed" not in sys.modules


def test_an_engine_that_is_not_there_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(choose, "version", missing)
    with pytest.raises(ConfigError, match=r'not installed \(pip install "fedpath\[deepspeed\]"'):
        engine_settings(DEEPSPEED, "cpu")
    monkeypatch.setattr(choose, "version", lambda _: "0.18.2")
    with pytest.raises(ConfigError, match=r"0\.18\.2 is installed, 0\.19\.8 is needed"):
        engine_settings(DEEPSPEED, "cpu")
    monkeypatch.setattr(choose, "version", lambda _: "1.0.0+cu128")
    assert engine_settings(DEEPSPEED, "cpu") == engine()


def test_what_deepspeed_cannot_do_is_refused_before_it_starts() -> None:
    examples, model = make_examples(4), Parts()
    record = ClinicalRecord(torch.zeros(1, dtype=torch.float64), torch.tensor([True]))

    class Clinical(Parts):
        clinical_groups = frozenset({"slow"})

    with pytest.raises(ConfigError, match=r"accumulate_bags is 3, which 2 processes.*multiple of 2"):
        check(model, examples, TrainSettings(accumulate_bags=3, precision="float32"), engine(1, 2))
    with pytest.raises(ConfigError, match=r"stage 0 trains in float32 only.*zero_stage = 1"):
        check(model, examples, TrainSettings(precision="bfloat16"), engine(0))
    with pytest.raises(ConfigError, match=r"stage 0 cannot keep.*zero_stage = 1"):
        engine_settings(
            ComputeSection(engine="deepspeed", deepspeed=DeepSpeedSection(zero_stage=0)), "cpu", offload=True
        )
    object.__setattr__(examples[0].bag, "clinical", record)
    two = TrainSettings(accumulate_bags=2, precision="float32")
    check(Clinical(), examples, two, engine(1, 2))
    with pytest.raises(ConfigError, match=r"some patients have clinical data.*zero_stage = 1"):
        check(Clinical(), examples, two, engine(2, 2))
    for example, n in zip(examples, (6, 6, 6, 5), strict=True):
        object.__setattr__(example.bag, "features_ND", torch.zeros(n, 4))
        object.__setattr__(example.bag, "pixels_NHWC", torch.zeros(n, 1, 1, 3, dtype=torch.uint8))
    check(model, examples, two, engine(2, 2))
    with pytest.raises(ConfigError, match=r"same number of patches.*5 to 6.*zero_stage = 2"):
        check(model, examples, two, engine(3, 2))


# --- parameter groups -------------------------------------------------------------------------------------------------


def test_groups_are_stepped_at_their_own_rate_and_frozen_ones_not_at_all() -> None:
    model = Parts()
    groups = parameter_groups(model)
    assert [group["scale"] for group in groups] == [1.0, 0.0, 0.1]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters())) - 2
    before = state_of(model)
    train(model, make_examples(3), TrainSettings(1, 1e-2, weight_decay=0.0, precision="float32"), seed=0)
    moved = {name: (tensor - before[name]).abs().max().item() for name, tensor in model.state_dict().items()}
    assert moved["encoder.lower.weight"] == moved["encoder.middle.weight"] == moved["unused"] == 0
    # Adam's first step has the size of the learning rate.
    assert moved["encoder.upper.weight"] == pytest.approx(moved["head.out.weight"] / 10, rel=0.2)


def test_a_group_that_the_hospitals_agreed_on_is_not_stepped() -> None:
    class Agreed(Parts):
        agreed_groups = frozenset({"slow"})

    model = Agreed()
    held = {id(parameter) for parameter in model.encoder.upper.parameters()}
    groups = parameter_groups(model)
    assert [group["scale"] for group in groups] == [1.0, 0.0]
    assert not held & {id(parameter) for group in groups for parameter in group["params"]}


# --- DeepSpeed for real -----------------------------------------------------------------------------------------------

SPLITS = [
    (0, 1, False), (1, 1, False), (2, 1, True), (3, 1, True),
    (0, 2, False), (1, 2, False), (2, 2, True), (3, 2, False),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "processes", "offload"), SPLITS)
def test_deepspeed_finds_the_weights_of_the_torch_engine(
    stage: int, processes: int, offload: bool, tmp_path: Path
) -> None:
    # One process draws the same dropout; several draw their own.
    dropout = 0.3 if processes == 1 else 0.0
    wanted, wanted_result, wanted_losses, wanted_evaluated = trained(TORCH, dropout)
    in_memory = sorted(Path("/dev/shm").iterdir())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    heard: list[Event] = []
    with Mailbox(tmp_path, "agent", EventLog(None, heard.append)):
        model, result, losses, evaluated = trained(engine(stage, processes, offload), dropout)
    assert {event.values["rank"] for event in heard} == set(range(processes))
    assert all(event.values["memory_bytes"] > 2**20 for event in heard)
    assert torch.equal(torch.rand(3), expected)
    assert sorted(Path("/dev/shm").iterdir()) == in_memory
    assert children(os.getpid()) == []
    before, seen = Parts().state_dict(), model.state_dict().pop("seen")
    for name, value in wanted.state_dict().items():
        if name != "seen":
            torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=2e-6, msg=name)
    # Each of two processes went through three bags an epoch: the last one has one bag to train on, and one repeats it.
    assert seen.tolist() == [10 if processes == 1 else 6] * 2
    for name in ("encoder.lower.weight", "encoder.middle.weight", "unused"):
        # Not trained; or without a learning rate, through six steps; or never used.
        assert torch.equal(model.state_dict()[name], before[name]), name
    assert losses == pytest.approx(wanted_losses, abs=2e-6)
    assert evaluated == pytest.approx(wanted_evaluated, abs=2e-6)
    assert result.loss == pytest.approx(wanted_result.loss, abs=2e-6)
    assert (result.bags, result.patients) == (wanted_result.bags, wanted_result.patients)
    assert result.patients_by_group == wanted_result.patients_by_group == {"image": 3, "slow": 3, "still": 3}
    assert not model.training
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_bfloat16_keeps_float32_weights_and_the_caller_can_end_it_after_an_epoch() -> None:
    cut, whole = Parts(0.3), Parts(0.3)
    after_one: dict[str, Tensor] = {}
    settings, epochs = TrainSettings(3, 1e-2, precision="bfloat16"), []

    def look(epoch: int) -> None:
        if epoch == 1:
            after_one.update(state_of(whole))

    def stop(epoch: int) -> bool:
        epochs.append(epoch)
        return True

    train(whole, make_examples(4), settings, seed=0, after_epoch=look)
    train(cut, make_examples(4), settings, seed=0, after_epoch=stop, engine=engine(1))
    assert epochs == [1]
    for name, value in after_one.items():
        torch.testing.assert_close(cut.state_dict()[name], value, rtol=0, atol=2e-6, msg=name)


# --- how it fails -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "processes", "error", "says"),
    [
        ("raise", 2, TrainingProcessError, r"process \d of 2 failed with RuntimeError: the layer is loose \(compute"),
        ("memory", 1, torch.OutOfMemoryError, "no memory is left"),
        ("killed", 1, TrainingProcessError, r"process 1 was killed by SIGKILL; its last line: a last word \(.*memory"),
    ],
)
def test_a_process_that_fails_says_why_and_none_is_left(
    how: str, processes: int, error: type[Exception], says: str
) -> None:
    model = Broken()
    model.how = how
    before = state_of(model)
    with pytest.raises(error, match=says):
        train(model, make_examples(8), FIVE_BAGS_IN_TWOS, seed=0, engine=engine(1, processes))
    assert children(os.getpid()) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_loss_that_is_lost_is_the_same_error_as_with_torch() -> None:
    examples = make_examples(2)
    examples[1].bag.features_ND[0, 0] = torch.nan
    with pytest.raises(ConfigError, match="training diverged: the loss of slide 's1' is nan"):
        train(Parts(), examples, FIVE_BAGS_IN_TWOS, seed=0, engine=engine())


def test_the_processes_end_with_the_one_that_started_them() -> None:
    program = (
        "from engine_models import *\n"
        "from fedpath.core.training import *\n"
        "from fedpath.core.training.engines import EngineSettings\n"
        "train(Parts(), make_examples(4), TrainSettings(10**6, 1e-3, accumulate_bags=2), seed=0,\n"
        "      engine=EngineSettings('deepspeed', 1, 2), progress=lambda *_: print('bag', flush=True))\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"bag\n"
    started = children(parent.pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(started) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in started):
        assert time.monotonic() < deadline


def test_a_model_that_cannot_be_handed_over_is_refused() -> None:
    model = Parts()
    model.odd = lambda: None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"\(Parts\) cannot be handed to a process of its own.*engine = \"torch\""):
        train(model, make_examples(2), FIVE_BAGS_IN_TWOS, seed=0, engine=engine())
