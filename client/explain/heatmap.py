"""An attention heatmap beside the slide: drawn at the hospital, from stored features, over tissue only.

Left the slide with the outlines of the known tumour, where there are any; right the same with every patch coloured by
its attention, at the place and in the size it was cut. Both with a scale bar.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from fedpath.client.slides.openslide_file import OpenSlideFile
from fedpath.client.slides.reader import Slide
from fedpath.client.slides.tissue import read_overview
from fedpath.core.bags.bag import Bag
from fedpath.core.errors import DataError
from fedpath.core.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
Polygon = Sequence[Sequence[float]]
"""Corners [x, y] in level-0 pixels."""
Mode = Literal["rank", "raw"]

COLOURS = "viridis"  # perceptually even, safe for colour-blind readers, and far from haematoxylin and eosin
_OUTLINE = "#111111"
_ALPHA = 0.62
_CLASSES = 4
"""In the title, the most probable first: more do not fit."""
_UNREADABLE = 128
"""Grey: what cannot be read is not glass."""


def attention_heatmap(
    slide_path: Path | None,
    bag: Bag,
    attention_N: Sequence[float] | Floats,
    truth_polygons: Sequence[Polygon] | None = None,
    *,
    probability: float | None = None,
    positive: str = "positive",
    label: str | None = None,
    probabilities: Mapping[str, float] | None = None,
    mode: Mode = "rank",
    mpp_level0: float | None = None,
    size_level0: tuple[int, int] | None = None,
    whose: str = "attention",
    titled: bool = True,
    width_px: int = 1200,
) -> bytes:
    """Draw the heatmap of one slide.

    Args:
        slide_path: the slide, in any format OpenSlide opens; None draws the patches alone, on white.
        bag: its patches; ``coords_N2`` are level-0 pixels, ``patch_size_level0`` their edge.
        attention_N: one finite number a patch.
        truth_polygons: outlines to draw over the slide, in level-0 pixels.
        probability: predicted probability of ``positive``, for the title.
        positive: name of the positive class.
        label: true label, for the title.
        probabilities: predicted, of every class, for the title; in place of ``probability``.
        mode: "rank" colours by the share of the slide's patches with less attention; "raw" by attention itself.
        mpp_level0: µm/px at level 0, where the slide does not say; without either there is no scale bar.
        size_level0: width and height of the slide the features were made from, in pixels, where known.
        whose: what is drawn, for headings: "attention of branch 2".
        titled: put slide id, probability and label above; not needed where a page says so beside the picture.
        width_px: width of the picture.

    Returns:
        A PNG; the same input gives the same bytes.

    Raises:
        DataError: the slide cannot be opened, or attention does not fit the bag.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from fedpath.core.report.svg import drawing

    values_N = checked(bag, attention_N)
    if slide_path is None:
        slide = _blank_slide(bag, size_level0, edge_px=width_px // 2, mpp=mpp_level0)
    else:
        slide = _read_slide(slide_path, edge_px=width_px // 2, mpp_level0=mpp_level0)
        check_size(slide_path, slide.size, size_level0)
    shown_N = ranks(values_N) if mode == "rank" else values_N
    scale = Normalize(0.0, 1.0) if mode == "rank" else Normalize(float(values_N.min()), float(values_N.max()))
    overlay_HW = paint(slide.picture.shape[:2], slide.downsample, bag, shown_N)
    layout = _Layout.of(slide.picture.shape[1] / slide.picture.shape[0], titled=titled)

    with drawing():
        figure = Figure(figsize=(layout.width, layout.height), dpi=width_px / layout.width, facecolor="white")
        left, right = (figure.add_axes(box) for box in (layout.left, layout.right))
        for axes in (left, right):
            width, height = slide.size
            axes.imshow(slide.picture, extent=(0, width, height, 0), interpolation="antialiased")
            axes.set_axis_off()
            _scale_bar(axes, slide)
        extent = (0, overlay_HW.shape[1] * slide.downsample, overlay_HW.shape[0] * slide.downsample, 0)
        right.imshow(
            np.ma.masked_invalid(overlay_HW),
            extent=extent,
            cmap=COLOURS,
            norm=scale,
            alpha=_ALPHA,
            interpolation="nearest",
        )
        for axes in (left, right):
            axes.set(xlim=(0, slide.size[0]), ylim=(slide.size[1], 0))
            for polygon in truth_polygons or ():
                corners = np.asarray(polygon, dtype=np.float64)
                axes.fill(corners[:, 0], corners[:, 1], fill=False, edgecolor="white", linewidth=2.6, alpha=0.9)
                axes.fill(corners[:, 0], corners[:, 1], fill=False, edgecolor=_OUTLINE, linewidth=1.3)
        bar = figure.colorbar(
            ScalarMappable(norm=scale, cmap=COLOURS),
            cax=figure.add_axes(layout.bar),
            orientation="vertical",
            alpha=_ALPHA,
        )
        bar.set_label("attention rank" if mode == "rank" else "attention (raw)")
        bar.outline.set_visible(False)
        if mode == "rank":
            bar.set_ticks([0, 0.5, 1], labels=["least", "median", "most"])
        shown = "slide" if slide_path is not None else "patches"
        by = "by rank" if mode == "rank" else "raw"
        left.set_title(f"{shown}, {positive} outlined" if truth_polygons else shown, loc="left", fontsize=9)
        right.set_title(f"{whose} over tissue, {by}", loc="left", fontsize=9)
        if titled:
            title = _title(bag, probabilities if probabilities is not None else probability, positive, label)
            figure.text(0.002, 1 - 0.16 / layout.height, title, va="center", fontsize=10)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def ranks(attention_N: Floats) -> Floats:
    """Return ranks scaled to 0…1 (least to most attention); equal values share their mean rank."""
    _, inverse, counts = np.unique(attention_N, return_inverse=True, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)[:-1]])
    middle = below + (counts - 1) / 2
    return np.asarray(middle[inverse] / max(len(attention_N) - 1, 1), dtype=np.float64)


def paint(shape: tuple[int, int], downsample: float, bag: Bag, values_N: Floats) -> Floats:
    """Paint every patch's value on a grid of thumbnail pixels.

    Args:
        shape: height and width of the thumbnail.
        downsample: level-0 pixels a thumbnail pixel.
        bag: where the patches lie.
        values_N: one value a patch.

    Returns:
        Array [H, W]: the mean over the patches that cover a pixel, NaN where there is none.
    """
    height, width = shape
    total_HW, count_HW = np.zeros(shape), np.zeros(shape)
    starts_N2 = np.rint(bag.coords_N2.numpy() / downsample).astype(np.int64)
    ends_N2 = np.rint((bag.coords_N2.numpy() + bag.patch_size_level0) / downsample).astype(np.int64)
    # On a huge slide a patch may be smaller than a thumbnail pixel; it still marks one.
    ends_N2 = np.maximum(ends_N2, starts_N2 + 1)
    for (x0, y0), (x1, y1), value in zip(starts_N2, ends_N2, values_N, strict=True):
        place = (slice(max(y0, 0), min(y1, height)), slice(max(x0, 0), min(x1, width)))
        total_HW[place] += value
        count_HW[place] += 1
    mean_HW = np.full(shape, np.nan)
    np.divide(total_HW, count_HW, out=mean_HW, where=count_HW > 0)
    return mean_HW


def save_scores(path: Path, coords_N2: NDArray[np.int64], attention_N: Sequence[float] | Floats) -> None:
    """Write the raw scores behind a heatmap as CSV: x, y (level-0 pixels), attention, rank (0…1)."""
    values_N = np.asarray(attention_N, dtype=np.float64)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["x", "y", "attention", "rank"])
    for (x, y), value, rank in zip(np.asarray(coords_N2), values_N, ranks(values_N), strict=True):
        writer.writerow([int(x), int(y), repr(float(value)), f"{rank:.6f}"])
    write_text(path, text.getvalue())


@dataclass(frozen=True, slots=True)
class _Slide:
    picture: NDArray[np.uint8]
    """Red, green, blue; [H, W, 3]."""
    downsample: float
    """Level-0 pixels a thumbnail pixel."""
    size: tuple[int, int]
    """Width and height at level 0."""
    mpp: float | None


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the panels lie, in inches and (for axes) fractions: left, bottom, width, height."""

    width: float
    height: float
    left: tuple[float, float, float, float]
    right: tuple[float, float, float, float]
    bar: tuple[float, float, float, float]

    @classmethod
    def of(cls, aspect: float, *, titled: bool) -> "_Layout":
        width, edge, gap, top, bar = 9.2, 0.02, 0.15, 0.56 if titled else 0.26, 1.0
        panel = (width - 2 * edge - gap - bar) / 2
        tall = min(panel / aspect, 8.0)
        panel = tall * aspect
        width = 2 * panel + 2 * edge + gap + bar
        height = tall + top + edge
        down, up = edge / height, tall / height
        x_right, x_bar = edge + panel + gap, edge + 2 * panel + 1.6 * gap
        return cls(
            width,
            height,
            (edge / width, down, panel / width, up),
            (x_right / width, down, panel / width, up),
            (x_bar / width, down + up * 0.15, 0.12 / width, up * 0.7),
        )


def checked(bag: Bag, attention_N: Sequence[float] | Floats) -> Floats:
    """Return attention that fits a bag whose patches have places on the slide.

    Raises:
        DataError: it does not.
    """
    if not bag.coords_are_level0 or bag.patch_size_level0 < 1:
        raise DataError(
            f"slide {bag.slide_id}: the feature file does not say where its patches lie on the slide",
            remedy="encode the slide with `fedpath slides encode`, which records coordinates and patch size",
        )
    values_N = np.asarray(attention_N, dtype=np.float64)
    patches = bag.coords_N2.shape[0]
    if values_N.shape != (patches,) or patches == 0:
        raise DataError(
            f"slide {bag.slide_id}: attention has shape {values_N.shape}, the bag has {patches} patches",
            remedy="compute attention from the same feature file the heatmap is drawn from",
        )
    if not np.isfinite(values_N).all():
        raise DataError(
            f"slide {bag.slide_id}: attention holds NaN or infinite values",
            remedy="check the model's checkpoint and the feature file",
        )
    return values_N


def _read_slide(path: Path, *, edge_px: int, mpp_level0: float | None) -> _Slide:
    """Read a thumbnail, block by block: memory does not grow with the slide, also where it has only its level 0."""
    file = OpenSlideFile(path)
    stated = file.stated_mpp
    file.close()
    mpp = mpp_level0 if mpp_level0 is not None else (stated[0] if stated and stated[0] > 0 else None)
    # Without µm/px a slide is drawn in its pixels, and has no scale bar.
    with Slide(path, slide_mpp=mpp or 1.0) as slide:
        size = slide.width, slide.height
        downsample = max(1.0, max(size) / edge_px)
        finer = slide.whole_mpp(slide.mpp * max(1.0, downsample / 1.5))
        overview_HW3, unreadable_HW = read_overview(slide, finer)
    overview_HW3[unreadable_HW] = _UNREADABLE
    shape = max(1, round(size[0] / downsample)), max(1, round(size[1] / downsample))
    picture = cv2.resize(overview_HW3, shape, interpolation=cv2.INTER_AREA)
    return _Slide(np.asarray(picture, np.uint8), downsample, size, mpp)


def check_size(path: Path, size: tuple[int, int], expected: tuple[int | None, int | None] | None) -> None:
    """Check that a slide is as large (width, height) as the one the features were made from.

    Raises:
        DataError: it is another slide.
    """
    if expected is not None and None not in expected and size != expected:
        raise DataError(
            f"{path}: {size[0]}×{size[1]} px; the features are of a slide of {expected[0]}×{expected[1]} px",
            remedy="name the slide they were made from",
        )


def _blank_slide(bag: Bag, size: tuple[int, int] | None, *, edge_px: int, mpp: float | None) -> _Slide:
    """Return a white slide with its patches in grey: where tissue is, when there is no picture of it."""
    right, bottom = (bag.coords_N2.numpy().max(axis=0) + bag.patch_size_level0).tolist()
    width, height = size if size is not None else (right, bottom)
    downsample = max(1.0, width / edge_px, height / edge_px)
    shape = max(1, round(height / downsample)), max(1, round(width / downsample))
    patches_HW = np.isfinite(paint(shape, downsample, bag, np.zeros(len(bag))))
    picture_HW3 = np.where(patches_HW[..., None], np.uint8(205), np.uint8(255)).repeat(3, axis=-1)
    return _Slide(picture_HW3, downsample, (width, height), mpp)


def _scale_bar(axes: "Axes", slide: _Slide) -> None:
    """Draw a bar of a round length (1, 2 or 5 times a power of ten) near a fifth of the slide's width."""
    if slide.mpp is None:
        return
    width, height = slide.size
    microns = round_length(width * slide.mpp / 5)
    length, x, y = microns / slide.mpp, width * 0.03, height * 0.965
    text = f"{microns / 1000:g} mm" if microns >= 1000 else f"{microns:g} µm"
    for colour, thickness in (("white", 5.0), (_OUTLINE, 2.5)):
        axes.plot((x, x + length), (y, y), color=colour, linewidth=thickness, solid_capstyle="butt")
    axes.text(
        x, y - height * 0.015, text, fontsize=8, va="bottom", color=_OUTLINE,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.0},
    )  # fmt: skip


def round_length(wanted: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, 50, … (any power of ten) not above ``wanted``."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return max((factor * power for factor in (1, 2, 5, 10) if factor * power <= wanted * (1 + 1e-9)), default=power)


def _title(bag: Bag, predicted: Mapping[str, float] | float | None, positive: str, label: str | None) -> str:
    parts = [bag.slide_id]
    if isinstance(predicted, Mapping):
        order = sorted(predicted, key=predicted.__getitem__, reverse=True)
        classes = ", ".join(f"{name} {predicted[name]:.2f}" for name in order[:_CLASSES])
        parts.append(f"predicted: {classes}{', …' if len(order) > _CLASSES else ''}")
    elif predicted is not None:
        parts.append(f"predicted probability of {positive}: {predicted:.2f}")
    if label is not None:
        parts.append(f"true label: {label}")
    return "   ·   ".join(parts)
