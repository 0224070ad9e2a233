"""Slides for tests: drawn, and broken in particular ways."""

from pathlib import Path

import cv2
import numpy as np
import tifffile

from fedpath.client.slides.synthetic.draw import SIZE, draw_slide
from fedpath.client.slides.synthetic.hospital import write_slide
from fedpath.client.slides.synthetic.knobs import Difficulty
from fedpath.client.slides.synthetic.stain import colour, look_of


def drawn(seed: int = 0, look: int = 0) -> np.ndarray:
    """A positive slide at the drawing's resolution, RGB."""
    hospital = look_of(look)
    return colour(draw_slide(np.random.default_rng(seed), Difficulty(), hospital.mix, positive=True), hospital)


def small_slide(path: Path, mpp: float | None = 0.5, seed: int = 0) -> np.ndarray:
    """Write the middle of a drawn slide, 1024 pixels at 0.5 µm/px wide; return what was drawn."""
    image = np.ascontiguousarray(drawn(seed)[SIZE // 4 : 3 * SIZE // 4, SIZE // 4 : 3 * SIZE // 4])
    write_slide(path, image, mpp, levels=2)
    return image


def break_tile(path: Path, x: int, y: int) -> None:
    """Overwrite the JPEG header of the level-0 tile that holds pixel (x, y): OpenSlide cannot decode it."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        across = -(-page.imagewidth // page.tilewidth)
        offset = page.dataoffsets[(y // page.tilelength) * across + x // page.tilewidth]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 64)


def striped_tiff(path: Path) -> None:
    """A plain TIFF without tiles, as image programs write it; OpenSlide does not read these."""
    tifffile.imwrite(path, np.full((300, 300, 3), 200, np.uint8))


def blank(size: int = 600, seed: int = 0) -> np.ndarray:
    """Clean glass with a scanner's noise, at overview resolution."""
    noise = np.random.default_rng(seed).normal(scale=1.2, size=(size, size, 3))
    return np.clip(cv2.GaussianBlur(np.full((size, size, 3), (243.0, 241.0, 238.0)) + noise, (3, 3), 0), 0, 255).astype(
        np.uint8
    )
