"""A person's outlines are read exactly, and what cannot be used is refused with the file's name and a remedy."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from shared_data import shared_data
from slide_files import small_slide

from fedpath.client.slides.geojson import IGNORED, write_tissue
from fedpath.client.slides.outlines import tissue_of
from fedpath.client.slides.polygons import crosses_itself, fill, trace
from fedpath.client.slides.reader import Slide
from fedpath.client.slides.tissue import METHOD, Tissue, find_tissue
from fedpath.core.errors import DataError

SQUARE = [[160, 160], [800, 160], [800, 640], [160, 640], [160, 160]]
HOLE = [[320, 320], [480, 320], [480, 480], [320, 480], [320, 320]]


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    small_slide(tmp_path / "a.tif", 0.5)
    return Slide(tmp_path / "a.tif")


def feature(*rings: list[list[float]], name: object = None, **properties: object) -> dict[str, Any]:
    kind = {} if name is None else {"classification": {"name": name, "color": [1, 2, 3]}}
    geometry = {"type": "Polygon", "coordinates": list(rings)}
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": properties | kind}


def outline(tmp_path: Path, content: object, name: str = "a.geojson") -> Path:
    folder = tmp_path / "outlines"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def inside(polygon: list[np.ndarray], x: float, y: float) -> bool:
    """The slow definition: an odd number of edges lies to the left of the point."""
    odd = False
    for ring in polygon:
        for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if (y1 <= y) != (y2 <= y) and x1 + (y - y1) * (x2 - x1) / (y2 - y1) <= x:
                odd = not odd
    return odd


# --- polygons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_filling_is_what_it_is_by_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    # Some corners on pixels' centres and borders, some beyond the picture.
    polygons = [[np.round(random.uniform(-8, 40, (7, 2)) * 2) / 2 for _ in range(2)] for _ in range(2)]
    expected = [[any(inside(polygon, x + 0.5, y + 0.5) for polygon in polygons) for x in range(30)] for y in range(25)]
    assert np.array_equal(fill([[2 * ring for ring in polygon] for polygon in polygons], (25, 30), 2.0), expected)


@pytest.mark.parametrize("density", [0.1, 0.4, 0.6, 0.9])
def test_a_mask_traced_and_filled_is_the_same_mask(density: float) -> None:
    mask = np.random.default_rng(0).random((40, 50)) < density
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    polygons = trace(mask, labels)
    assert len(polygons) == labels.max()
    assert np.array_equal(fill(polygons, mask.shape, 1.0), mask)
    for ring in (ring for polygon in polygons for ring in polygon):
        assert len({tuple(corner) for corner in ring}) == len(ring)
        assert not crosses_itself(ring)


def crosses_by_definition(ring: np.ndarray) -> bool:
    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        return np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    edges = list(zip(ring, np.roll(ring, -1, axis=0), strict=True))
    return any(
        side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0 for a, b in edges for c, d in edges
    )


def test_crossings_are_found() -> None:
    random, seen = np.random.default_rng(0), set()
    for corners in (3, 4, 5, 6, 400):
        for _ in range(20 if corners < 10 else 1):
            ring = random.integers(0, 12, (corners, 2)).astype(float)
            seen.add(crosses_by_definition(ring))
            assert crosses_itself(ring) == crosses_by_definition(ring), ring
    angle = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    circle = 1000 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert not crosses_itself(circle)
    circle[[2000, 2010]] = circle[[2010, 2000]]
    assert crosses_itself(circle)
    assert seen == {True, False}


# --- outlines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["collection", "feature", "list", "multi", "geometry"])
def test_areas_with_holes_are_read_from_every_form(slide: Slide, tmp_path: Path, shape: str) -> None:
    one = feature(SQUARE, HOLE, objectType="annotation")
    content: object = {
        "collection": {"type": "FeatureCollection", "features": [one]},
        "feature": one,
        "list": [one],
        "multi": one | {"geometry": {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE]]}},
        "geometry": one["geometry"],
    }[shape]
    tissue, method = tissue_of(slide, outline(tmp_path, content))
    expected = np.zeros((64, 64), np.bool_)
    expected[10:40, 10:50] = True
    expected[20:30, 20:30] = False
    assert tissue.mpp == 8.0
    assert np.array_equal(tissue.mask_HW, expected)
    assert method.startswith("outlines sha256 ")


def test_ignored_areas_are_cut_out_and_detections_are_no_outlines(slide: Slide, tmp_path: Path) -> None:
    everywhere = [[0, 0], [1024, 0], [1024, 1024], [0, 1024]]
    content = [feature(SQUARE, name="Tumor"), feature(HOLE, name=IGNORED), feature(everywhere, objectType="cell")]
    tissue, _ = tissue_of(slide, outline(tmp_path, content))
    with_hole, _ = tissue_of(slide, outline(tmp_path, feature(SQUARE, HOLE)))
    assert np.array_equal(tissue.mask_HW, with_hole.mask_HW)


def test_with_ignored_areas_only_the_rest_is_searched(slide: Slide, tmp_path: Path) -> None:
    found = find_tissue(slide)
    tissue, method = tissue_of(slide, outline(tmp_path, feature(SQUARE, name=IGNORED)))
    expected = found.mask_HW.copy()
    expected[10:40, 10:50] = False
    assert np.array_equal(tissue.mask_HW, expected)
    assert not np.array_equal(expected, found.mask_HW)
    assert method.startswith(f"{METHOD}, without outlines sha256 ")


def test_a_slide_without_outlines_is_searched_automatically(slide: Slide, tmp_path: Path) -> None:
    tissue, method = tissue_of(slide, outline(tmp_path, feature(SQUARE), "another.geojson"))
    assert method == METHOD
    assert np.array_equal(tissue.mask_HW, find_tissue(slide).mask_HW)
    assert tissue_of(slide, None)[1] == METHOD


def test_the_method_changes_with_the_file(slide: Slide, tmp_path: Path) -> None:
    first = tissue_of(slide, outline(tmp_path, feature(SQUARE)))[1]
    assert tissue_of(slide, outline(tmp_path, feature(SQUARE)))[1] == first
    assert tissue_of(slide, outline(tmp_path, feature(SQUARE, HOLE)))[1] != first


def test_a_file_is_found_by_either_name_and_alone(slide: Slide, tmp_path: Path) -> None:
    folder = outline(tmp_path, feature(SQUARE), "a.tif.geojson")
    assert tissue_of(slide, folder)[0].mask_HW.sum() == 30 * 40
    assert tissue_of(slide, folder / "a.tif.geojson")[0].mask_HW.sum() == 30 * 40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("{", "not JSON", id="not-json"),
        pytest.param({"type": "FeatureCollection"}, "not GeoJSON", id="no-features"),
        pytest.param("[1, 2]", "not GeoJSON", id="numbers"),
        pytest.param([feature([[0, 0], [9, 9]])], "not GeoJSON", id="two-corners"),
        pytest.param('[{"geometry": {"type": "Polygon", "coordinates": [[[0, NaN], [1, 1], [2, 0]]]}}]', "not GeoJSON"),
        pytest.param([], "outlines no area", id="empty"),
        pytest.param([{"geometry": {"type": "Point", "coordinates": [1, 2]}}], "outlines no area", id="point"),
        pytest.param({"type": "FeatureCollection", "crs": {"type": "name"}, "features": []}, "crs", id="crs"),
        pytest.param([feature([[0, 0], [4000, 0], [0, 500]])], "outside the slide of 1024×1024", id="outside"),
        pytest.param([feature([[0, 0], [500, 500], [500, 0], [0, 500]])], "crosses itself", id="crossing"),
    ],
)
def test_bad_outlines_are_refused_by_name(slide: Slide, tmp_path: Path, content: object, message: str) -> None:
    folder = outline(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        tissue_of(slide, folder)
    assert str(folder / "a.geojson") in caught.value.message
    assert caught.value.remedy


def test_files_that_cannot_be_meant_are_refused(slide: Slide, tmp_path: Path) -> None:
    folder = outline(tmp_path, feature(SQUARE), "b.geojson")
    with pytest.raises(DataError, match="not of slide a"):
        tissue_of(slide, folder / "b.geojson")
    with pytest.raises(DataError, match="no outlines inside"):
        tissue_of(slide, tmp_path)
    with pytest.raises(DataError, match="no such file"):
        tissue_of(slide, tmp_path / "nowhere")
    outline(tmp_path, feature(SQUARE))
    cv2.imwrite(str(folder / "a.png"), np.zeros((64, 64), np.uint8))
    with pytest.raises(DataError, match=r"a\.geojson and a\.png"):
        tissue_of(slide, folder)


@pytest.mark.parametrize("form", ["grey", "colour", "transparent", "16-bit", "finer"])
def test_masks_are_read_as_programs_save_them(slide: Slide, tmp_path: Path, form: str) -> None:
    expected = find_tissue(slide).mask_HW
    grey = np.where(expected, 255, 0).astype(np.uint8)
    picture = {
        "grey": grey,
        "colour": np.repeat(grey[..., None], 3, axis=2),
        "transparent": np.dstack([np.full_like(grey, 255)] * 3 + [grey]),
        "16-bit": grey.astype(np.uint16) * 257,
        "finer": grey.repeat(4, 0).repeat(4, 1),
    }[form]
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    tissue, method = tissue_of(slide, tmp_path / "a.png")
    assert method.startswith("mask sha256 ")
    step = 4 if form == "finer" else 1
    assert np.array_equal(tissue.mask_HW[::step, ::step], expected)
    assert tissue.mpp == pytest.approx(8.0 / step)


@pytest.mark.parametrize(
    ("size", "message"), [((64, 50), "shape of a slide"), ((4, 4), "too coarse"), (None, "not a PNG")]
)
def test_masks_that_do_not_fit_are_refused(
    slide: Slide, tmp_path: Path, size: tuple[int, int] | None, message: str
) -> None:
    if size is None:
        (tmp_path / "a.png").write_bytes(b"no")
    else:
        cv2.imwrite(str(tmp_path / "a.png"), np.zeros(size, np.uint8))
    with pytest.raises(DataError, match=message):
        tissue_of(slide, tmp_path / "a.png")


def test_written_tissue_is_read_back_to_the_pixel(slide: Slide, tmp_path: Path) -> None:
    tissue = find_tissue(slide)
    write_tissue(tmp_path / "a.geojson", tissue, slide.mpp, slide.slide_id)
    assert np.array_equal(tissue_of(slide, tmp_path / "a.geojson")[0].mask_HW, tissue.mask_HW)
    written = json.loads((tmp_path / "a.geojson").read_text())
    assert written["type"] == "FeatureCollection"
    assert "crs" not in written
    for one in written["features"]:
        assert one["properties"]["objectType"] == "annotation"
        assert one["geometry"]["coordinates"][0][0] == one["geometry"]["coordinates"][0][-1]


def test_a_real_slide_goes_through_geojson_unchanged(tmp_path: Path) -> None:
    data = shared_data()
    if data is None:
        pytest.skip("no shared data here")
    with Slide(data / "slides" / "CMU-1-Small-Region.svs") as slide:
        tissue = find_tissue(slide)
        assert 0.2 < tissue.mask_HW.mean() < 0.8
        write_tissue(tmp_path / f"{slide.slide_id}.geojson", tissue, slide.mpp, slide.slide_id)
        back, _ = tissue_of(slide, tmp_path)
    assert isinstance(back, Tissue)
    assert np.array_equal(back.mask_HW, tissue.mask_HW)
