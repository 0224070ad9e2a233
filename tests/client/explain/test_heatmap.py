import csv
import io

import numpy as np
import openslide
import pytest
import tifffile
import torch
from PIL import Image
from scipy.stats import rankdata
from slide_files import break_tile, small_slide

from fedpath.client.explain.heatmap import attention_heatmap, paint, ranks, round_length, save_scores
from fedpath.client.slides.reader import Slide
from fedpath.core.bags.bag import Bag
from fedpath.core.errors import DataError

GREY = 230
SIZE = (2048, 1536)
PATCH = 128


def make_bag(coords, patch=PATCH):
    coords = torch.tensor(coords, dtype=torch.int64).reshape(-1, 2)
    return Bag("S-1", torch.zeros(len(coords), 4, dtype=torch.float16), coords, patch)


@pytest.fixture
def slide(tmp_path):
    """A grey pyramidal TIFF without µm/px, losslessly compressed so that its colour is exact."""
    path = tmp_path / "slide.tif"
    pixels = np.full((SIZE[1], SIZE[0], 3), GREY, dtype=np.uint8)
    with tifffile.TiffWriter(path) as writer:
        options = {"tile": (256, 256), "compression": "deflate", "photometric": "rgb"}
        writer.write(pixels, **options)
        writer.write(pixels[::4, ::4], subfiletype=1, **options)
    return path


def pixels_of(png):
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def panels(pixels):
    """Boxes (left, top, right, bottom) of the two panels: where the slide's own grey is."""
    grey = (pixels == GREY).all(axis=2)
    rows = np.flatnonzero(grey.sum(axis=1) > 50)
    columns = grey.sum(axis=0) > 50
    edges = np.flatnonzero(np.diff(columns.astype(int))) + 1
    starts = [edge for edge in edges if columns[edge]]
    if columns[0]:
        starts.insert(0, 0)
    ends = [edge for edge in edges if not columns[edge]]
    assert len(starts) == len(ends) == 2
    return [(a, rows[0], b, rows[-1] + 1) for a, b in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("where", [(0, 0), (640, 256), (1664, 1280)])
def test_the_hot_patch_lights_up_where_it_was_cut(slide, where):
    grid = [(x, y) for y in range(0, SIZE[1], PATCH) for x in range(0, SIZE[0], PATCH) if (x + y) // PATCH % 2 == 1]
    grid = [place for place in grid if place != where]
    attention = np.append(np.linspace(0.0, 0.1, len(grid)), 1.0)
    pixels = pixels_of(attention_heatmap(slide, make_bag([*grid, where]), attention, mode="raw"))
    left, right = panels(pixels)
    assert left[1::2] == right[1::2]
    yellow = (pixels[..., 0] > 220) & (pixels[..., 1] > 200) & (pixels[..., 2] < 160)
    yellow[:, right[2] :] = False  # the colour bar
    assert not yellow[:, : left[2]].any()
    ys, xs = np.nonzero(yellow)
    scale = (right[2] - right[0]) / SIZE[0]
    box = np.array([xs.min() - right[0], ys.min() - right[1], xs.max() + 1 - right[0], ys.max() + 1 - right[1]])
    np.testing.assert_allclose(box, np.array([*where, where[0] + PATCH, where[1] + PATCH]) * scale, atol=2.0)


def test_only_patches_are_coloured(slide):
    pixels = pixels_of(attention_heatmap(slide, make_bag([(0, 0), (256, 512)]), [0.25, 0.75], titled=False))
    left, right = panels(pixels)
    boxes = [pixels[top:bottom, start:end] for start, top, end, bottom in (left, right)]
    changed = [(np.abs(box - GREY).max(axis=2) > 3).mean() for box in boxes]
    assert changed[0] < 0.001
    assert changed[1] == pytest.approx(2 * PATCH**2 / (SIZE[0] * SIZE[1]), rel=0.15)


def test_truth_is_outlined_where_it_lies(slide):
    square = [[512, 512], [1024, 512], [1024, 1024], [512, 1024]]
    pixels = pixels_of(attention_heatmap(slide, make_bag([(0, 0)]), [1.0], [square], titled=False))
    for left, top, right, bottom in panels(pixels):
        box = pixels[top:bottom, left:right]
        ys, xs = np.nonzero((box < 60).all(axis=2))
        scale = (right - left) / SIZE[0]
        np.testing.assert_allclose(
            [xs.min(), ys.min(), xs.max(), ys.max()], np.array([512, 512, 1024, 1024]) * scale, atol=3
        )


def test_the_scale_bar_has_its_length(slide):
    pixels = pixels_of(attention_heatmap(slide, make_bag([(0, 0)]), [1.0], mpp_level0=0.5, titled=False))
    left, top, right, bottom = panels(pixels)[0]
    strip = pixels[bottom - (bottom - top) // 15 : bottom, left:right]
    dark = (strip < 80).all(axis=2)
    length = max(dark.sum(axis=1))
    # 2048 px at 0.5 µm/px are 1024 µm; a fifth is 205 µm, so the bar is 200 µm = 400 px.
    assert length == pytest.approx(400 * (right - left) / SIZE[0], abs=3)


def test_same_input_same_bytes_and_title(slide):
    arguments = (slide, make_bag([(0, 0), (128, 0)]), [0.2, 0.8])
    titled = attention_heatmap(*arguments, probability=0.5, positive="$x^2$ <b>", label="_normal")
    assert titled == attention_heatmap(*arguments, probability=0.5, positive="$x^2$ <b>", label="_normal")
    assert pixels_of(titled).shape[0] > pixels_of(attention_heatmap(*arguments, titled=False)).shape[0]
    assert pixels_of(titled).shape[1] == pytest.approx(1200, abs=1)


def test_tall_slides_fit(tmp_path):
    path = tmp_path / "tall.tif"
    tifffile.imwrite(path, np.full((4096, 512, 3), GREY, np.uint8), tile=(256, 256), photometric="rgb")
    pixels = pixels_of(attention_heatmap(path, make_bag([(0, 3968)]), [1.0], width_px=600))
    assert pixels.shape[0] < 4 * pixels.shape[1]


def test_wrong_attention_is_named(slide, tmp_path):
    bag = make_bag([(0, 0), (128, 0)])
    with pytest.raises(DataError, match=r"S-1.*has shape \(1,\), the bag has 2 patches"):
        attention_heatmap(slide, bag, [0.5])
    with pytest.raises(DataError, match="NaN"):
        attention_heatmap(slide, bag, [0.5, float("nan")])
    with pytest.raises(DataError, match="where its patches lie"):
        attention_heatmap(slide, make_bag([(0, 0)], patch=0), [0.5])
    broken = tmp_path / "broken.tif"
    broken.write_bytes(slide.read_bytes()[:100])
    with pytest.raises(DataError, match=r"broken\.tif: not a slide"):
        attention_heatmap(broken, bag, [0.5, 0.5])
    with pytest.raises(DataError, match=r"absent\.tif: no such slide"):
        attention_heatmap(tmp_path / "absent.tif", bag, [0.5, 0.5])


def test_ranks_are_scipys_scaled_to_one():
    values = np.array([0.3, 0.1, 0.3, 0.9, 0.2])
    np.testing.assert_allclose(ranks(values), (rankdata(values) - 1) / 4)
    np.testing.assert_allclose(ranks(np.array([5.0])), [0.0])


def test_paint_averages_overlaps_and_clips_at_the_border():
    grid = paint((4, 4), 64.0, make_bag([(0, 0), (64, 0), (192, 192)]), np.array([1.0, 3.0, 5.0]))
    np.testing.assert_array_equal(
        grid, [[1, 2, 3, np.nan], [1, 2, 3, np.nan], [np.nan] * 4, [np.nan, np.nan, np.nan, 5]]
    )


def test_a_patch_smaller_than_a_pixel_still_shows():
    grid = paint((10, 10), 1000.0, make_bag([(5000, 2000)]), np.array([1.0]))
    assert np.argwhere(np.isfinite(grid)).tolist() == [[2, 5]]


@pytest.mark.parametrize(("wanted", "length"), [(205, 200), (1000, 1000), (99, 50), (0.3, 0.2), (7, 5)])
def test_round_length(wanted, length):
    assert round_length(wanted) == pytest.approx(length)


def test_scores_are_saved_raw(tmp_path):
    bag = make_bag([(0, 128), (256, 384)])
    save_scores(tmp_path / "scores.csv", bag.coords_N2.numpy(), [0.1 + 0.2, 0.25])
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"x": "0", "y": "128", "attention": "0.30000000000000004", "rank": "1.000000"}
    assert [row["x"] for row in rows] == ["0", "256"]


def test_a_slide_of_one_level_is_never_read_whole(tmp_path, monkeypatch):
    path, edge = tmp_path / "flat.tif", 8192
    with tifffile.TiffWriter(path) as writer:
        tile = np.full((512, 512, 3), GREY, np.uint8)
        tiles = (tile for _ in range((edge // 512) ** 2))
        writer.write(tiles, shape=(edge, edge, 3), dtype=np.uint8, tile=(512, 512), compression="jpeg",
                     photometric="ycbcr")  # fmt: skip
    largest = []
    own, openslides = Slide.read, openslide.OpenSlide.read_region

    def read(self, x, y, *, mpp, size):
        largest.append(size * mpp / self.mpp)
        return own(self, x, y, mpp=mpp, size=size)

    def read_region(self, location, level, size):
        largest.append(max(size))
        return openslides(self, location, level, size)

    monkeypatch.setattr(Slide, "read", read)
    monkeypatch.setattr(openslide.OpenSlide, "read_region", read_region)
    attention_heatmap(path, make_bag([(0, 0)]), [1.0], mpp_level0=0.5)
    assert 0 < max(largest) <= edge * 0.51


def test_what_cannot_be_read_is_grey_and_the_rest_is_drawn(tmp_path):
    path = tmp_path / "S-1.tif"
    small_slide(path)
    break_tile(path, 10, 10)
    with tifffile.TiffFile(path) as file:
        side = file.pages[0].imagewidth
    pixels = pixels_of(attention_heatmap(path, make_bag([(side - PATCH, side - PATCH)]), [1.0], width_px=3000))
    grey = (np.abs(pixels - 128) <= 1).all(axis=2)
    assert 0.002 < grey.mean() < 0.3


def test_the_title_names_every_class(slide):
    def pictured(**more):
        return attention_heatmap(slide, make_bag([(0, 0), (128, 0)]), [0.2, 0.8], **more)

    two = pictured(probabilities={"benign": 0.25, "tumour": 0.75})
    assert two != pictured(probabilities={"benign": 0.35, "tumour": 0.65})
    assert two == pictured(probabilities={"tumour": 0.75, "benign": 0.25})
