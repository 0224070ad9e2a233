"""Figures in words, and as pictures where matplotlib is installed."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedpath.cli.train.once import figures_in
from fedpath.cli.train.predictions import Prediction, arrays
from fedpath.core.training.metrics import reliability

TITLES = {
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "brier_score": "Brier score",
    "calibration_error": "calibration error",
}


def test_lines(test: dict[str, Any]) -> list[str]:
    """Return a line a figure, and a line a branch."""
    lines = [f"test {TITLES[name]} {_with_interval(figure, '95 % CI ')}" for name, figure in figures_in(test).items()]
    return lines + _branch_lines(test)


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Return the table of a cross-validation."""
    pooled = summary["pooled"]
    header = (
        f"test, {pooled['patients']} patients",
        f"mean ± sd of {summary['folds']} folds",
        "all predictions (95 % CI)",
    )
    rows = [header]
    for name, figure in figures_in(pooled).items():
        over = summary["over_folds"][name]
        mean = "–" if over is None else f"{over['mean']:.3f} ± {over['sd']:.3f}"
        rows.append((TITLES[name], mean, _with_interval(figure)))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    table = [f"{first:<{widths[0]}}  {second:<{widths[1]}}  {third}" for first, second, third in rows]
    return table + _branch_lines(pooled)


def _branch_lines(test: dict[str, Any]) -> list[str]:
    """Say how many patients went by each branch, and how well each does; nothing of a model without branches."""
    lines = []
    for route, branch in test.get("branches", {}).items():
        patients = f"{route} branch: {branch['patients'] if branch else 0} of {test['patients']} test patients"
        figures = figures_in(branch) if branch else {}
        named = [f"{TITLES[name]} {_with_interval(figures[name])}" for name in ("auc", "macro_f1") if name in figures]
        lines.append(", ".join([patients, *named]))
    return lines


def _with_interval(figure: dict[str, float], words: str = "") -> str:
    return f"{figure['value']:.3f} ({words}{figure['low']:.3f}–{figure['high']:.3f})"


def draw(
    out: Path, reports: Sequence[dict[str, Any]], test: dict[str, Any] | None, predictions: Sequence[Prediction]
) -> str:
    """Draw the curves of one or more trainings and the reliability of the predictions; say what is where."""
    if find_spec("matplotlib") is None:
        return "no pictures: pip install 'fedpath[report]'"
    from fedpath.core.report.training import CalibrationBin, Course, write_course, write_reliability

    courses = [
        Course(
            f"fold {number}",
            [entry["epoch"] for entry in report["history"]],
            [entry["train_loss"] for entry in report["history"]],
            _validations(report, "loss"),
            _validations(report, "auc"),
            report["best_epoch"],
        )
        for number, report in enumerate(reports, 1)
    ]
    write_course(out / "curves", courses)
    if test is None:
        return f"{out}/curves.png"
    bins = [CalibrationBin(b.confidence, b.accuracy, b.slides) for b in reliability(*arrays(predictions)[:2])]
    error = _with_interval(test["calibration_error"], "95 % CI ")
    write_reliability(out / "reliability", bins, f"{TITLES['calibration_error']} {error}, {test['slides']} slides")
    return f"{out}/curves.png, {out}/reliability.png"


def _validations(report: dict[str, Any], figure: str) -> list[float]:
    values = [entry["validation"] and entry["validation"][figure] for entry in report["history"]]
    return [math.nan if value is None else value for value in values]
