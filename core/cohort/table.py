"""A table of bags (one instance a row) becomes a cohort: a manifest and one feature file a bag.

Features are stored as the table has them, in the feature files' float16: whole numbers up to 2048 exactly, others to
three digits. They are not standardised: a mean over all bags would let test bags speak, and one a site would make the
sites differ. Tables whose columns are raw and unscaled want a model that normalises its own input, for ACMIL
``input_norm = "layer"``.
"""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpath.core.bags.store import FeatureMeta, write_features
from fedpath.core.errors import ConfigError, DataError
from fedpath.core.files import sha256_file, write_text

ENCODER = "table"
"""What such feature files name as their encoder."""


@dataclass(frozen=True, slots=True)
class TableBag:
    """One bag of a table."""

    name: str
    label: str
    features_ND: NDArray[np.float64]


def cohort_from_table(
    table: Path,
    out: Path,
    *,
    sites: Sequence[str] = (),
    seed: int = 0,
    header: bool = False,
    label_column: str = "1",
    bag_column: str = "2",
) -> dict[Path, list[TableBag]]:
    """Write ``manifest.csv`` and ``features/<bag>.h5`` under ``out``, or under ``out/<site>`` for each site.

    Every bag is taken for a patient of its own. The manifest has no split column: site.toml's shares and seed split it.

    Args:
        table: CSV, one instance a row: label, bag, features.
        out: the cohort's folder.
        sites: hospitals among which the bags are dealt, class by class.
        seed: of the deal.
        header: whether the first row names the columns.
        label_column: name (with a header) or number, from 1, of the label's column.
        bag_column: likewise of the bag's. All others are features.

    Returns:
        The bags in each folder written.

    Raises:
        DataError: naming file and row: ragged rows, a feature that is no number, a bag with two labels.
        ConfigError: a site twice, or more sites than bags.
    """
    bags = read_table(table, header=header, label_column=label_column, bag_column=bag_column)
    folders = {out: bags}
    if sites:
        dealt = deal({bag.name: bag.label for bag in bags}, sites, seed=seed)
        folders = {out / site: [bag for bag in bags if dealt[bag.name] == site] for site in sites}
    digest = sha256_file(table)
    for folder, members in folders.items():
        for bag in members:
            _write_bag(folder / "features" / f"{bag.name}.h5", bag, digest)
        rows = [f"{bag.name},{bag.name},{bag.label}\n" for bag in members]
        write_text(folder / "manifest.csv", "patient_id,slide_id,label\n" + "".join(rows))
    return folders


def read_table(table: Path, *, header: bool, label_column: str, bag_column: str) -> list[TableBag]:
    """Read a table's bags in the order of their first rows; a bag's rows need not stand together."""
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{table}: no such table", remedy="check the path") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise DataError(f"{table}: not a text file", remedy="give a CSV file in UTF-8") from None
    reader = csv.reader(lines)
    names = [cell.strip() for cell in next(reader, [])] if header else []
    labels: dict[str, str] = {}
    instances: dict[str, list[list[float]]] = {}
    width = len(names)
    for cells in reader:
        if not cells:
            continue
        place = f"{table}, line {reader.line_num}"
        width = width or len(cells)
        if len(cells) != width or width < 3:
            raise DataError(
                f"{place}: {len(cells)} columns", remedy=f"give every row label, bag and features ({width})"
            )
        label_at, bag_at = _position(table, label_column, names, width), _position(table, bag_column, names, width)
        label, name = cells[label_at].strip(), cells[bag_at].strip()
        _check_names(place, label, name)
        if labels.setdefault(name, label) != label:
            raise DataError(
                f"{place}: bag '{name}' is labelled '{label}' here and '{labels[name]}' before",
                remedy="give all rows of a bag one label",
            )
        values = [cell for index, cell in enumerate(cells) if index not in (label_at, bag_at)]
        instances.setdefault(name, []).append(_numbers(place, values))
    if not labels:
        raise DataError(f"{table}: no rows", remedy="give one instance a row: label, bag, features")
    return [TableBag(name, label, np.array(instances[name])) for name, label in labels.items()]


def deal(label_of: Mapping[str, str], sites: Sequence[str], *, seed: int) -> dict[str, str]:
    """Deal bags to sites like cards, class by class, in the order of a hash of seed and name.

    Sites' numbers of bags differ by at most one, and so do their numbers in each class.

    Raises:
        ConfigError: a site twice, or more sites than bags.
    """
    if len(set(sites)) != len(sites):
        raise ConfigError("sites: a site is listed twice", remedy="name each site once")
    if len(sites) > len(label_of):
        raise ConfigError(f"{len(sites)} sites for {len(label_of)} bags", remedy="name at most one site a bag")

    def place(name: str) -> tuple[str, bytes]:
        return label_of[name], hashlib.sha256(f"{seed}\0{name}".encode()).digest()

    return {name: sites[index % len(sites)] for index, name in enumerate(sorted(label_of, key=place))}


def _position(table: Path, column: str, names: list[str], width: int) -> int:
    """Return the index of a column given by name, or by number from 1."""
    if column in names:
        return names.index(column)
    if column.isdecimal() and 1 <= int(column) <= width:
        return int(column) - 1
    raise DataError(
        f"{table}: no column '{column}'", remedy=f"give its number, 1 to {width}, or use --header and its name"
    )


def _check_names(place: str, label: str, name: str) -> None:
    """Refuse what cannot be a label, or a file's name, or a cell of the manifest."""
    if not label or any(sign in label for sign in ',"\n'):
        raise DataError(f"{place}: label '{label}' is empty or holds a comma or quote", remedy="use a plain word")
    if not name or name.startswith(".") or any(sign in name for sign in '/\\,"\n'):
        raise DataError(f"{place}: bag '{name}' cannot be a file name", remedy="use letters, digits, '-' and '_'")


def _numbers(place: str, cells: list[str]) -> list[float]:
    try:
        values = [float(cell) for cell in cells]
    except ValueError as error:
        raise DataError(f"{place}: {error}", remedy="features are numbers; name a header row with --header") from None
    if not np.isfinite(values).all():
        raise DataError(f"{place}: a feature is not finite", remedy="complete the table or drop the row")
    return values


def _write_bag(path: Path, bag: TableBag, digest: str) -> None:
    n_instances = len(bag.features_ND)
    # Rows of a table lie nowhere; they get the corners (0, 0), (1, 0), ... of patches one pixel wide.
    coords_N2 = np.stack([np.arange(n_instances), np.zeros(n_instances, dtype=np.int64)], axis=1)
    meta = FeatureMeta(
        slide_id=bag.name,
        encoder=ENCODER,
        # No weights made these features; the columns are what sites must agree on, and width does check those.
        encoder_sha256=hashlib.sha256(f"{ENCODER}:{bag.features_ND.shape[1]}".encode()).hexdigest(),
        mpp_level0=None,
        mpp=None,
        patch_px=None,
        patch_size_level0=1,
        level0_width=None,
        level0_height=None,
        transform="none",
        reader="csv",
        slide_sha256=digest,
        failed_tiles=0,
    )
    write_features(path, bag.features_ND, coords_N2, meta)
