"""Encode a folder of slides: one feature file a slide, whole or absent, and an account of every slide.

A slide that cannot be encoded is quarantined with its reason and the run goes on. A slide is skipped only if its
feature file can be read and was made from the same bytes with the same settings: never because a file is there.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from fedpath.client.slides.crew import Crew, encode_by_crew
from fedpath.client.slides.encoders import Encoder
from fedpath.client.slides.folders import find_slides, only_run, set_aside
from fedpath.client.slides.outcome import EncodeProgress, EncodeReport, Quarantined, SlideResult
from fedpath.client.slides.page import write_page
from fedpath.client.slides.prepare import Job
from fedpath.client.slides.settings import EncodeSettings
from fedpath.client.slides.time_left import TimeLeft, size_of
from fedpath.client.slides.work import PatchesToFeatures, encode_slides
from fedpath.core.errors import ConfigError
from fedpath.core.files import write_json

REPORT = "encode_report.json"


def encode_folder(
    slides: Path,
    out: Path,
    settings: EncodeSettings,
    *,
    encoder: str,
    weights: Path | None = None,
    device: str = "cpu",
    crew: Crew | None = None,
    progress: Callable[[EncodeProgress], None] | None = None,
    only: Mapping[str, float | None] | None = None,
) -> EncodeReport:
    """Encode every slide below ``slides`` into ``out``/<slide_id>.h5, and a report (JSON, HTML) beside them.

    On one machine with the same device and number of threads the features are the same to the bit.

    Args:
        slides: a folder, searched with its subfolders, or a single slide.
        out: made if need be. One run at a time.
        settings: what is encoded, and how much at a time.
        encoder: a name in the registry.
        weights: the encoder's, where it comes without or was tuned.
        device: "cpu" or "cuda", where the encoder runs; a crew has its own.
        crew: several processes with a device each, in place of this one.
        progress: called often.
        only: the slides to encode, by slide_id, each with the µm/px of its level 0 in place of the settings'; by
            default all that are there.

    Raises:
        ConfigError: unknown encoder, a crew that cannot be had, another run is writing to ``out``, or nobody can.
        DataError: no slides there; the encoder's weights cannot be read or are not its own, or its features are no
            numbers that can be stored.
    """
    started = time.monotonic()
    ready = Encoder(encoder, weights, device="cpu" if crew is not None else device)
    ready.check_patch(settings.patch_px)
    found = find_slides(slides)
    paths = [path for path in found.slides if only is None or path.stem in only]
    jobs = [Job(path, out, settings.slide_mpp if only is None else only[path.stem]) for path in paths]
    with only_run(out), _writing(out):
        told = _Progress(jobs, progress)
        if crew is None:
            outcomes = encode_slides(iter(jobs), ready, settings, told)
        else:
            outcomes = encode_by_crew(crew, jobs, encoder, weights, settings, told)
        results: list[SlideResult] = []
        quarantined = [bad for bad in found.doubled if only is None or bad.slide_id in only]
        for job, outcome in outcomes:
            told.ended(job, outcome)
            if isinstance(outcome, SlideResult):
                results.append(outcome)
            else:
                quarantined.append(outcome)
        report = _report(out, results, quarantined, found.ignored, time.monotonic() - started)
        stated = _in_words(ready, settings)
        write_json(out / REPORT, {"settings": stated, **asdict(report)})
        write_page(out, report, stated)
    return report


def _report(
    out: Path,
    results: Sequence[SlideResult],
    quarantined: Sequence[Quarantined],
    ignored: Sequence[str],
    seconds: float,
) -> EncodeReport:
    """Return the account; earlier feature files of slides that now fail are moved out of training's sight."""
    in_order = sorted(results, key=lambda result: result.slide_id)
    aside = [
        Quarantined(bad.slide_id, bad.path, bad.reason, set_aside(out / f"{bad.slide_id}.h5", bad.remedy))
        for bad in sorted(quarantined, key=lambda bad: bad.slide_id)
    ]
    return EncodeReport(
        done=tuple(result for result in in_order if result.seconds is not None),
        skipped=tuple(result for result in in_order if result.seconds is None),
        quarantined=tuple(aside),
        ignored=tuple(ignored),
        seconds=seconds,
    )


def _in_words(encoder: PatchesToFeatures, settings: EncodeSettings) -> dict[str, object]:
    """Return the settings as the report has them."""
    outlines = None if settings.outlines is None else str(settings.outlines)
    return {"encoder": asdict(encoder.info), **asdict(settings), "outlines": outlines}


class _Progress:
    """Tells where the run is, and how long it will still take."""

    def __init__(self, jobs: Sequence[Job], progress: Callable[[EncodeProgress], None] | None) -> None:
        self._progress, self._total, self._ended = progress, len(jobs), 0
        # A slide that has gone since it was found is quarantined in its turn.
        self._left = TimeLeft({job.slide_id: size_of(job.path) if job.path.is_file() else 0 for job in jobs})

    def __call__(self, job: Job, done: int, total: int) -> None:
        now = time.monotonic()
        self._left.update(job.slide_id, done / total if total else 0.0, now)
        if self._progress is not None:
            left = self._left.left(now)
            self._progress(EncodeProgress(job.slide_id, self._ended, self._total, done, total, left))

    def ended(self, job: Job, outcome: SlideResult | Quarantined) -> None:
        self._ended += 1
        if isinstance(outcome, SlideResult) and outcome.seconds is not None:
            self._left.update(job.slide_id, 1.0, time.monotonic())
        else:
            self._left.no_work(job.slide_id)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn a failure to write, such as a full disk, into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{error.filename or out}: cannot be written: {error.strerror or error}",
            remedy="make room there, or choose another --out, and run the command again: finished slides are kept",
        ) from None
