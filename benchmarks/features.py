"""Reading stored features: fedpath's files beside the layouts of CLAM and TRIDENT.

The same four slides (15,000 patches × 1024 each; --quick: 3,000) in the three layouts: fedpath contiguous float16, CLAM
float32 in chunks of 32 rows, TRIDENT float32 in chunks of one row, each as these tools write it. A turn reads the four
one after the other, as training does: together they exceed the processor's cache. The layouts are compared with one way
of reading all three, that of the peers' users: h5py, the whole datasets, torch.from_numpy (`full_vs_…`). Beside it
``read_bag``, which also looks for NaN and infinity and reads what the file says of itself (`read_bag_vs_…`). The subset
is 512 random patches a slide by ``read_bag``; a peer is given the faster of two ways, HDF5's own selection of rows, or
everything and then the rows. Files are in the page cache; all take turns; times are medians a slide, ratios medians
over the turns. CLAM's code has also been seen to write chunks of one row: such files read as TRIDENT's do.

`python features.py [--quick] [--write]`
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import torch
from _common import machine, report, take_turns, write_block
from numpy.typing import NDArray

from fedpath.core.bags import FeatureMeta, read_bag, write_features

_SLIDES, _WIDTH, _SUBSET, _EDGE = 4, 1024, 512, 256
_PAGE = Path(__file__).parents[1] / "docs" / "features.md"
_CHUNK_ROWS = {"clam": 32, "trident": 1}
_COORDS_TYPE = {"clam": np.int32, "trident": np.int64}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller bag, fewer turns")
    parser.add_argument("--write", action="store_true", help="write the table into docs/features.md")
    arguments = parser.parse_args()
    patches, turns = (3_000, 5) if arguments.quick else (15_000, 11)
    random = np.random.default_rng(0)
    rows = np.sort(random.choice(patches, _SUBSET, replace=False))
    with tempfile.TemporaryDirectory() as folder:
        bags = [random.standard_normal((patches, _WIDTH), np.float32) for _ in range(_SLIDES)]
        slides = [_write_all(Path(folder) / str(place), features_ND) for place, features_ND in enumerate(bags)]
        del bags
        tasks: dict[str, Callable[[], object]] = {
            "full_fedpath": _each(slides, "fedpath", _read_as_peers_do),
            "read_bag": _each(slides, "fedpath", read_bag),
            "subset_fedpath": _each(slides, "fedpath", lambda path: read_bag(path, rows=rows)),
        }
        for peer in _CHUNK_ROWS:
            tasks[f"full_{peer}"] = _each(slides, peer, _read_as_peers_do)
            tasks[f"subset_{peer}_selected"] = _each(slides, peer, lambda path: _read_as_peers_do(path, rows))
            tasks[f"subset_{peer}_from_all"] = _each(slides, peer, lambda path: _read_as_peers_do(path)[0][rows])
        seconds = take_turns(tasks, turns)
        size = {name: path.stat().st_size / 1e6 for name, path in slides[0].items()}
    figures = {f"{name}_ms": 1000 * median(times) / _SLIDES for name, times in seconds.items()}
    figures |= {f"{name}_mb": megabytes for name, megabytes in size.items()}
    ratios = {f"full_vs_{peer}": _ratio(seconds[f"full_{peer}"], seconds["full_fedpath"]) for peer in _CHUNK_ROWS}
    for peer in _CHUNK_ROWS:
        ratios[f"read_bag_vs_{peer}"] = _ratio(seconds[f"full_{peer}"], seconds["read_bag"])
        ways = (seconds[f"subset_{peer}_selected"], seconds[f"subset_{peer}_from_all"])
        ratios[f"subset_vs_{peer}"] = _ratio(min(ways, key=median), seconds["subset_fedpath"])
    report("features", figures, ratios, {"full_vs_trident": "≥ 15", "full_vs_clam": "≥ 4"}, quick=arguments.quick)
    if arguments.write:
        _write_page(figures, ratios, patches)


def _each(slides: Sequence[Mapping[str, Path]], tool: str, read: Callable[[Path], object]) -> Callable[[], None]:
    """Return what reads every slide's file of one tool; a bag is let go before the next one is read."""

    def run() -> None:
        for files in slides:
            read(files[tool])

    return run


def _write_all(folder: Path, features_ND: NDArray[np.float32]) -> dict[str, Path]:
    """Write one bag in the three layouts; return the files by tool."""
    folder.mkdir()
    columns = 125
    places = np.arange(len(features_ND))
    coords_N2 = np.stack([places % columns, places // columns], axis=1) * _EDGE
    files = {"fedpath": folder / "fedpath.h5"}
    meta = FeatureMeta(
        slide_id="slide",
        encoder="random",
        encoder_sha256="0" * 64,
        mpp_level0=0.5,
        mpp=0.5,
        patch_px=_EDGE,
        patch_size_level0=_EDGE,
        level0_width=columns * _EDGE,
        level0_height=int(coords_N2[:, 1].max()) + _EDGE,
        transform="none",
        reader="none",
        slide_sha256="0" * 64,
        failed_tiles=0,
    )
    write_features(files["fedpath"], features_ND, coords_N2, meta)
    for peer, chunk in _CHUNK_ROWS.items():
        files[peer] = folder / f"{peer}.h5"
        with h5py.File(files[peer], "w") as file:
            shape, unlimited = (chunk, _WIDTH), (None, _WIDTH)
            file.create_dataset("features", data=features_ND, chunks=shape, maxshape=unlimited)
            coords = coords_N2.astype(_COORDS_TYPE[peer])
            file.create_dataset("coords", data=coords, chunks=(chunk, 2), maxshape=(None, 2))
    return files


def _read_as_peers_do(path: Path, rows: NDArray[np.int64] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    with h5py.File(path, "r") as file:
        wanted = np.s_[:] if rows is None else rows
        return torch.from_numpy(file["features"][wanted]), torch.from_numpy(file["coords"][wanted])


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return median(a / b for a, b in zip(theirs, ours, strict=True))


def _write_page(figures: dict[str, float], ratios: dict[str, float], patches: int) -> None:
    bag = f"{patches:,} × {_WIDTH}; {machine()}"
    rows = [
        [bag, "file, MB", "all, ms", "× fedpath", "512 patches, ms", "× fedpath"],
        _row("fedpath", figures["fedpath_mb"], figures["full_fedpath_ms"], 1, figures["subset_fedpath_ms"], 1),
        ["the same, by `read_bag`", "", f"{figures['read_bag_ms']:.1f}", "", "", ""],
    ]
    for peer, name in (("clam", "CLAM"), ("trident", "TRIDENT")):
        subset = min(figures[f"subset_{peer}_selected_ms"], figures[f"subset_{peer}_from_all_ms"])
        full = figures[f"full_{peer}_ms"]
        rows.append(
            _row(name, figures[f"{peer}_mb"], full, ratios[f"full_vs_{peer}"], subset, ratios[f"subset_vs_{peer}"])
        )
    write_block(_PAGE, "features", rows)


def _row(name: str, size: float, full: float, full_ratio: float, subset: float, subset_ratio: float) -> list[str]:
    return [name, f"{size:.0f}", f"{full:.1f}", f"{full_ratio:.2g}", f"{subset:.1f}", f"{subset_ratio:.2g}"]


if __name__ == "__main__":
    main()
