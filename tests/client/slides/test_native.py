"""Native tiles show what OpenSlide shows, in every format, from many threads; where they do not, OpenSlide reads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import cv2
import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from shared_data import shared_data
from slide_files import break_tile
from slide_formats import FORMATS, Format, tissue_like, write_format

from fedpath.client.slides.native import BrokenTileError
from fedpath.client.slides.reader import Slide, UnreadableError
from fedpath.client.slides.scaled_jpeg import SCALES, decode, whole_stream
from fedpath.client.slides.tile_cache import TileCache
from fedpath.core.errors import DataError

WIDTH, HEIGHT = 1100, 900


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    return tissue_like(HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory, drawn: np.ndarray) -> dict[Format, Path]:
    folder = tmp_path_factory.mktemp("formats")
    paths = {how: folder / f"{how}.{'svs' if how.aperio else 'tif'}" for how in FORMATS}
    for how, path in paths.items():
        write_format(path, drawn, how)
    return paths


def by_openslide(path: Path, x: int, y: int, level: int, size: tuple[int, int]) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((x, y), level, size))[..., :3]


@pytest.mark.parametrize("how", FORMATS, ids=str)
def test_every_pixel_of_every_level_is_openslides(slides: dict[Format, Path], how: Format) -> None:
    random = np.random.default_rng(1)
    with Slide(slides[how]) as slide:
        assert (slide.native != "") != (slide.why_openslide != "")
        assert f"{how.tile}×{how.tile}" in slide.native
        assert slide.mpp == pytest.approx(how.mpp)
        assert len(slide.levels) == how.levels
        for number, level in enumerate(slide.levels):
            places = [(0, 0), (how.tile, how.tile // 2), (level.width - 70, level.height - 70)]
            places += random.integers(0, (level.width - 64, level.height - 64), (20, 2)).tolist()
            for x, y in places:
                for edge in (64, how.tile):
                    if max(x + edge - level.width, y + edge - level.height) > 0:
                        continue
                    corner = round(x * level.downsample), round(y * level.downsample)
                    mine = slide.read(*corner, mpp=level.mpp, size=edge)
                    assert np.array_equal(mine, by_openslide(slides[how], *corner, number, (edge, edge)))


@pytest.mark.parametrize("how", FORMATS, ids=str)
def test_colours_are_those_that_were_drawn(slides: dict[Format, Path], drawn: np.ndarray, how: Format) -> None:
    with Slide(slides[how]) as slide:
        patch = slide.read(100, 100, mpp=how.mpp, size=700)
    assert np.abs(patch.astype(int) - drawn[100:800, 100:800]).mean() < 8


@pytest.mark.parametrize("how", [how for how in FORMATS if "jpeg" in how.codec], ids=str)
def test_tiles_shrunk_while_decoding_are_near_the_area_mean(slides: dict[Format, Path], how: Format) -> None:
    with Slide(slides[how]) as slide:
        coarsest = slide.levels[-1]
        for factor in (2, 2.5, 4):
            size = int(min(coarsest.width, coarsest.height) / factor)
            mine = slide.read(0, 0, mpp=coarsest.mpp * factor, size=size)
            full = by_openslide(slides[how], 0, 0, how.levels - 1, (coarsest.width, coarsest.height))
            edge = round(size * factor)
            expected = cv2.resize(full[:edge, :edge], (size, size), interpolation=cv2.INTER_AREA)
            difference = mine.astype(int) - expected
            # Colours stored at half the resolution are interpolated for the whole tile and not for the half one, and
            # this picture's colours change from pixel to pixel, as no tissue's do.
            assert np.abs(difference).mean() < 2
            assert np.abs(difference @ (0.299, 0.587, 0.114)).mean() < 1


@pytest.mark.parametrize("how", [how for how in FORMATS if how.levels > 1], ids=str)
def test_beyond_the_border_a_shrunk_slide_is_background(slides: dict[Format, Path], how: Format) -> None:
    with Slide(slides[how]) as slide:
        coarsest = slide.levels[-1]
        corner = [round((length // 200 * 100 + 50) * coarsest.downsample) for length in (coarsest.width, 200)]
        mine = slide.read(corner[0], corner[1], mpp=coarsest.mpp * 2.5, size=60)
    left, top = (round(place / coarsest.downsample) for place in corner)
    full = np.full((150, 150, 3), 255, np.uint8)
    size = min(150, coarsest.width - left), min(150, coarsest.height - top)
    full[: size[1], : size[0]] = by_openslide(slides[how], corner[0], corner[1], how.levels - 1, size)
    expected = cv2.resize(full, (60, 60), interpolation=cv2.INTER_AREA)
    assert np.abs(mine.astype(int) - expected).max() <= 1


def test_an_eighth_is_the_mean_of_each_block() -> None:
    flat = np.repeat(np.repeat(tissue_like(8, 8), 8, axis=0), 8, axis=1)  # no detail within a block
    stream = cv2.imencode(
        ".jpg",
        flat[..., ::-1],
        [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
    )[1].tobytes()
    for scale in SCALES:
        expected = flat[::scale, ::scale]
        assert np.abs(decode(stream, 64, 64, scale).astype(int) - expected).max() <= 3
    with pytest.raises(ValueError, match="JPEG"):
        decode(b"\xff\xd8nothing", 64, 64, 2)


def test_a_stream_says_which_colours_it_has() -> None:
    red = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    silent = imagecodecs.jpeg8_encode(red, level=95, colorspace="rgb", outcolorspace="rgb")
    silent = silent[:2] + silent[18:]  # without Adobe's marker
    assert np.abs(decode(whole_stream(silent, None, rgb=True), 16, 16, 2).astype(int) - red[::2, ::2]).max() <= 3
    assert np.abs(decode(whole_stream(silent, None, rgb=False), 16, 16, 2).astype(int) - red[::2, ::2]).max() > 30


def test_many_threads_read_what_one_reads(slides: dict[Format, Path]) -> None:
    how = FORMATS[0]
    places = np.random.default_rng(2).integers(0, 600, (300, 2)).tolist()
    with Slide(slides[how]) as slide:
        alone = [slide.read(x, y, mpp=0.5, size=100) for x, y in places]
    with Slide(slides[how]) as slide, ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda at: slide.read(*at, mpp=0.5, size=100), places))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_broken_tile_is_lost_to_those_who_touch_it_and_to_nobody_else(slides: dict[Format, Path]) -> None:
    path = slides[FORMATS[0]].with_name("broken.tif")
    path.write_bytes(slides[FORMATS[0]].read_bytes())
    break_tile(path, 500, 300)  # column 2, row 1 of 240 px
    with Slide(slides[FORMATS[0]]) as whole, Slide(path) as slide, ThreadPoolExecutor(4) as threads:
        assert slide.native

        def outcome(at: tuple[int, int]) -> bool:
            x, y = at
            touches = x + 60 > 480 and x < 720 and y + 60 > 240 and y < 480
            try:
                patch = slide.read(x, y, mpp=0.25, size=60)
            except UnreadableError:
                return touches
            return not touches and np.array_equal(patch, whole.read(x, y, mpp=0.25, size=60))

        places = [(x, y) for y in range(0, 800, 70) for x in range(0, 1000, 70)]
        assert all(threads.map(outcome, places))


@pytest.mark.parametrize("how", [how for how in FORMATS if how.codec != "none"], ids=str)
def test_a_scrambled_tile_is_never_shown_where_openslide_shows_none(slides: dict[Format, Path], how: Format) -> None:
    path, outcomes = slides[how].with_name(f"scrambled{slides[how].suffix}"), set()
    with tifffile.TiffFile(slides[how]) as tiff:
        page, place = tiff.pages.first, 6
        across = -(-page.imagewidth // page.tilewidth)
        start, size = page.dataoffsets[place], page.databytecounts[place]
    x, y = place % across * how.tile, place // across * how.tile
    for seed in range(8):
        content, random = bytearray(slides[how].read_bytes()), np.random.default_rng(seed)
        scrambled = slice(start + int(0.3 * size), start + int(0.3 * size) + 200)
        content[scrambled] = random.integers(0, 256, 200, np.uint8).tobytes()
        path.write_bytes(content)
        try:
            theirs = by_openslide(path, x, y, 0, (how.tile, how.tile))
        except openslide.OpenSlideError:
            theirs = None
        with Slide(path) as slide:
            try:
                mine = slide.read(x, y, mpp=how.mpp, size=how.tile)
            except UnreadableError:
                mine = None
        assert (mine is None) == (theirs is None)
        assert mine is None or np.array_equal(mine, theirs)
        outcomes.add(mine is None)
    # Some damage no decoder can see: that is what the slide's hash in the feature file is for.
    assert outcomes == ({True} if how.codec == "lzw" else {True, False} if "jpeg2000" not in how.codec else {False})


def test_tiles_that_are_not_what_openslide_shows_are_not_read(slides: dict[Format, Path]) -> None:
    # The tag says YCbCr, the stream's own marker says RGB: programs differ in whom they believe.
    how = Format("jpeg-rgb")
    path = slides[FORMATS[0]].with_name("contradiction.svs")
    path.write_bytes(slides[how].read_bytes())
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for page in tiff.pages:
            page.tags["PhotometricInterpretation"].overwrite(6)
    with Slide(path) as slide:
        read = slide.read(240, 240, mpp=0.25, size=200)
        assert np.array_equal(read, by_openslide(path, 240, 240, 0, (200, 200)))


def test_a_format_that_is_no_grid_of_tiles_is_read_by_openslide(tmp_path: Path, drawn: np.ndarray) -> None:
    path = tmp_path / "grey.tif"
    with tifffile.TiffWriter(path) as tiff:
        for image in (drawn[..., 0], drawn[::2, ::2, 0]):
            tiff.write(np.ascontiguousarray(image), tile=(256, 256), photometric="minisblack", metadata=None)
    with Slide(path, slide_mpp=0.5) as slide:
        assert "tiles have 1 colours of 8 bits" in slide.why_openslide
        assert slide.native == ""
        assert "native" not in slide.reader
        assert np.array_equal(slide.read(10, 20, mpp=0.5, size=50)[..., 0], drawn[20:70, 10:60, 0])


def test_a_truncated_slide_is_refused_or_loses_what_is_cut_off(slides: dict[Format, Path], tmp_path: Path) -> None:
    whole = slides[FORMATS[1]].read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        path = tmp_path / f"cut-{share}.tif"
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises((DataError, UnreadableError)) as caught, Slide(path) as slide:
            slide.read(WIDTH - 240, HEIGHT - 240, mpp=0.5, size=240)
        if isinstance(caught.value, DataError):
            assert path.name in caught.value.message


def test_the_real_slide_is_read_natively() -> None:
    folder = shared_data()
    if folder is None:
        pytest.skip("no shared data")
    path = folder / "slides" / "CMU-1-Small-Region.svs"
    with Slide(path) as slide:
        assert slide.native == "JPEG tiles of 240×240 px"
        assert slide.vendor == "aperio"
        for x, y in np.random.default_rng(3).integers(0, 1900, (30, 2)).tolist():
            mine = slide.read(x, y, mpp=slide.mpp, size=256)
            assert np.array_equal(mine, by_openslide(path, x, y, 0, (256, 256)))


def test_a_tile_is_decoded_once_for_all_who_wait_for_it() -> None:
    cache, calls, start = TileCache(1 << 20), [], Barrier(8)

    def decode() -> np.ndarray:
        calls.append(1)
        return np.zeros((64, 64, 3), np.uint8)

    def ask(_: int) -> np.ndarray:
        start.wait(10)
        return cache.get("tile", decode)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(8)))
    assert len(calls) == 1
    assert all(tile is found[0] for tile in found)
    with pytest.raises(ValueError, match="read-only"):
        found[0][0] = 1


def test_the_cache_keeps_what_was_used_last_and_forgets_no_fault() -> None:
    calls: list[int] = []

    def tile(key: int) -> np.ndarray:
        calls.append(key)
        if key == 9:
            raise BrokenTileError("no")
        return np.zeros(100, np.uint8)

    cache = TileCache(250)
    for key in (1, 2, 1, 3, 1, 2):  # 3 drives out 2, which was used before 1
        cache.get(key, lambda key=key: tile(key))
    assert calls == [1, 2, 3, 2]
    for _ in range(2):
        with pytest.raises(BrokenTileError):
            cache.get(9, lambda: tile(9))
    assert calls.count(9) == 1
