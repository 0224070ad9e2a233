"""A table of bags becomes a cohort, or one a hospital; faults are named with their row."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from fedpath.core.bags import read_bag, read_meta
from fedpath.core.cohort import load_cohort, load_examples
from fedpath.core.cohort.table import cohort_from_table, deal
from fedpath.core.errors import ConfigError, DataError

TABLE = "1,b1,10,-20.5\n1,b1,11,-21\n0,b2,1,2\n1,b3,5,6\n0,b2,3,4\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    return path


def test_writes_a_manifest_and_a_feature_file_a_bag(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    cohort_from_table(table, out)
    assert sorted(path.name for path in (out / "features").iterdir()) == ["b1.h5", "b2.h5", "b3.h5"]
    cohort = load_cohort(out / "manifest.csv", labels=["0", "1"])
    assert {slide.slide_id: slide.label for slide in cohort.slides} == {"b1": 1, "b2": 0, "b3": 1}
    bag = read_bag(out / "features" / "b2.h5")  # its rows do not stand together
    assert torch.equal(bag.features_ND.float(), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert bag.coords_N2.tolist() == [[0, 0], [1, 0]]
    meta = read_meta(out / "features" / "b2.h5")
    assert (meta.encoder, meta.mpp, meta.patch_px) == ("table", None, None)
    assert load_examples(cohort, out / "features", "train", width=2)


def test_every_site_states_the_same_encoder(table: Path, tmp_path: Path) -> None:
    folders = cohort_from_table(table, tmp_path, sites=["A", "B"])
    metas = [read_meta(path) for folder in folders for path in (folder / "features").iterdir()]
    assert len({(meta.encoder, meta.encoder_sha256, meta.transform) for meta in metas}) == 1


def test_named_columns_in_any_order(table: Path, tmp_path: Path) -> None:
    table.write_text("f1,bag,f2,label\n1,b1,2,yes\n3,b2,4,no\n")
    cohort_from_table(table, tmp_path, header=True, label_column="label", bag_column="bag")
    assert (tmp_path / "manifest.csv").read_text() == "patient_id,slide_id,label\nb1,b1,yes\nb2,b2,no\n"
    assert read_bag(tmp_path / "features" / "b2.h5").features_ND.tolist() == [[3.0, 4.0]]


def test_deals_class_by_class() -> None:
    label_of = {f"b{i}": "positive" if i < 47 else "negative" for i in range(92)}
    dealt = deal(label_of, ["A", "B", "C"], seed=0)
    assert dealt.keys() == label_of.keys()
    assert sorted(Counter(dealt.values()).values()) == [30, 31, 31]
    counts = Counter((label_of[name], site) for name, site in dealt.items())
    assert sorted(count for (label, _), count in counts.items() if label == "positive") == [15, 16, 16]
    assert sorted(count for (label, _), count in counts.items() if label == "negative") == [15, 15, 15]
    reordered = dict(reversed(label_of.items()))
    assert deal(reordered, ["A", "B", "C"], seed=0) == dealt
    assert deal(label_of, ["A", "B", "C"], seed=1) != dealt


def test_each_site_gets_a_cohort_of_its_own(table: Path, tmp_path: Path) -> None:
    cohort_from_table(table, tmp_path, sites=["A", "B"], seed=2)
    found = {site: {path.stem for path in (tmp_path / site / "features").iterdir()} for site in "AB"}
    assert found["A"] | found["B"] == {"b1", "b2", "b3"}
    assert not found["A"] & found["B"]
    for site, names in found.items():
        cohort = load_cohort(tmp_path / site / "manifest.csv", labels=["0", "1"])
        assert {slide.slide_id for slide in cohort.slides} == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TABLE + "1,b9,1\n", ["line 6", "3 columns", "(4)"]),
        (TABLE + "1,b9,1,x\n", ["line 6", "'x'", "--header"]),
        (TABLE + "1,b9,1,nan\n", ["line 6", "not finite"]),
        (TABLE + "0,b1,1,2\n", ["line 6", "bag 'b1' is labelled '0' here and '1' before"]),
        (TABLE + "1,../b,1,2\n", ["line 6", "bag '../b' cannot be a file name"]),
        (TABLE + ",b9,1,2\n", ["line 6", "label ''"]),
        (TABLE + "1,b9,1,70000\n", ["b9.h5", "rescale"]),
        ("", ["no rows"]),
        ("1,b1\n", ["line 1", "2 columns"]),
    ],
)
def test_a_fault_is_named_with_its_row(table: Path, tmp_path: Path, text: str, words: list[str]) -> None:
    table.write_text(text)
    with pytest.raises(DataError) as caught:
        cohort_from_table(table, tmp_path / "out")
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_wrong_columns_sites_and_files_are_named(table: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'label'"):
        cohort_from_table(table, tmp_path, label_column="label")
    with pytest.raises(DataError, match="no column '9'"):
        cohort_from_table(table, tmp_path, bag_column="9")
    with pytest.raises(ConfigError, match="listed twice"):
        cohort_from_table(table, tmp_path, sites=["A", "A"])
    with pytest.raises(ConfigError, match="4 sites for 3 bags"):
        cohort_from_table(table, tmp_path, sites=list("ABCD"))
    with pytest.raises(DataError, match=r"gone\.csv: no such table"):
        cohort_from_table(tmp_path / "gone.csv", tmp_path)
    with pytest.raises(DataError, match="not a text file"):
        cohort_from_table(tmp_path, tmp_path)
