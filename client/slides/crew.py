"""Slides encoded by several processes, each with a device of its own: Ray actors, here or on a cluster.

A desk hands out slides and collects results. A worker that dies is replaced; the slides it held are tried once more,
each alone, so that one that brings its worker down is found and set apart, and no other.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fedpath.client.slides.encoders import Encoder
from fedpath.client.slides.outcome import Quarantined, SlideResult
from fedpath.client.slides.prepare import Job
from fedpath.client.slides.settings import EncodeSettings
from fedpath.client.slides.work import Tell, encode_slides
from fedpath.core.cluster import connected
from fedpath.core.errors import ConfigError, DataError, FedpathError
from fedpath.core.monitoring.children import tell as tell_daemon

_MOST_TRIES = 2
_MOST_FALSE_STARTS = 3
_TELL_EVERY_S = 0.3
_Outcome = SlideResult | Quarantined


@dataclass(frozen=True, slots=True)
class Crew:
    """Who encodes."""

    address: str
    """Of a Ray cluster whose machines see the same folders under the same names; "local": Ray is started here."""
    workers: int
    device: str
    """Of each worker: "cpu", or "cuda" for a GPU of its own."""


def encode_by_crew(
    crew: Crew, jobs: Sequence[Job], encoder: str, weights: Path | None, settings: EncodeSettings, tell: Tell
) -> Iterator[tuple[Job, _Outcome]]:
    """As `work.encode_slides`, in any order.

    Raises:
        ConfigError: Ray is not installed, not reachable, or has too few GPUs.
        DataError: as ``encode_slides``, or workers die as soon as they start.
        OSError: as ``encode_slides``.
    """
    # Workers have folders of their own to start from.
    jobs = [replace(job, path=job.path.absolute(), out=job.out.absolute()) for job in jobs]
    weights = None if weights is None else weights.absolute()
    if settings.outlines is not None:
        settings = replace(settings, outlines=settings.outlines.absolute())
    with _connected(crew, settings) as ray:
        desk = ray.remote(_Desk).options(num_cpus=0).remote(jobs)
        gpus = int(crew.device == "cuda")
        hire = ray.remote(_Worker).options(num_cpus=settings.threads, num_gpus=gpus)
        # Each run with its worker's name, and the worker: Ray ends an actor to which no reference is left.
        runs: dict[Any, tuple[str, Any]] = {}

        def start(number: int) -> None:
            worker = hire.remote()
            name = f"worker-{number}"
            runs[worker.run.remote(desk, name, encoder, weights, crew.device, settings)] = (name, worker)

        started = min(crew.workers, len(jobs))
        for number in range(started):
            start(number)
        false_starts = 0
        while runs:
            ended, _ = ray.wait(list(runs), timeout=_TELL_EVERY_S)
            for run in ended:
                name, _ = runs.pop(run)
                if _ended_well(ray, run):
                    continue
                held = ray.get(desk.lost.remote(name))
                false_starts = 0 if held else false_starts + 1
                if false_starts >= _MOST_FALSE_STARTS:
                    raise DataError(
                        f"{false_starts} encoding processes in a row ended before they took a slide",
                        remedy="give fewer --workers or a smaller --batch if memory is short; see Ray's logs",
                    )
                start(started)
                started += 1
            doing, finished = ray.get(desk.news.remote())
            for job, done, total in doing:
                tell(job, done, total)
            yield from finished


def _ended_well(ray: Any, run: Any) -> bool:
    """Return whether a worker came to its end; what it raised is raised here, its death is not."""
    try:
        ray.get(run)
    except ray.exceptions.RayActorError:
        return False
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FedpathError | OSError):
            raise error.cause from None
        raise
    return True


@contextmanager
def _connected(crew: Crew, settings: EncodeSettings) -> Iterator[Any]:
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "several devices need Ray, which is not installed",
            remedy="install fedpath[ray], or use one device with --workers 1",
        ) from None
    with connected(crew.address, "--ray", num_cpus=crew.workers * settings.threads) as ray:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = int(resources.get("GPU", 0))
        if crew.device == "cuda" and gpus < crew.workers:
            raise ConfigError(
                f"{crew.workers} workers need a GPU each, Ray has {gpus}",
                remedy=f"give --workers {gpus}" if gpus else "give --device cpu",
            )
        yield ray


class _Desk:
    """Hands out slides and collects what became of them; an actor."""

    def __init__(self, jobs: list[Job]) -> None:
        self._waiting, self._suspects = deque(jobs), deque[Job]()
        self._held: dict[str, list[Job]] = {}
        self._tries: Counter[Job] = Counter()
        self._doing: dict[Job, tuple[int, int]] = {}
        self._finished: list[tuple[Job, _Outcome]] = []

    def next(self, worker: str) -> Job | Literal["wait"] | None:
        """Return a slide for a worker; "wait": it is to ask again; None: nothing is left."""
        held = self._held.setdefault(worker, [])
        if any(self._tries[job] for job in held):
            return "wait"  # it is to stay alone with what may bring it down
        if self._waiting:
            job = self._waiting.popleft()
        elif self._suspects:
            if held:
                return "wait"
            job = self._suspects.popleft()
        else:
            return None
        held.append(job)
        return job

    def tell(self, job: Job, done: int, total: int) -> None:
        """Note how far a slide is."""
        self._doing[job] = done, total

    def finished(self, worker: str, job: Job, outcome: _Outcome) -> None:
        """Note what became of a slide."""
        self._held[worker].remove(job)
        self._finished.append((job, outcome))

    def lost(self, worker: str) -> int:
        """Take back the slides of a worker that died; return how many."""
        held = self._held.pop(worker, [])
        for job in held:
            self._tries[job] += 1
            if self._tries[job] < _MOST_TRIES:
                self._suspects.append(job)
            else:
                reason = f"{job.path}: its process died twice while encoding it"
                remedy = "copy it again; if it stays so, it is damaged in a way the decoders do not survive"
                self._finished.append((job, Quarantined(job.slide_id, str(job.path), reason, remedy)))
        return len(held)

    def news(self) -> tuple[list[tuple[Job, int, int]], list[tuple[Job, _Outcome]]]:
        """Return how far slides are and what became of others, since the last time."""
        doing = [(job, done, total) for job, (done, total) in self._doing.items()]
        finished, self._finished = self._finished, []
        self._doing.clear()
        return doing, finished


class _Worker:
    """Encodes slides on one device; an actor."""

    def run(
        self, desk: Any, name: str, encoder: str, weights: Path | None, device: str, settings: EncodeSettings
    ) -> None:
        """Work until nothing is left."""
        import ray

        ready = Encoder(encoder, weights, device=device)
        told = 0.0

        def tell(job: Job, done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told > _TELL_EVERY_S:
                told = time.monotonic()
                desk.tell.remote(job, done, total)

        def jobs() -> Iterator[Job]:
            while (job := ray.get(desk.next.remote(name))) is not None:
                if isinstance(job, Job):
                    yield job
                else:
                    time.sleep(_TELL_EVERY_S)

        bad = 0
        for job, outcome in encode_slides(jobs(), ready, settings, tell):
            if isinstance(outcome, Quarantined):
                bad += 1
                tell_daemon("encoder", bad_slides=bad)
            ray.get(desk.finished.remote(name, job, outcome))
