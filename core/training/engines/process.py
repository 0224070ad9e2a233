"""One of the processes that train with DeepSpeed: what ``launch`` starts, with descriptors as arguments."""

import datetime
import json
import os
import queue
import resource
import sys
import threading
import traceback
from typing import Any

import torch
from torch import distributed
from torch._C._distributed_c10d import FileStore

from fedpath.core.errors import FedpathError
from fedpath.core.monitoring.children import tell as tell_daemon
from fedpath.core.training.engines.base import changing
from fedpath.core.training.engines.deepspeed_engine import DeepSpeedEngine
from fedpath.core.training.engines.handover import unpack, views
from fedpath.core.training.engines.launch import Job
from fedpath.core.training.loop import run

_PATIENCE = datetime.timedelta(minutes=30)
"""How long a process waits for the others: for the bag that takes longest."""


def main() -> None:
    """Carry out one job, and leave without the clean-up of libraries that hang in it."""
    given, start, result, meeting, said = map(int, sys.argv[1:])
    answers = _answers()
    rank = int(os.environ["RANK"])
    with os.fdopen(said, "w", encoding="utf-8") as messages:

        def tell(**message: Any) -> None:
            print(json.dumps(message), file=messages, flush=True)

        try:
            losses = _work(unpack(given, start), rank, result, meeting, tell, answers)
            if rank == 0:
                tell(losses=losses)
        except FedpathError as error:
            tell(error=[type(error).__name__, error.message, error.remedy])
            code = 1
        except Exception as error:  # noqa: BLE001 - every failure is told to the process that waits for it
            traceback.print_exc()
            tell(error=[type(error).__name__, (str(error).strip().splitlines() or [""])[0], ""])
            code = 1
        else:
            code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _work(job: Job, rank: int, result: int, meeting: int, tell: Any, answers: "queue.SimpleQueue[str]") -> list[float]:
    """Train, and let process 0 write the weights and tell how it goes; return the losses of the last epoch."""
    torch.set_num_threads(job.threads)
    device = torch.device(job.device, rank) if job.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_per_process_memory_fraction(job.memory_share, device)
    shared = views(result, changing(job.model))
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=FileStore(f"/proc/self/fd/{meeting}", job.engine.processes),
        rank=rank,
        world_size=job.engine.processes,
        timeout=_PATIENCE,
    )
    settings = job.settings
    if settings.precision == "auto":
        raise ValueError("the precision is chosen before")
    engine = DeepSpeedEngine(
        job.model, job.engine, weight_decay=settings.weight_decay, device=device, precision=settings.precision
    )

    def hand_in() -> None:
        for name, tensor in engine.state().items():
            if rank == 0 and name in shared:
                shared[name].copy_(tensor.view_as(shared[name]))

    def after_epoch(epoch: int) -> bool:
        hand_in()
        _tell_memory(rank, device)
        if rank == 0:
            tell(epoch=epoch)
        return answers.get() == "stop"

    def progress(done: int, total: int, loss: float) -> None:
        tell(bag=[done, total, loss])

    losses = run(
        engine,
        job.model,
        job.examples,
        settings,
        seed=job.seed,
        span=job.span,
        device=device,
        progress=progress if rank == 0 else None,
        after_epoch=after_epoch if job.ask_after_epoch else None,
    )
    with torch.no_grad():
        hand_in()
    _tell_memory(rank, device)
    return losses


def _tell_memory(rank: int, device: torch.device) -> None:
    """Tell the agent that this process works for how much memory it has held at most."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gpu = {}
    if device.type == "cuda":
        gpu = {"gpu": rank, "gpu_memory_bytes": torch.cuda.max_memory_allocated(device)}
    tell_daemon("trainer", rank=rank, memory_bytes=held, **gpu)


def _answers() -> "queue.SimpleQueue[str]":
    """Return what comes through stdin; when it ends, so does this process: nobody is there to train for."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line.strip())
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return lines


if __name__ == "__main__":
    main()
