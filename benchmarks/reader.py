"""Reading patches: fedpath beside OpenSlide and beside decoding alone, in patches per second of processor time.

The slide is drawn here: coloured noise of many scales, 8192² pixels (--quick: 4096²) as a pyramid of JPEG tiles of
256 px, quality 75, as scanners store it, and again in JPEG 2000, a quarter as wide. Patches of 256 px are read row by
row, on the grid of the tiles (`aligned`), half a tile beside it (`offset`) and from tiles of 240 px (`other_tiles`).
OpenSlide is asked for the same regions and gives the same RGB arrays, by read_region(…).convert("RGB") as the peers do;
`raw_decode` decodes the aligned tiles' bytes, all in memory, into one buffer, and does nothing else. At 20x from a 40x
slide without smaller levels, fedpath's area mean stands beside OpenSlide with Pillow's bicubic. The real slide is
../shared/data's, if it is there. Every walk opens its slide anew, so that no tile is decoded already; opening is not
counted. All take turns; ratios are medians over the turns.
`max_pixel_difference` is over every pixel of all those walks at native scale.

`python reader.py [--quick] [--write]`
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import cv2
import imagecodecs
import numpy as np
import openslide
import tifffile
from _common import machine, report, shared_data, take_turns_timed, write_block
from numpy.typing import NDArray
from PIL import Image

from fedpath.client.slides.reader import Slide

_PAGE = Path(__file__).parents[1] / "docs" / "reading.md"
_EDGE, _QUALITY, _MPP = 256, 75, 0.25
_BARS = {
    "aligned_vs_openslide": "≥ 5",
    "offset_vs_openslide": "≥ 4",
    "aligned_vs_raw_decode": "≥ 0.65",
    "max_pixel_difference": "0",
}
_ROWS = {
    "aligned": "JPEG, on the grid of the tiles",
    "offset": "JPEG, half a tile beside it",
    "other_tiles": "JPEG, tiles of 240 px",
    "jpeg2000": "JPEG 2000, on the grid",
    "half": "JPEG, 20x from 40x",
    "real": "a real slide (JPEG, tiles of 240 px)",
    "real_half": "the same, at half its scale",
}


class _Walk:
    """Patches of one slide, read row by row in several ways."""

    def __init__(self, path: Path, *, shift: int = 0, shrink: int = 1, edge: int = _EDGE) -> None:
        self.path, self.shrink, self.edge = path, shrink, edge
        with openslide.OpenSlide(path) as slide:
            width, height = slide.dimensions
        step = edge * shrink
        columns, rows = range(shift, width - step + 1, step), range(shift, height - step + 1, step)
        self.places = [(x, y) for y in rows for x in columns]

    def ours(self) -> float:
        with Slide(self.path) as slide:
            assert slide.native, slide.why_openslide
            started = time.process_time()
            for _ in self.patches(slide):
                pass
            return (time.process_time() - started) / len(self.places)

    def ours_by_threads(self, threads: int) -> float:
        with Slide(self.path) as slide, ThreadPoolExecutor(threads) as pool:
            started = time.perf_counter()
            for _ in pool.map(lambda at: slide.read(*at, mpp=slide.mpp * self.shrink, size=self.edge), self.places):
                pass
            return (time.perf_counter() - started) / len(self.places)

    def openslides(self) -> float:
        with openslide.OpenSlide(self.path) as slide:
            started = time.process_time()
            for at in self.places:
                size = (self.edge * self.shrink, self.edge * self.shrink)
                region = slide.read_region(at, 0, size).convert("RGB")
                if self.shrink > 1:
                    region = region.resize((self.edge, self.edge), Image.Resampling.BICUBIC)
                np.asarray(region)
            return (time.process_time() - started) / len(self.places)

    def patches(self, slide: Slide) -> Iterator[NDArray[np.uint8]]:
        return (slide.read(*at, mpp=slide.mpp * self.shrink, size=self.edge) for at in self.places)

    def largest_difference(self) -> int:
        with Slide(self.path) as mine, openslide.OpenSlide(self.path) as theirs:
            return max(
                int(cv2.absdiff(patch, np.asarray(theirs.read_region(at, 0, (self.edge,) * 2))[..., :3].copy()).max())
                for at, patch in zip(self.places, self.patches(mine), strict=True)
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller slide, fewer turns")
    parser.add_argument("--write", action="store_true", help="write the table into docs/reading.md")
    arguments = parser.parse_args()
    edge, turns = (4096, 3) if arguments.quick else (8192, 7)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        walks, raw = _walks(Path(folder), edge)
        tasks: dict[str, Callable[[], float]] = {"raw_decode": partial(_decode_all, raw)}
        for name, walk in walks.items():
            tasks |= {name: walk.ours, f"{name}_openslide": walk.openslides}
        tasks |= {f"threads_{n}": partial(walks["aligned"].ours_by_threads, n) for n in (1, 2)}
        seconds = take_turns_timed(tasks, turns)
        difference = max(walk.largest_difference() for walk in walks.values() if walk.shrink == 1)
    figures = {f"{name}_per_s": 1 / median(times) for name, times in seconds.items()}
    figures["max_pixel_difference"] = difference
    ratios = {f"{name}_vs_openslide": _ratio(seconds[f"{name}_openslide"], seconds[name]) for name in walks}
    ratios["aligned_vs_raw_decode"] = _ratio(seconds["raw_decode"], seconds["aligned"])
    ratios["two_threads_vs_one"] = _ratio(seconds["threads_1"], seconds["threads_2"])
    report("reader", figures, ratios, _BARS, quick=arguments.quick)
    if arguments.write:
        _write_page(figures, ratios)


def _walks(folder: Path, edge: int) -> tuple[dict[str, _Walk], list[tuple[bytes, bytes]]]:
    """Write the slides; return how they are read, and tiles with their tables for decoding alone."""
    picture_HW3 = _picture(edge)
    files = {name: folder / name for name in ("jpeg.tif", "other.tif", "single.tif", "jpeg2000.svs")}
    _write(files["jpeg.tif"], picture_HW3, 256, levels=3)
    _write(files["other.tif"], picture_HW3, 240, levels=3)
    _write(files["single.tif"], picture_HW3, 256, levels=1)
    _write_jpeg2000(files["jpeg2000.svs"], picture_HW3[: edge // 4, : edge // 4])
    walks = {
        "aligned": _Walk(files["jpeg.tif"]),
        "offset": _Walk(files["jpeg.tif"], shift=128),
        "other_tiles": _Walk(files["other.tif"]),
        "jpeg2000": _Walk(files["jpeg2000.svs"]),
        "half": _Walk(files["single.tif"], shrink=2),
    }
    real = shared_data() / "slides" / "CMU-1-Small-Region.svs"
    if real.is_file():
        walks |= {"real": _Walk(real), "real_half": _Walk(real, shrink=2)}
    with tifffile.TiffFile(files["jpeg.tif"]) as tiff:
        page = tiff.pages.first
        raw = [
            (tiff.filehandle.read_array("u1", size, offset=at).tobytes(), page.jpegtables or b"")
            for at, size in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
    return walks, raw


def _decode_all(raw: list[tuple[bytes, bytes]]) -> float:
    # Beside a multiple of 32 bytes, where libjpeg-turbo is at its fastest.
    memory = np.empty(_EDGE**2 * 3 + 32, np.uint8)
    start = (16 - memory.ctypes.data) % 32
    buffer_HW3 = memory[start : start + _EDGE**2 * 3].reshape(_EDGE, _EDGE, 3)
    started = time.process_time()
    for tile, tables in raw:
        imagecodecs.jpeg8_decode(tile, tables=tables or None, out=buffer_HW3)
    return (time.process_time() - started) / len(raw)


def _picture(edge: int) -> NDArray[np.uint8]:
    """Return H × W × 3: noise of many scales in eosin and haematoxylin's range."""
    random = np.random.default_rng(0)
    mixed_HW3 = np.zeros((edge, edge, 3), np.float32)
    for step, strength in ((128, 25), (32, 15), (8, 12), (3, 13)):
        coarse = random.normal(0, strength, (edge // step + 2, edge // step + 2, 1)).astype(np.float32)
        tint = np.array((0.7, 1, 0.6), np.float32)
        mixed_HW3 += cv2.resize(coarse, (edge, edge), interpolation=cv2.INTER_CUBIC)[..., None] * tint
    return np.clip(mixed_HW3 + np.array((200, 140, 180), np.float32), 0, 255).astype(np.uint8)


def _write(path: Path, picture_HW3: NDArray[np.uint8], tile: int, levels: int) -> None:
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            level_HW3 = picture_HW3
            for _ in range(level):
                size = level_HW3.shape[1] // 2, level_HW3.shape[0] // 2
                level_HW3 = cv2.resize(level_HW3, size, interpolation=cv2.INTER_AREA)
            tiff.write(
                level_HW3,
                tile=(tile, tile),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": _QUALITY},
                subsampling=(2, 2),
                subfiletype=int(level > 0),
                resolution=(10_000 / (_MPP * 2**level),) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def _write_jpeg2000(path: Path, picture_HW3: NDArray[np.uint8]) -> None:
    height, width = picture_HW3.shape[:2]
    corners = [(y, x) for y in range(0, height, _EDGE) for x in range(0, width, _EDGE)]
    tiles = (np.ascontiguousarray(picture_HW3[y : y + _EDGE, x : x + _EDGE]) for y, x in corners)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            (imagecodecs.jpeg2k_encode(tile, level=40, codecformat="j2k", mct=True) for tile in tiles),
            shape=(height, width, 3),
            dtype=np.uint8,
            tile=(_EDGE, _EDGE),
            photometric="rgb",
            compression=33005,
            description=f"Aperio Image Library\r\n{width}x{height}|AppMag = 40|MPP = {_MPP}",
            metadata=None,
        )


def _ratio(slower: list[float], faster: list[float]) -> float:
    return median(a / b for a, b in zip(slower, faster, strict=True))


def _write_page(figures: Mapping[str, float], ratios: Mapping[str, float]) -> None:
    rows = [[f"patches of 256 px; {machine()}", "OpenSlide, a CPU-second", "fedpath", "ratio"]]
    for name, words in _ROWS.items():
        if f"{name}_per_s" in figures:
            theirs, ours = figures[f"{name}_openslide_per_s"], figures[f"{name}_per_s"]
            rows.append([words, f"{theirs:,.0f}", f"{ours:,.0f}", f"{ratios[f'{name}_vs_openslide']:.1f}"])
    raw, share = figures["raw_decode_per_s"], ratios["aligned_vs_raw_decode"]
    rows.append(["decoding alone, on the grid", "", f"{raw:,.0f}", f"{share:.2f} of it"])
    rows.append(["largest difference of any pixel at native scale", "", f"{figures['max_pixel_difference']:.0f}", ""])
    write_block(_PAGE, "reader", rows)


if __name__ == "__main__":
    main()
