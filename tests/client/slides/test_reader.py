"""Patches are where they should be and as large as they should be, against a literal slow definition."""

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from shared_data import shared_data
from slide_files import break_tile, small_slide, striped_tiff

from fedpath.client.slides.reader import Slide, UnreadableError, slide_sha256
from fedpath.client.slides.resample import area_mean
from fedpath.client.slides.synthetic.hospital import write_slide
from fedpath.core.errors import DataError


def literal_area_mean(image: np.ndarray, top: float, left: float, span: float, size: int) -> np.ndarray:
    """Pixel by pixel: the integral of the image over each output pixel's square, divided by its area."""
    step = span / size
    out = np.zeros((size, size, image.shape[2]))
    for i in range(size):
        for j in range(size):
            y0, y1, x0, x1 = top + i * step, top + (i + 1) * step, left + j * step, left + (j + 1) * step
            total = np.zeros(image.shape[2])
            for y in range(int(y0), min(int(np.ceil(y1)), image.shape[0])):
                for x in range(int(x0), min(int(np.ceil(x1)), image.shape[1])):
                    total += image[y, x] * (min(y1, y + 1) - max(y0, y)) * (min(x1, x + 1) - max(x0, x))
            out[i, j] = total / step**2
    return out


@pytest.mark.parametrize(
    ("top", "left", "span", "size"),
    [
        (3.0, 5.0, 16.0, 16),
        (3.0, 5.0, 32.0, 16),
        (3.0, 5.0, 23.0, 16),
        (3.25, 5.5, 24.615, 16),
        (0.0, 0.0, 15.97, 16),
        (7.9, 0.1, 31.999, 12),
    ],
)
def test_the_area_mean_is_exact(top: float, left: float, span: float, size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 42, 3), np.uint8)
    expected = literal_area_mean(image, top, left, span, size)
    assert np.abs(area_mean(image, top, left, span, size) - expected).max() <= 0.51


@pytest.mark.parametrize("slide_mpp", [0.25, 0.325, 0.2738, 0.5])
@pytest.mark.parametrize("corner", [(0, 0), (197, 394), (333, 111)])
def test_a_patch_is_the_area_mean_of_what_openslide_shows(
    tmp_path: Path, slide_mpp: float, corner: tuple[int, int]
) -> None:
    path = tmp_path / "a.tif"
    small_slide(path, slide_mpp)
    x, y = corner
    size, mpp = 32, 0.5
    with Slide(path) as slide:
        patch = slide.read(x, y, mpp=mpp, size=size)
        assert slide.mpp == pytest.approx(slide_mpp, rel=1e-6)
    # The coarsest level at or finer than the target.
    level, downsample = (1, 2) if slide_mpp == 0.25 else (0, 1)
    span = size * mpp / slide_mpp / downsample
    with openslide.OpenSlide(path) as whole:
        assert whole.properties["openslide.vendor"] == "generic-tiff"
        pixels = np.asarray(whole.read_region((0, 0), level, whole.level_dimensions[level]))[..., :3]
    expected = literal_area_mean(pixels.astype(float), y / downsample, x / downsample, span, size)
    assert patch.shape == (size, size, 3)
    assert np.abs(patch - expected).max() <= 0.52


def test_physical_size_does_not_depend_on_the_scanner(tmp_path: Path) -> None:
    """The same tissue from four scanners gives the same patch, up to what JPEG and resampling lose."""
    patches = []
    for mpp in (0.5, 0.25, 0.325, 0.2738):
        small_slide(tmp_path / f"{mpp}.tif", mpp)
        with Slide(tmp_path / f"{mpp}.tif") as slide:
            # 192 µm in, 64 µm wide.
            corner = round(192 / mpp)
            patches.append(slide.read(corner, corner, mpp=0.5, size=128).astype(float))
    for other in patches[1:]:
        assert np.abs(other - patches[0]).mean() < 6
        shifted = np.abs(other[:, 4:] - patches[0][:, :-4]).mean()
        assert shifted > 1.3 * np.abs(other - patches[0]).mean()


def test_beyond_the_slide_is_background(tmp_path: Path) -> None:
    small_slide(tmp_path / "a.tif", 0.5)
    with Slide(tmp_path / "a.tif") as slide:
        patch = slide.read(slide.width - 64, slide.height - 32, mpp=0.5, size=128)
        assert (patch[32:] == 255).all()
        assert (patch[:, 64:] == 255).all()
        inside = slide.read(slide.width - 64, slide.height - 64, mpp=0.5, size=64)
    assert np.array_equal(patch[:32, :64], inside[32:])


def test_transparency_is_laid_over_the_slides_own_background(tmp_path: Path) -> None:
    # OpenSlide shows tiles of length 0 in a sparse TIFF as never scanned.
    path = tmp_path / "sparse.svs"
    image = np.full((512, 512, 3), (200, 30, 90), np.uint8)
    tiles = [image[:256, :256], b"", b"", image[256:, 256:]]
    encoded = (tile if isinstance(tile, bytes) else _jpeg(tile) for tile in tiles)
    tifffile.imwrite(
        path,
        encoded,
        shape=(512, 512, 3),
        dtype=np.uint8,
        tile=(256, 256),
        photometric="rgb",
        compression="jpeg",
        description="Aperio Image Library v1.0\r\n512x512|AppMag = 20|MPP = 0.5",
        metadata=None,
    )
    with Slide(path) as slide:
        assert (slide.read(300, 20, mpp=0.5, size=64) == 255).all()
        assert abs(int(slide.read(20, 20, mpp=0.5, size=64)[..., 0].mean()) - 200) <= 3
        slide._openslide.background = (10, 20, 30)
        assert (slide.read(300, 20, mpp=0.5, size=64) == (10, 20, 30)).all()


def _jpeg(tile: np.ndarray) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpeg8_encode(tile, level=95, subsampling="444"))


def test_an_unreadable_tile_is_lost_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    small_slide(path, 0.5)
    with Slide(path) as slide:
        before = slide.read(0, 0, mpp=0.5, size=128)
    break_tile(path, 600, 300)
    with Slide(path) as slide:
        with pytest.raises(UnreadableError):
            slide.read(560, 300, mpp=0.5, size=128)
        # OpenSlide's handle is in permanent error now; the reopened one reads on.
        assert np.array_equal(slide.read(0, 0, mpp=0.5, size=128), before)


def test_a_slide_without_resolution_is_refused_unless_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "bare.tif"
    small_slide(path, None)
    with pytest.raises(DataError, match=r"bare\.tif: the slide states no µm/px") as caught:
        Slide(path)
    assert "--slide-mpp" in caught.value.remedy
    with Slide(path, slide_mpp=0.25) as slide:
        assert slide.mpp == 0.25


def test_a_slides_own_resolution_wins(tmp_path: Path) -> None:
    small_slide(tmp_path / "a.tif", 0.5)
    with Slide(tmp_path / "a.tif", slide_mpp=0.25) as slide:
        assert slide.mpp == pytest.approx(0.5)


def test_placeholder_resolutions_are_refused(tmp_path: Path) -> None:
    # 72 dpi.
    write_slide(tmp_path / "a.tif", np.full((600, 600, 3), 200, np.uint8), None)
    with tifffile.TiffWriter(tmp_path / "dpi.tif") as tiff:
        tiff.write(
            np.full((600, 600, 3), 200, np.uint8),
            tile=(256, 256),
            compression="jpeg",
            photometric="rgb",
            resolution=(72, 72),
            resolutionunit="INCH",
        )
    with pytest.raises(DataError, match="implausible µm/px 352"):
        Slide(tmp_path / "dpi.tif")


def test_a_slide_coarser_than_the_target_is_refused(tmp_path: Path) -> None:
    small_slide(tmp_path / "a.tif", 0.5)
    with Slide(tmp_path / "a.tif") as slide:
        with pytest.raises(DataError, match=r"0\.5 µm/px, coarser than the 0\.25"):
            slide.read(0, 0, mpp=0.25, size=128)
        assert slide.read(0, 0, mpp=0.48, size=128).shape == (128, 128, 3)


def test_what_is_not_a_slide_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("not a slide")
    striped_tiff(tmp_path / "striped.tif")
    for name in ("text.svs", "striped.tif"):
        with pytest.raises(DataError, match=f"{name}: not a slide"):
            Slide(tmp_path / name)
    with pytest.raises(DataError, match="no such slide"):
        Slide(tmp_path / "absent.svs")


def test_the_hash_is_of_the_file_and_its_companions(tmp_path: Path) -> None:
    path = tmp_path / "m.mrxs"
    path.write_bytes(b"index")
    alone = slide_sha256(path)
    assert alone == "1bc04b5291c26a46d918139138b992d2de976d6851d0893b0476b85bfbdfc6e6"
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "Data0000.dat").write_bytes(b"one")
    first = slide_sha256(path)
    (tmp_path / "m" / "Data0000.dat").write_bytes(b"two")
    assert len({alone, first, slide_sha256(path)}) == 3


@pytest.mark.skipif(shared_data() is None, reason="needs the shared data folder")
def test_a_real_slide() -> None:
    folder = shared_data()
    assert folder is not None
    path = folder / "slides" / "CMU-1-Small-Region.svs"
    with Slide(path) as slide, openslide.OpenSlide(path) as whole:
        assert (slide.mpp, slide.width, slide.height) == (0.499, 2220, 2967)
        native = np.asarray(whole.read_region((640, 1280), 0, (130, 130)))[..., :3]
        assert np.array_equal(slide.read(640, 1280, mpp=0.499, size=128), native[:128, :128])
        expected = literal_area_mean(native.astype(float), 0, 0, 128 * 0.5 / 0.499, 128)
        assert np.abs(slide.read(640, 1280, mpp=0.5, size=128) - expected).max() <= 0.51
