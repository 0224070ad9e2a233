"""Pixels of the chosen patches: read once from the slides, kept in files that training maps into memory.

``<folder>/<slide_id>/<key>.npy`` holds uint8 RGB (R × H × W × C). The key is a hash of all that decides the pixels:
the slide's bytes, resolution and patch size, coordinates. Another choice of patches is another file, and is read again.
Beside it ``<key>.json`` names the patches that could not be read. It is written first: where the pixels are, it is too.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import disk_usage

import numpy as np
import torch
from numpy.typing import NDArray

from fedpath.client.slides.reader import Slide, UnreadableError
from fedpath.client.tuning.choose import with_patches
from fedpath.client.tuning.originals import check_unchanged
from fedpath.core.bags.store import FeatureMeta
from fedpath.core.cohort.examples import Example
from fedpath.core.errors import DataError
from fedpath.core.files import replacing, write_json

_SAME_MPP = 1e-3
"""Relative difference up to which two statements of a slide's µm/px are one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where a slide's pixels come from."""

    path: Path
    meta: FeatureMeta
    """Of the slide's feature file: the patches are the very ones that its features were made from."""
    slide_mpp: float | None = None
    """µm/px of level 0 by site.toml, for slides that state none; by default as when they were encoded."""

    @property
    def patch_px(self) -> int:
        """Edge of a patch."""
        return self.meta.patch_px or 0


@dataclasses.dataclass(frozen=True, slots=True)
class ReadPatches:
    """What became of the chosen patches of some slides."""

    examples: list[Example]
    """With pixels, in the order asked for."""
    size: int
    """Bytes on disk."""
    unreadable: int
    """Patches that are left out, in all."""


def read_patches(
    folder: Path,
    examples: Sequence[Example],
    sources: Mapping[str, Source],
    progress: Callable[[int, int, int], None] | None = None,
) -> ReadPatches:
    """Return the examples with the pixels of their patches.

    Args:
        folder: where they are kept.
        examples: each bag holds the chosen patches only.
        sources: by slide_id.
        progress: told slides done, slides in all, and bytes on disk so far; after each slide.

    Raises:
        DataError: a slide has changed, cannot be read, or none of its patches can; or the disk is too small. What was
            read before stays, and is not read again.
    """
    _check_room(folder, examples, sources)
    done: list[Example] = []
    size = unreadable = 0
    for example in examples:
        file, failed = _kept(folder / example.slide_id, example, sources[example.slide_id])
        pixels_RHWC = np.load(file, mmap_mode="c")  # copy on write: torch takes no read-only array, the file stays
        readable = [place for place in range(len(example.bag)) if place not in failed]
        readable_example = with_patches(example, torch.tensor(readable))
        bag = dataclasses.replace(readable_example.bag, pixels_NHWC=torch.from_numpy(pixels_RHWC))
        done.append(dataclasses.replace(readable_example, bag=bag))
        size, unreadable = size + file.stat().st_size, unreadable + len(failed)
        if progress is not None:
            progress(len(done), len(examples), size)
    return ReadPatches(done, size, unreadable)


def _kept(folder: Path, example: Example, source: Source) -> tuple[Path, set[int]]:
    """Return the file with a slide's pixels, read now if need be, and the places of the patches it lacks."""
    corners_K2 = example.bag.coords_N2.numpy()
    target, note = _files(folder, corners_K2, source)
    if not target.is_file():
        check_unchanged(source.path, source.meta)
        for other in folder.glob("*"):
            other.unlink()  # of another choice of patches
        read_K, pixels_RHWC = _read(corners_K2, source)
        write_json(note, {"unreadable": np.flatnonzero(~read_K).tolist()})
        with replacing(target) as temporary, temporary.open("wb") as file:
            np.save(file, pixels_RHWC)
    return target, set(json.loads(note.read_text())["unreadable"])


def _files(folder: Path, corners_K2: NDArray[np.int64], source: Source) -> tuple[Path, Path]:
    """Return the names of a slide's pixels and of the note beside them."""
    meta = source.meta
    digest = hashlib.sha256(f"{meta.slide_sha256} {meta.mpp!r} {meta.patch_px} {source.slide_mpp!r}\n".encode())
    digest.update(np.ascontiguousarray(corners_K2, "<i8").tobytes())
    key = digest.hexdigest()[:32]
    return folder / f"{key}.npy", folder / f"{key}.json"


def _read(corners_K2: NDArray[np.int64], source: Source) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Return which patches could be read, and their pixels, as they were when the slide was encoded."""
    meta, edge = source.meta, source.patch_px
    read_K = np.zeros(len(corners_K2), np.bool_)
    pixels_KHWC = np.empty((len(corners_K2), edge, edge, 3), np.uint8)
    stated = source.slide_mpp if source.slide_mpp is not None else meta.mpp_level0
    with Slide(source.path, slide_mpp=stated) as slide:
        if meta.mpp_level0 is not None and abs(slide.mpp - meta.mpp_level0) > _SAME_MPP * meta.mpp_level0:
            raise DataError(
                f"{source.path}: slide '{meta.slide_id}' was encoded with {meta.mpp_level0:g} µm/px at level 0, "
                f"now it has {slide.mpp:g}",
                remedy="correct slides.mpp in site.toml",
            )
        for place, (x, y) in enumerate(corners_K2.tolist()):
            try:
                pixels_KHWC[place] = slide.read(x, y, mpp=meta.mpp or slide.mpp, size=edge)
            except UnreadableError:
                continue
            read_K[place] = True
    if not read_K.any():
        raise DataError(
            f"{source.path}: none of the {len(read_K)} chosen patches of slide '{meta.slide_id}' can be read",
            remedy="copy the slide again from the scanner, or take it out of the manifest",
        )
    return read_K, pixels_KHWC if read_K.all() else pixels_KHWC[read_K]


def _check_room(folder: Path, examples: Sequence[Example], sources: Mapping[str, Source]) -> None:
    """Say before hours of reading that the disk is too small for what is still to be read."""
    missing = 0
    for example in examples:
        source = sources[example.slide_id]
        target, _ = _files(folder / example.slide_id, example.bag.coords_N2.numpy(), source)
        missing += 0 if target.is_file() else len(example.bag) * source.patch_px**2 * 3
    folder.mkdir(parents=True, exist_ok=True)
    free = disk_usage(folder).free
    if missing > free:
        raise DataError(
            f"{folder}: the pixels of the chosen patches need {missing / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB",
            remedy="free the space, or let 'state' of site.toml lie on a larger disk",
        )
