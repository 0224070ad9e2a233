"""The figures of a training: whole files, the same bytes for the same data, nothing drawn that is not there."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from fedpath.core.report.training import CalibrationBin, Course, write_course, write_reliability

NAN = float("nan")
SVG = "{http://www.w3.org/2000/svg}"


def course(label: str = "fold 1", auc: float = 0.8) -> Course:
    return Course(label, [2, 4, 6], [1.5, 1.0, 0.7], [1.6, 1.2, 1.1], [0.6, auc, 0.7], best_epoch=4)


def texts(path: Path) -> list[str]:
    return [element.text or "" for element in ET.parse(path).iter(f"{SVG}text")]


def test_one_training_shows_losses_validation_and_what_was_kept(tmp_path: Path) -> None:
    write_course(tmp_path / "curves", [course()])
    words = texts(tmp_path / "curves.svg")
    assert {"Loss", "Validation AUC", "Epoch", "training", "validation", "kept"} <= set(words)
    assert "fold 1" not in words
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_folds_are_named_and_low_values_are_seen(tmp_path: Path) -> None:
    write_course(tmp_path / "curves", [course(), course("fold 2", auc=0.23)])
    words = texts(tmp_path / "curves.svg")
    assert {"fold 1", "fold 2", "0.2"} <= set(words)


def test_what_there_is_not_is_not_drawn(tmp_path: Path) -> None:
    write_course(tmp_path / "curves", [Course("", [1, 2], [1.0, 0.5], [NAN, NAN], [NAN, NAN], 2)])
    words = texts(tmp_path / "curves.svg")
    assert {"Loss", "training"} <= set(words)
    assert not {"Validation AUC", "validation", "kept"} & set(words)
    write_course(tmp_path / "one-class", [Course("", [1, 2], [1.0, 0.5], [1.0, 0.9], [NAN, NAN], 2)])
    words = texts(tmp_path / "one-class.svg")
    assert "validation" in words
    assert "Validation AUC" not in words


def test_reliability_shows_its_note_and_its_slides(tmp_path: Path) -> None:
    bins = [CalibrationBin(0.55, 0.4, 3), CalibrationBin(0.97, 0.95, 40)]
    write_reliability(tmp_path / "reliability", bins, "calibration error 0.05")
    words = texts(tmp_path / "reliability.svg")
    assert {"calibration error 0.05", "Slides", "Probability of the predicted label", "40"} <= set(words)
    write_reliability(tmp_path / "one", bins[:1], "")  # a single bin


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_course(tmp_path / name / "curves", [course(), course("fold 2")])
        write_reliability(tmp_path / name / "reliability", [CalibrationBin(0.6, 0.5, 4)], "note")
    for file in ("curves.svg", "curves.png", "reliability.svg", "reliability.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
