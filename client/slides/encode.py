"""Encode a folder of slides: one feature file a slide, whole or absent, and an account of every slide.

A slide that cannot be encoded is quarantined with its reason and the run goes on. A slide is skipped only if its
feature file can be read and was made from the same bytes with the same settings: never because a file is there.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fedpath.client.slides.encoders import BATCH, Encoder
from fedpath.client.slides.folders import find_slides, only_run, set_aside
from fedpath.client.slides.outcome import EncodeProgress, EncodeReport, Quarantined, SlideResult
from fedpath.client.slides.outlines import tissue_of
from fedpath.client.slides.reader import Slide, UnreadableError, slide_sha256
from fedpath.client.slides.tiles import TileGrid
from fedpath.core.bags import FeatureMeta, read_bag, read_meta, write_features
from fedpath.core.errors import ConfigError, DataError
from fedpath.core.files import write_json

MIN_TISSUE = 0.25
"""A patch is encoded if at least this share of it is tissue."""
MOST_FAILED = 0.5
"""A slide with more than this share of unreadable patches is quarantined instead of encoded in part."""
REPORT = "encode_report.json"


@dataclass(frozen=True, slots=True)
class _Settings:
    mpp: float
    patch_px: int
    slide_mpp: float | None


def encode_folder(
    slides: Path,
    out: Path,
    *,
    encoder: str,
    mpp: float,
    patch_px: int,
    weights: Path | None = None,
    slide_mpp: float | None = None,
    threads: int = 1,
    device: str = "cpu",
    progress: Callable[[EncodeProgress], None] | None = None,
    only: Mapping[str, float | None] | None = None,
) -> EncodeReport:
    """Encode every slide below ``slides`` into ``out``/<slide_id>.h5, and write `encode_report.json` there.

    On one machine with the same device and number of threads the features are the same to the bit.

    Args:
        slides: a folder, searched with its subfolders, or a single slide.
        out: made if need be. One run at a time.
        encoder: a name in the registry.
        mpp: resolution of the patches, µm/px.
        patch_px: edge of a patch in pixels at ``mpp``.
        weights: the encoder's, where it comes without or was tuned.
        slide_mpp: µm/px of level 0 for slides that state none.
        threads: for the encoder.
        device: "cpu" or "cuda", where the encoder runs.
        progress: called often.
        only: the slides to encode, by slide_id, each with the µm/px of its level 0 in place of ``slide_mpp``; by
            default all that are there.

    Raises:
        ConfigError: unknown encoder, impossible settings, or another run is writing to ``out``.
        DataError: no slides there, or two of the same name; the encoder's weights cannot be read or are not its own, or
            its features are no numbers that can be stored.
    """
    settings = _checked(mpp, patch_px, slide_mpp, threads)
    encoding = Encoder(encoder, weights, device=device)
    encoding.check_patch(patch_px)
    paths, ignored = find_slides(slides)
    paths = [path for path in paths if only is None or path.stem in only]
    done: list[SlideResult] = []
    skipped: list[SlideResult] = []
    quarantined: list[Quarantined] = []
    with only_run(out), _threads(threads):
        for index, path in enumerate(paths):

            def tell(tiles_done: int, tiles_total: int, path: Path = path, index: int = index) -> None:
                if progress is not None:
                    progress(EncodeProgress(path.stem, index, len(paths), tiles_done, tiles_total))

            tell(0, 0)
            own = settings if only is None else replace(settings, slide_mpp=only[path.stem])
            try:
                result, fresh = _encode_slide(path, out / f"{path.stem}.h5", encoding, own, tell)
                (done if fresh else skipped).append(result)
            except DataError as error:
                remedy = set_aside(out / f"{path.stem}.h5", error.remedy)
                quarantined.append(Quarantined(path.stem, str(path), error.message, remedy))
        report = EncodeReport(tuple(done), tuple(skipped), tuple(quarantined), tuple(ignored))
        write_json(out / REPORT, {"settings": {"encoder": asdict(encoding.info), **asdict(settings)}, **asdict(report)})
    return report


def _encode_slide(
    path: Path, target: Path, encoder: Encoder, settings: _Settings, tell: Callable[[int, int], None]
) -> tuple[SlideResult, bool]:
    """Return the slide's result and whether it was encoded now (not skipped).

    Raises:
        DataError: the slide cannot be encoded.
    """
    with Slide(path, slide_mpp=settings.slide_mpp) as slide:
        grid = TileGrid.of(
            width=slide.width,
            height=slide.height,
            mpp_level0=slide.mpp,
            mpp=settings.mpp,
            patch_px=settings.patch_px,
        )
        tissue, method = tissue_of(slide, None)
        wanted = FeatureMeta(
            slide_id=slide.slide_id,
            encoder=encoder.info.name,
            encoder_sha256=encoder.info.sha256,
            mpp_level0=slide.mpp,
            mpp=settings.mpp,
            patch_px=settings.patch_px,
            patch_size_level0=grid.patch_size_level0,
            level0_width=slide.width,
            level0_height=slide.height,
            transform=encoder.info.transform,
            reader=slide.reader,
            slide_sha256=slide_sha256(path),
            failed_tiles=0,
            tissue=f"{method}; at least {MIN_TISSUE:g} of a patch",
        )
        whole = _already(target, wanted)
        if whole is not None:
            return whole, False
        slide.level_for(settings.mpp)
        corners_N2 = grid.corners_in(tissue, slide.mpp, MIN_TISSUE)
        if not len(corners_N2):
            raise DataError(
                f"{path}: no patch with tissue found", remedy="look at the slide; leave it out if it is blank"
            )
        features_ND, read_N = _encode_patches(slide, corners_N2, encoder, settings, tell)
    failed = int(np.count_nonzero(~read_N))
    if failed > MOST_FAILED * len(corners_N2):
        raise DataError(
            f"{path}: {failed} of {len(corners_N2)} patches cannot be read", remedy="copy it again from the scanner"
        )
    meta = _with_failed(wanted, failed)
    write_features(target, features_ND, corners_N2[read_N], meta, failed_F2=corners_N2[~read_N])
    return SlideResult(slide.slide_id, len(features_ND), failed, slide.mpp), True


def _encode_patches(
    slide: Slide, corners_N2: NDArray[np.int64], encoder: Encoder, settings: _Settings, tell: Callable[[int, int], None]
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Return features of the patches that could be read (row by row), and which of all those are."""
    read_N = np.zeros(len(corners_N2), np.bool_)
    features: list[NDArray[np.float16]] = []
    edge = settings.patch_px
    for start in range(0, len(corners_N2), BATCH):
        batch: list[NDArray[np.uint8]] = []
        for place, (x, y) in enumerate(corners_N2[start : start + BATCH].tolist(), start=start):
            try:
                batch.append(slide.read(x, y, mpp=settings.mpp, size=edge))
            except UnreadableError:
                continue
            read_N[place] = True
        if batch:
            features.append(encoder.encode(np.stack(batch)))
        tell(min(start + BATCH, len(corners_N2)), len(corners_N2))
    if not features:
        return np.empty((0, encoder.info.width), np.float16), read_N
    return np.concatenate(features), read_N


def _already(target: Path, wanted: FeatureMeta) -> SlideResult | None:
    """Return the result a readable feature file of the same slide and settings holds, else None.

    The reader may differ: a newer OpenSlide is no reason to encode an archive again.
    """
    try:
        found = read_meta(target)
        bag = read_bag(target)
    except DataError:
        return None
    if _with_failed(found, 0, wanted.reader) != wanted:
        return None
    return SlideResult(found.slide_id, len(bag), found.failed_tiles, wanted.mpp_level0 or 0.0)


def _with_failed(meta: FeatureMeta, failed: int, reader: str | None = None) -> FeatureMeta:
    return replace(meta, failed_tiles=failed, reader=reader if reader is not None else meta.reader)


def _checked(mpp: float, patch_px: int, slide_mpp: float | None, threads: int) -> _Settings:
    for name, value, least in (("--mpp", mpp, 0.05), ("--patch", patch_px, 16), ("--threads", threads, 1)):
        if not value >= least:
            raise ConfigError(f"{name} is {value}", remedy=f"give at least {least}")
    if slide_mpp is not None and not slide_mpp > 0:
        raise ConfigError(f"--slide-mpp is {slide_mpp}", remedy="give µm/px of level 0, for example 0.25")
    return _Settings(mpp, patch_px, slide_mpp)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
