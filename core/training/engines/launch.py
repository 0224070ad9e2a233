"""Train in processes of their own, on this machine, and bring back what they learned.

    this process ── job in a memory file ──► process 0 … P - 1: model, bags, settings
                 ◄─ a line of JSON a message: losses, ends of epochs, errors
                 ── stdin: "go on" or "stop" after an epoch; its end is the end of the process
                 ◄─ weights in a memory file, written by process 0

Nothing has a name on disk but what Python imports. The processes end when this one does, however it does.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from fedpath.core import errors
from fedpath.core.cohort.examples import Example
from fedpath.core.errors import ConfigError, FedpathError
from fedpath.core.models.protocol import BagModel
from fedpath.core.training.drift import DriftTerms
from fedpath.core.training.engines.base import EngineSettings, changing
from fedpath.core.training.engines.handover import memory_file, pack, views
from fedpath.core.training.settings import TrainSettings

_GRACE_S = 5.0
"""How long the others may take to say what went wrong after one has failed, and to end."""
_REMEDY = 'compute.engine = "torch" in site.toml trains without DeepSpeed'


class TrainingProcessError(FedpathError):
    """A process that trains failed or was killed.

    Args:
        message, remedy: as of any error; for the hospital's own eyes, for they may repeat what the process printed.
        how: what became of it, in words that may leave the hospital.
    """

    def __init__(self, message: str, *, remedy: str, how: str = "failed") -> None:
        super().__init__(message, remedy=remedy)
        self.how = how


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is told."""

    model: BagModel
    """On the CPU."""
    examples: Sequence[Example]
    settings: TrainSettings
    """With the precision chosen."""
    seed: int
    span: tuple[float, float]
    device: str
    """"cpu" or "cuda": process r takes GPU r."""
    engine: EngineSettings
    threads: int
    memory_share: float
    """Of a GPU's memory that the process may take."""
    ask_after_epoch: bool


@dataclass(slots=True)
class _Process:
    """One of them, as this process sees it."""

    rank: int
    popen: "subprocess.Popen[bytes]"
    messages: IO[bytes]
    log: IO[bytes]
    unread: bytes = field(default=b"")

    def lines(self) -> list[dict[str, Any]] | None:
        """Return what it has said since the last time; None once it says no more."""
        came = os.read(self.messages.fileno(), 2**16)
        *whole, self.unread = (self.unread + came).split(b"\n")
        return [json.loads(line) for line in whole] if came else None


def train_in_processes(
    model: BagModel,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    seed: int,
    span: tuple[float, float],
    device: torch.device,
    engine: EngineSettings,
    progress: Callable[[int, int, float], None] | None,
    after_epoch: Callable[[int], bool | None] | None,
    drift: DriftTerms | None = None,
) -> list[float]:
    """Train ``model`` in place, as ``loop.train`` does; it is on the CPU afterwards.

    Returns:
        The losses of the last epoch done, in the order of its bags.

    Raises:
        ConfigError: the settings do not go with DeepSpeed, or what ``loop.train`` raises.
        torch.OutOfMemoryError: a GPU's memory was not enough.
        TrainingProcessError: a process failed otherwise.
    """
    check(model, examples, settings, engine)
    if drift is not None:
        raise ConfigError(
            "DeepSpeed splits gradients among its processes, where neither FedProx nor SCAFFOLD reaches them",
            remedy=_REMEDY,
        )
    model.to("cpu")
    threads = max(1, torch.get_num_threads() // engine.processes)
    job = Job(
        model,
        examples,
        settings,
        seed,
        span,
        device.type,
        engine,
        threads,
        _memory_share(device),
        after_epoch is not None,
    )
    state = changing(model)
    with ExitStack() as stack:
        result, given = (stack.enter_context(_memory_file(name)) for name in ("result", "job"))
        learned = views(result, state)
        for name, tensor in learned.items():
            tensor.copy_(state[name].detach())  # what nobody trains stays so
        start = _packed(job, given)

        def take() -> None:
            for name, tensor in learned.items():
                state[name].copy_(tensor)

        processes = stack.enter_context(_started(job, given, start, result))
        with torch.no_grad():
            losses = _follow(processes, take=take, progress=progress, after_epoch=after_epoch)
            take()
    model.eval()
    return losses


def check(model: BagModel, examples: Sequence[Example], settings: TrainSettings, engine: EngineSettings) -> None:
    """Raise ConfigError for what DeepSpeed cannot do, or would do wrong."""
    several = engine.processes > 1
    if settings.accumulate_bags % engine.processes:
        raise ConfigError(
            f"training.accumulate_bags is {settings.accumulate_bags}, which {engine.processes} processes cannot share "
            "evenly",
            remedy=f"set accumulate_bags in federation.toml to a multiple of {engine.processes}, or "
            "compute.deepspeed.processes in site.toml to a divisor of it",
        )
    if engine.zero_stage == 0 and settings.precision == "bfloat16":
        raise ConfigError(
            "DeepSpeed's stage 0 trains in float32 only, and the precision here is bfloat16",
            remedy='set compute.deepspeed.zero_stage = 1, or compute.precision = "float32"',
        )
    if engine.zero_stage >= 2 and several and len({model.trained_groups(example.bag) for example in examples}) > 1:
        raise ConfigError(
            f"some patients have clinical data and some do not: with {engine.processes} processes, DeepSpeed's stage "
            f"{engine.zero_stage} needs bags that train the same parameters",
            remedy="set compute.deepspeed.zero_stage = 1, or processes = 1",
        )
    if engine.zero_stage == 3 and several and all(example.bag.pixels_NHWC is not None for example in examples):
        sizes = sorted({len(example.bag) for example in examples})
        if len(sizes) > 1:
            raise ConfigError(
                f"DeepSpeed's stage 3 needs slides with the same number of patches for {engine.processes} processes, "
                f"and here they have {sizes[0]} to {sizes[-1]}",
                remedy="set compute.deepspeed.zero_stage = 2, or processes = 1",
            )


def _packed(job: Job, given: int) -> int:
    try:
        return pack(job, given)
    except Exception as error:  # pickle raises whatever an object's own methods do
        raise ConfigError(
            f"the model ({type(job.model).__name__}) cannot be handed to a process of its own: {error}",
            remedy=_REMEDY + "; or make the model picklable",
        ) from error


@contextmanager
def _memory_file(name: str) -> Iterator[int]:
    file = memory_file(name)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _started(job: Job, given: int, start: int, result: int) -> Iterator[list[_Process]]:
    """Start the processes; end them all afterwards, whatever happens."""
    processes: list[_Process] = []
    with ExitStack() as stack:
        meeting = stack.enter_context(_memory_file("meeting"))
        if job.device == "cuda":
            torch.cuda.empty_cache()  # what this process no longer uses of the GPU is theirs
        try:
            for rank in range(job.engine.processes):
                reading, writing = os.pipe()
                messages = stack.enter_context(os.fdopen(reading, "rb"))
                log = stack.enter_context(tempfile.TemporaryFile())
                numbers = map(str, (given, start, result, meeting, writing))
                try:
                    popen = subprocess.Popen(
                        [sys.executable, "-P", "-m", "fedpath.core.training.engines.process", *numbers],
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=log,
                        env=_environment(job, rank),
                        pass_fds=(given, result, meeting, writing),
                        # Ctrl-C is for this process, which ends them.
                        start_new_session=True,
                    )
                finally:
                    os.close(writing)
                processes.append(_Process(rank, popen, messages, log))
            yield processes
        finally:
            for process in processes:
                process.popen.kill()
                process.popen.wait()
                if process.popen.stdin is not None:
                    process.popen.stdin.close()


def _environment(job: Job, rank: int) -> dict[str, str]:
    """Return what DeepSpeed wants to know before it is imported; the processes talk over loopback only."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job.engine.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",  # asked for, not used: they meet in a memory file
        "DS_ACCELERATOR": job.device,
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": str(job.threads),
    }


def _follow(
    processes: list[_Process],
    *,
    take: Callable[[], None],
    progress: Callable[[int, int, float], None] | None,
    after_epoch: Callable[[int], bool | None] | None,
) -> list[float]:
    """Pass on what process 0 says, until all have ended; return the last epoch's losses."""
    losses: list[float] | None = None
    troubles: list[tuple[int, Exception]] = []
    until: float | None = None
    with selectors.DefaultSelector() as selector:
        for process in processes:
            selector.register(process.messages, selectors.EVENT_READ, process)
        while selector.get_map() and (until is None or time.monotonic() < until):
            for key, _ in selector.select(None if until is None else max(0.0, until - time.monotonic())):
                process = key.data
                said = process.lines()
                if said is None:
                    selector.unregister(process.messages)
                    troubles += _end_of(process)
                for message in said or []:
                    match message:
                        case {"bag": [done, total, loss]} if progress is not None:
                            progress(done, total, loss)
                        case {"epoch": epoch} if after_epoch is not None:
                            take()
                            _answer(processes, stop=bool(after_epoch(epoch)))
                        case {"losses": finished}:
                            losses = finished
                        case {"error": [kind, text, remedy]}:
                            troubles.append(_named(process, len(processes), kind, text, remedy))
                if until is None and (troubles or losses is not None):
                    until = time.monotonic() + _GRACE_S
    if troubles:
        raise min(troubles, key=lambda trouble: trouble[0])[1]
    if losses is None:
        raise TrainingProcessError("DeepSpeed's processes ended without a result", remedy=_REMEDY)
    return losses


def _answer(processes: list[_Process], *, stop: bool) -> None:
    for process in processes:
        if process.popen.stdin is not None:
            process.popen.stdin.write(b"stop\n" if stop else b"go on\n")
            process.popen.stdin.flush()


def _named(process: _Process, of: int, kind: str, text: str, remedy: str) -> tuple[int, Exception]:
    """Return an error that a process told, and how little it tells: what one raises first, others follow from."""
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, FedpathError):
        return 0, known(text, remedy=remedy)
    if kind == "OutOfMemoryError":
        return 0, torch.OutOfMemoryError(text)
    error = TrainingProcessError(
        f"DeepSpeed's process {process.rank + 1} of {of} failed with {kind}: {text}", remedy=_REMEDY
    )
    error.add_note(_last_lines(process, 40))
    return 2, error


def _end_of(process: _Process) -> list[tuple[int, Exception]]:
    """Return what is wrong with the end of a process, if anything is and it did not say so itself."""
    try:
        code = process.popen.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        return []
    if code in (0, 1):  # 1: it told
        return []
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    last = _last_lines(process, 1)
    error = TrainingProcessError(
        f"DeepSpeed's process {process.rank + 1} {how}" + (f"; its last line: {last}" if last else ""),
        remedy="SIGKILL often means that the machine's memory was not enough: fewer processes or a smaller model need "
        "less" if code == -signal.SIGKILL else _REMEDY,
        how=how,
    )  # fmt: skip
    error.add_note(_last_lines(process, 40))
    return [(1, error)]


def _last_lines(process: _Process, count: int) -> str:
    """Return the last lines of what a process printed."""
    size = process.log.seek(0, os.SEEK_END)
    process.log.seek(max(0, size - 2**14))
    lines = process.log.read().decode(errors="replace").splitlines()
    return "\n".join([line.strip() for line in lines if line.strip()][-count:])


def _memory_share(device: torch.device) -> float:
    """Return the share of the GPU's memory that this process may take; those that it starts inherit the cap."""
    if device.type != "cuda" or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return 1.0
    return float(torch.cuda.get_per_process_memory_fraction(device))
