"""The manifest: other tools' headers, splits by patient, and every fault named with its row."""

from collections import Counter
from pathlib import Path

import pytest

from fedpath.core.cohort import Cohort, load_cohort, split_patients
from fedpath.core.errors import DataError

LABELS = ["normal", "tumour"]
GOOD = """\
patient_id,slide_id,label,split
p1,s1,normal,train
p1,s2,tumour,train
p2,s3,tumour,validation
p3,s4,normal,test
"""


def load(tmp_path: Path, text: str, **options: float) -> Cohort:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(text, encoding="utf-8")
    return load_cohort(manifest, labels=LABELS, name="A", **options)  # type: ignore[arg-type]


def many(n: int) -> list[str]:
    """Rows without a split: n patients, the first third with tumour, every fifth with two slides."""
    rows = []
    for i in range(n):
        label = "tumour" if i < n // 3 else "normal"
        rows += [f"p{i},s{i}{letter},{label}" for letter in ("ab" if i % 5 == 0 else "a")]
    return rows


def test_reads_slides_by_split(tmp_path: Path) -> None:
    cohort = load(tmp_path, GOOD)
    assert (cohort.name, cohort.labels) == ("A", ("normal", "tumour"))
    assert [(s.slide_id, s.patient_id, s.label, s.split) for s in cohort.slides] == [
        ("s1", "p1", 0, "train"),
        ("s2", "p1", 1, "train"),
        ("s3", "p2", 1, "validation"),
        ("s4", "p3", 0, "test"),
    ]
    assert [s.slide_id for s in cohort.of("train")] == ["s1", "s2"]
    assert cohort.patients("train") == {"p1"}


@pytest.mark.parametrize(
    "text",
    [
        "case_id,slide_id,label\np1,s1,normal\n",
        "PATIENT,FILENAME,label\np1,s1.h5,normal\n",
        "PATIENT,FILENAME,LABEL\np1,s1.svs,normal\n",
        "\ufeffpatient,slide,label\r\np1,s1,normal\r\n",
        "patient;slide;label;remark\n p1 ; s1 ;normal;a, b\n\n",
        "patient\tslide\tlabel\np1\ts1\tnormal\n",
        'label,slide_id,"patient_id"\n"normal","s1","p1"',
    ],
)
def test_reads_the_headers_of_other_tools(tmp_path: Path, text: str) -> None:
    (slide,) = load(tmp_path, text).slides
    assert (slide.slide_id, slide.patient_id, slide.label, slide.split) == ("s1", "p1", 0, "train")


def test_dots_in_a_slides_name_stay(tmp_path: Path) -> None:
    (slide,) = load(tmp_path, "patient,slide,label\np1,TCGA-01.A1B2,normal\n").slides
    assert slide.slide_id == "TCGA-01.A1B2"


@pytest.mark.parametrize("name", ["val", "Validation", "VAL"])
def test_knows_the_usual_names_of_splits(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, GOOD.replace("validation", name)).of("validation")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "p9,s1,normal,train\n", ["line 6", "slide 's1' is already on line 2", "one row a slide"]),
        (GOOD + "p9,s9,Tumour,train\n", ["line 6", "label 'Tumour'", "did you mean 'tumour'"]),
        (GOOD + "p9,s9,zzz,train\n", ["line 6", "label 'zzz'", "normal, tumour"]),
        (GOOD + "p3,s9,normal,train\n", ["line 6", "patient 'p3' is in 'train' here", "'test' on line 5"]),
        (GOOD + "p9,s9,normal,holdout\n", ["line 6", "split 'holdout'", "train, validation, test"]),
        (GOOD + "p9,s9,normal\n", ["line 6", "'split' is empty"]),
        (GOOD + "p9,,normal,train\n", ["line 6", "'slide_id' is empty"]),
        (GOOD + "p9,../s9,normal,train\n", ["line 6", "'../s9' is no plain name"]),
        (GOOD + "p9,.h5,normal,train\n", ["line 6", "is no plain name"]),
        (GOOD.replace("label", "class"), ["column 'label' is missing", "'label'"]),
        (GOOD.replace("patient_id", "who"), ["column 'patient_id' is missing", "'case_id'"]),
        (GOOD.replace("slide_id", "what"), ["column 'slide_id' is missing", "'filename'"]),
        (GOOD.replace("train", "test"), ["no slide is in the split 'train'"]),
        ("patient_id,slide_id,label\n", ["no rows"]),
        ("", ["is missing"]),
    ],
)
def test_a_fault_is_named_with_its_row(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, text)
    assert "manifest.csv" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_what_is_no_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: no such manifest"):
        load_cohort(tmp_path / "gone.csv", labels=LABELS)
    with pytest.raises(DataError, match="is a folder"):
        load_cohort(tmp_path, labels=LABELS)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        load_cohort(tmp_path / "binary.csv", labels=LABELS)


def test_splits_by_patient_and_by_class(tmp_path: Path) -> None:
    cohort = load(tmp_path, "patient,slide,label\n" + "\n".join(many(60)), validation_share=0.2, test_share=0.3)
    train, validation, test = (cohort.patients(split) for split in ("train", "validation", "test"))
    assert len(train | validation | test) == len(train) + len(validation) + len(test) == 60
    for split, tumour, normal in (("train", 10, 20), ("validation", 4, 8), ("test", 6, 12)):
        counts = Counter({s.patient_id: s.label for s in cohort.of(split)}.values())  # type: ignore[arg-type]
        assert (counts[1], counts[0]) == (tumour, normal)


def test_splits_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = many(30)
    one = load(tmp_path, "patient,slide,label\n" + "\n".join(rows))
    assert load(tmp_path, "patient,slide,label\n" + "\n".join(rows[::-1])) == one
    other = load(tmp_path, "patient,slide,label\n" + "\n".join(rows), split_seed=1)
    assert other.patients("test") != one.patients("test")


def test_a_new_patient_of_another_class_moves_nobody(tmp_path: Path) -> None:
    labels_of = {f"p{i}": [i % 2] for i in range(30)}
    before = split_patients(labels_of, validation_share=0.2, test_share=0.2, seed=0)
    after = split_patients(labels_of | {"new": [2]}, validation_share=0.2, test_share=0.2, seed=0)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("n", "expected"), [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (1, 1, 1)), (4, (2, 1, 1)), (10, (6, 2, 2))]
)
def test_small_classes_train_first(n: int, expected: tuple[int, int, int]) -> None:
    splits = split_patients({str(i): [0] for i in range(n)}, validation_share=0.2, test_share=0.2, seed=0)
    counts = Counter(splits.values())
    assert (counts["train"], counts["validation"], counts["test"]) == expected


@pytest.mark.parametrize("n", range(1, 12))
@pytest.mark.parametrize("shares", [(0.49, 0.5), (0.9, 0.05), (0.3, 0.0), (0.0, 0.0)])
def test_something_is_always_left_to_train_on(n: int, shares: tuple[float, float]) -> None:
    splits = split_patients({str(i): [0] for i in range(n)}, validation_share=shares[0], test_share=shares[1], seed=0)
    assert "train" in splits.values()
    assert len(splits) == n


def test_a_patients_class_is_its_most_frequent_label() -> None:
    # Stratified, each class of three gives one patient to each split.
    labels_of = {"a": [0, 0, 1], "b": [0], "c": [0], "d": [1, 1, 0], "e": [1, 0], "f": [1]}
    splits = split_patients(labels_of, validation_share=0.2, test_share=0.2, seed=0)
    for members in ("abc", "def"):
        assert sorted(splits[name] for name in members) == ["test", "train", "validation"]


def test_shares_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        split_patients({"a": [0]}, validation_share=0.5, test_share=0.5, seed=0)
