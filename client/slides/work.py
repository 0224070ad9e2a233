"""Slides encoded one after the other on one device."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fedpath.client.slides.encoders import EncoderFacts
from fedpath.client.slides.outcome import Quarantined, SlideResult
from fedpath.client.slides.prepare import Job, prepare
from fedpath.client.slides.read_ahead import ReadAhead, Reading
from fedpath.client.slides.settings import EncodeSettings
from fedpath.core.bags import write_features
from fedpath.core.errors import DataError
from fedpath.core.monitoring.children import tell as tell_daemon

_ENCODED = itertools.count(1)
"""Slides that this process has encoded."""
Tell = Callable[[Job, int, int], None]
"""Called with a slide, its patches that are done, and all of them (0 while it is prepared)."""


class PatchesToFeatures(Protocol):
    """What is needed of an encoder."""

    info: EncoderFacts

    def encode(self, patches_BHWC: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Return features (B×D)."""


def encode_slides(
    jobs: Iterator[Job], encoder: PatchesToFeatures, settings: EncodeSettings, tell: Tell
) -> Iterator[tuple[Job, SlideResult | Quarantined]]:
    """Encode slides and yield what became of each; a result without ``seconds`` was there already.

    Raises:
        DataError: the encoder's features are no numbers that can be stored.
        OSError: the feature files cannot be written.
    """
    with (
        _threads(settings.threads),
        ReadAhead(jobs, partial(prepare, settings=settings, encoder=encoder.info), settings) as ahead,
    ):
        for job, found in ahead:
            tell(job, 0, 0)
            outcome = _encode(job, found, encoder, settings, tell) if isinstance(found, Reading) else found
            if isinstance(outcome, SlideResult) and outcome.seconds is not None:
                tell_daemon("encoder", slides=next(_ENCODED))
            yield job, _quarantined(job, outcome) if isinstance(outcome, DataError) else outcome


def _encode(
    job: Job, reading: Reading, encoder: PatchesToFeatures, settings: EncodeSettings, tell: Tell
) -> SlideResult | DataError:
    corners_N2, meta = reading.prepared.corners_N2, reading.prepared.meta
    total, done, failed = len(corners_N2), 0, 0
    features: list[NDArray[np.float16]] = []
    read: list[NDArray[np.bool_]] = []
    batches = reading.batches()
    while True:
        try:
            patches_RHWC, read_B = next(batches)
        except StopIteration:
            break
        except DataError as error:  # the slide's; the encoder's would end the run
            return error
        done, failed = done + len(read_B), failed + int(np.count_nonzero(~read_B))
        if failed > settings.max_failed * total:
            return DataError(
                f"{job.path}: {failed} of {done} patches cannot be read, more than {settings.max_failed:.0%} of its "
                f"{total}",
                remedy="copy it again from the scanner",
            )
        if len(patches_RHWC):
            features.append(encoder.encode(patches_RHWC))
        read.append(read_B)
        tell(job, done, total)
    read_N = np.concatenate(read)
    features_ND = np.concatenate([np.empty((0, encoder.info.width), np.float16), *features])
    meta = replace(meta, failed_tiles=failed)
    write_features(job.target, features_ND, corners_N2[read_N], meta, failed_F2=corners_N2[~read_N])
    seconds = time.monotonic() - reading.prepared.started
    return SlideResult(job.slide_id, len(features_ND), failed, reading.prepared.slide.mpp, seconds, meta.tissue)


def _quarantined(job: Job, error: DataError) -> Quarantined:
    return Quarantined(job.slide_id, str(job.path), error.message, error.remedy)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Give the encoder its threads; patches are read by threads of their own, which need no more below them."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
