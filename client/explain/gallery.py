"""The patches a model attends to most and least, cut from the slide as the encoder saw them."""

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fedpath.client.explain.heatmap import check_size, checked, ranks, round_length
from fedpath.client.explain.scores import MEAN, Explained
from fedpath.client.slides.reader import Slide, UnreadableError
from fedpath.core.errors import DataError
from fedpath.core.files import write_bytes

_ACROSS = 6
"""Patches in a row of the sheet."""
_INCHES = 1.5
_DPI = 150


@dataclass(frozen=True, slots=True)
class _Patch:
    """One patch of the gallery."""

    place: int
    """1 for the most or least attention."""
    x: int
    y: int
    score: float
    rank: float
    pixels_HW3: NDArray[np.uint8]


def write_gallery(folder: Path, slide_path: Path, explained: Explained, *, branch: str = MEAN, count: int = 12) -> Path:
    """Cut the ``count`` patches with the most and with the least attention, and draw a sheet of them.

    Args:
        folder: gets `sheet.png` and the patches, `top/` and `bottom/`, with place, score and position in their names.
        slide_path: the slide the features were made from.
        explained: what the model says of it.
        branch: whose attention.
        count: of each; fewer where the slide has fewer than twice as many patches.

    Returns:
        The sheet.

    Raises:
        DataError: the slide cannot be read, or is not the one the features were made from.
        ConfigError: the model has no such branch.
    """
    meta, values_N = explained.meta, checked(explained.bag, explained.attention(branch))
    if meta.mpp is None or meta.patch_px is None:
        raise DataError(
            f"slide {meta.slide_id}: its feature file does not say at which µm/px patches were cut",
            remedy="encode the slide with `fedpath slides encode`",
        )
    order_N = np.argsort(-values_N, kind="stable")
    most = min(count, max(1, len(order_N) // 2))
    rank_N, coords_N2 = ranks(values_N), explained.bag.coords_N2.numpy()
    with Slide(slide_path, slide_mpp=meta.mpp_level0) as slide:
        check_size(slide_path, (slide.width, slide.height), (meta.level0_width, meta.level0_height))
        rows = {}
        for name, chosen in (("top", order_N[:most]), ("bottom", order_N[::-1][:most])):
            rows[name] = [
                _Patch(
                    place,
                    int(coords_N2[n, 0]),
                    int(coords_N2[n, 1]),
                    float(values_N[n]),
                    float(rank_N[n]),
                    _read(slide, int(coords_N2[n, 0]), int(coords_N2[n, 1]), meta.mpp, meta.patch_px),
                )
                for place, n in enumerate(chosen, start=1)
            ]
    for name, patches in rows.items():
        # Of an earlier run, perhaps with another model: beside these they would pass for its patches.
        for old in (folder / name).glob("*_score-*_x-*_y-*.png"):
            old.unlink()
        for patch in patches:
            file = f"{patch.place:02d}_score-{patch.score:.6g}_x-{patch.x}_y-{patch.y}.png"
            _, encoded = cv2.imencode(".png", patch.pixels_HW3[..., ::-1])
            write_bytes(folder / name / file, encoded.tobytes())
    write_bytes(folder / "sheet.png", _sheet(explained, branch, rows, meta.mpp * meta.patch_px))
    return folder / "sheet.png"


def _read(slide: Slide, x: int, y: int, mpp: float, size: int) -> NDArray[np.uint8]:
    try:
        return slide.read(x, y, mpp=mpp, size=size)
    except UnreadableError:
        raise DataError(
            f"{slide.path}: the patch at ({x}, {y}) cannot be read any more", remedy="copy the slide again"
        ) from None


def _sheet(explained: Explained, branch: str, rows: dict[str, list[_Patch]], edge_um: float) -> bytes:
    """Draw the contact sheet; ``edge_um`` is the edge of a patch in µm."""
    from matplotlib.figure import Figure

    from fedpath.core.report.svg import drawing

    lines = {name: -(-len(patches) // _ACROSS) for name, patches in rows.items()}
    across = min(_ACROSS, max(len(patches) for patches in rows.values()))
    across = max(across, 4)  # room for the title
    caption, heading, margin, head, foot = 0.2, 0.34, 0.12, 0.42, 0.42
    width = across * (_INCHES + 0.06) + 2 * margin
    height = sum(lines.values()) * (_INCHES + caption) + 2 * heading + head + foot
    with drawing():
        figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
        whose = (
            ""
            if len(explained.attention_KN) == 1
            else f", {'mean of branches' if branch == MEAN else f'branch {branch}'}"
        )
        probability = explained.probabilities[explained.predicted]
        figure.text(
            margin / width,
            1 - head / 2 / height,
            f"{explained.slide_id}   ·   predicted {explained.predicted} ({probability:.2f})   ·   attention{whose}",
            va="center",
            fontsize=10,
        )
        top = head
        for name, patches in rows.items():
            text = {"top": "most attention", "bottom": "least attention"}[name]
            figure.text(margin / width, 1 - (top + heading / 2) / height, text, va="center", fontsize=9, weight="bold")
            top += heading
            for number, patch in enumerate(patches):
                left = margin + number % _ACROSS * (_INCHES + 0.06)
                up = height - top - number // _ACROSS * (_INCHES + caption) - _INCHES
                axes = figure.add_axes((left / width, up / height, _INCHES / width, _INCHES / height))
                axes.imshow(patch.pixels_HW3, interpolation="antialiased")
                axes.set_axis_off()
                said = f"{patch.place}.  {patch.score:.3g}  (rank {patch.rank:.0%})"
                figure.text(left / width, (up - caption / 2) / height, said, va="center", fontsize=7, color="#333333")
            top += lines[name] * (_INCHES + caption)
        _bar(figure, margin / width, foot / height, _INCHES / width, edge_um)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _bar(figure: object, left: float, height: float, patch: float, edge_um: float) -> None:
    """Draw a scale bar below the patches: a patch is ``patch`` of the figure's width and ``edge_um`` wide."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    assert isinstance(figure, Figure)
    microns = round_length(edge_um)
    end = left + patch * microns / edge_um
    y = height * 0.45
    figure.add_artist(Line2D([left, end], [y, y], color="#111111", linewidth=2.5, solid_capstyle="butt"))
    figure.text(end + 0.01, y, f"{microns:g} µm   (a patch is {edge_um:g} µm wide)", va="center", fontsize=8)
