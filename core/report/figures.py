"""Figures of the result: functions from ``ReportData`` to a ``Picture``, or None where there is nothing to draw."""

import numpy as np

from fedpath.core.report import curves, palette, wording
from fedpath.core.report.canvas import (
    LEFT,
    RIGHT,
    WIDTH,
    Line,
    Picture,
    canvas,
    legend,
    margin,
    model_label,
    model_style,
    short,
    site_style,
)
from fedpath.core.report.data import ReportData, display_name
from fedpath.core.report.svg import drawing, to_svg


def _rates(name: str, lines: list[Line], *, x: str, y: str, alt: str, reference: Line) -> str:
    """Draw curves in the unit square at equal aspect, with a dashed line of reference (what chance gives)."""
    with drawing():
        figure, axes = canvas(WIDTH - LEFT - RIGHT, len(lines))
        axes.plot(reference.x, reference.y, color=palette.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        for line in lines:
            axes.plot(line.x, line.y, clip_on=False, **line.style)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=x, ylabel=y, aspect="equal")
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.set_yticks(np.linspace(0, 1, 6))
        legend(figure, lines)
        return to_svg(figure, name=name, alt=alt)


_CHANCE = Line("", (0, 1), (0, 1), {})


def roc_by_model(data: ReportData) -> Picture | None:
    """ROC curves of all models on the test slides of all hospitals; None without predictions."""
    lines = []
    for model in data.models:
        curve = curves.roc(*model.arrays()) if model.predictions else None
        if curve is not None:
            label = f"{model_label(model)}: AUC = {wording.auc_label(model.test_auc)}"
            lines.append(Line(label, curve[0].tolist(), curve[1].tolist(), model_style(data, model)))
    if not lines:
        return None
    axes_names = _rate_names(data)
    alt = f"ROC curves on all test {data.federation.unit}s. " + "; ".join(line.label for line in lines) + "."
    return Picture(
        "roc-models",
        _rates("roc-models", lines, x=axes_names[0], y=axes_names[1], alt=alt, reference=_CHANCE),
        f"Every model, all hospitals' test {data.federation.unit}s",
        "The further a curve bows to the upper left, the better the model separates the classes; the dashed diagonal "
        "is chance. In brackets: 95 % confidence interval.",
    )


def roc_by_hospital(data: ReportData) -> Picture | None:
    """ROC curves of the federated model, one a hospital; None without predictions of both classes anywhere."""
    model = data.federated
    if model is None or not model.predictions:
        return None
    lines = []
    for index, site in enumerate(data.sites):
        curve = curves.roc(*model.arrays(site))
        if curve is not None:
            label = f"{short(site)}: AUC = {wording.auc_label(model.auc_at(site))}"
            lines.append(Line(label, curve[0].tolist(), curve[1].tolist(), site_style(index)))
    if not lines:
        return None
    axes_names = _rate_names(data)
    alt = "ROC curves of the federated model at each hospital. " + "; ".join(line.label for line in lines) + "."
    return Picture(
        "roc-hospitals",
        _rates("roc-hospitals", lines, x=axes_names[0], y=axes_names[1], alt=alt, reference=_CHANCE),
        "The federated model, hospital by hospital",
        f"One hospital has few test {data.federation.unit}s, so its curve moves in large steps: read it for gross "
        "differences between hospitals, not for fine ones.",
    )


def _rate_names(data: ReportData) -> tuple[str, str]:
    if len(data.federation.labels) > 2:
        return "False positive rate (1 − specificity)", "True positive rate, mean over classes"
    return "False positive rate (1 − specificity)", "True positive rate (sensitivity)"


def precision_recall(data: ReportData) -> Picture | None:
    """Precision-recall curves of all models; two classes only."""
    lines = []
    share = 0.0
    for model in data.models:
        if len(data.federation.labels) > 2 or not model.predictions:
            continue
        targets_N, probabilities_NC = model.arrays()
        curve = curves.precision_recall(targets_N, probabilities_NC[:, 1])
        if curve is not None:
            recall, precision, average = curve
            share = float(np.mean(targets_N == 1))
            label = f"{model_label(model)}: average precision = {wording.auc(average)}"
            style = {**model_style(data, model), "drawstyle": "steps-pre"}
            lines.append(Line(label, recall.tolist(), precision.tolist(), style))
    if not lines:
        return None
    alt = (
        f"Precision-recall curves on all test {data.federation.unit}s. " + "; ".join(line.label for line in lines) + "."
    )
    chance = Line("", (0, 1), (share, share), {})
    positive, unit = data.federation.positive, data.federation.unit
    return Picture(
        "precision-recall",
        _rates("precision-recall", lines, x="Recall (sensitivity)", y="Precision", alt=alt, reference=chance),
        "Precision and recall",
        f"Of the {unit}s called {positive}, how many are (precision), against the share of all {positive} {unit}s "
        f"found (recall). The dashed line is chance: {wording.percent(share)} of the test {unit}s are {positive}.",
    )


def every_slide(data: ReportData) -> Picture | None:
    """The federated model's probability for every test slide, a lane a hospital and class; two classes only."""
    model = data.federated
    if model is None or not model.predictions or len(data.federation.labels) > 2:
        return None
    lanes = [(index, site, target) for index, site in enumerate(data.sites) for target in (1, 0)]
    unit, labels, sites = data.federation.unit, data.federation.labels, [short(site) for site in data.sites]
    with drawing():
        figure, axes = canvas(max(0.36 * len(lanes), 1.4), 1, left=margin(sites))
        for row, (index, site, target) in enumerate(lanes):
            targets_N, probabilities_NC = model.arrays(site)
            scores = probabilities_NC[targets_N == target, 1]
            colour = palette.site_colour(index)
            axes.plot(
                scores,
                row + _spread(scores),
                linestyle="none",
                marker="o",
                markersize=5,
                markerfacecolor=colour if target else palette.PAPER,
                markeredgecolor=colour,
                markeredgewidth=1.1,
                clip_on=False,
            )
            if target == 1 and row:
                axes.axhline(row - 0.5, color=palette.GRID, linewidth=0.8)
        axes.set(xlim=(0, 1), ylim=(len(lanes) - 0.5, -0.5), xticks=np.linspace(0, 1, 6))
        axes.set_xlabel(f"Predicted probability of {labels[1]}")
        axes.set_yticks([2 * index + 0.5 for index in range(len(sites))], sites)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        dot = {"linestyle": "none", "marker": "o", "markersize": 5, "color": palette.MUTED}
        legend(figure, [Line(labels[1], (), (), dot), Line(labels[0], (), (), {**dot, "fillstyle": "none"})], 2)
        alt = f"Predicted probability of {labels[1]} for every test {unit}, by hospital and true label."
        svg = to_svg(figure, name="every-slide", alt=alt)
    return Picture(
        "every-slide",
        svg,
        f"Every test {unit}, one dot each",
        "Probabilities given by the federated model. Full dots should lie to the right of the rings. If one hospital's "
        "dots sit elsewhere than the others', a common threshold would not serve it.",
    )


def _spread(scores: curves.Floats) -> curves.Floats:
    """Return small vertical offsets, so that dots at nearly the same place are all seen: neighbours take turns."""
    offsets = np.empty(len(scores))
    offsets[np.argsort(scores, kind="stable")] = np.resize([0.0, -0.2, 0.2], len(scores))
    return offsets


def forest(data: ReportData) -> Picture | None:
    """AUC of every model with its confidence interval, one row a model."""
    shown = [(model, model.test_auc) for model in data.models if model.test_auc is not None]
    if not shown:
        return None
    with drawing():
        names = [model_label(model) for model, _ in shown]
        figure, axes = canvas(0.34 * len(shown) + 0.1, 0, left=margin(names), right=1.5)
        for row, (model, interval) in enumerate(shown):
            style = model_style(data, model)
            thick = model.kind == "federated"
            if interval.bounds is not None:
                axes.plot(
                    interval.bounds,
                    (row, row),
                    color=style["color"],
                    linewidth=2.4 if thick else 1.4,
                    clip_on=False,
                )
            axes.plot(
                interval.value,
                row,
                marker="s" if thick else "o",
                markersize=6 if thick else 5,
                clip_on=False,
                color=style["color"],
            )
            weight = "bold" if thick else "normal"
            axes.annotate(
                wording.auc_label(interval),
                (1, row),
                xycoords=("axes fraction", "data"),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontweight=weight,
            )
        lowest = min(value for _, i in shown for value in (i.value, *(i.bounds or ())))
        start = min(0.5, np.floor(lowest * 10) / 10)
        axes.set(xlim=(start - 0.01, 1.0), ylim=(len(shown) - 0.5, -0.5))
        axes.set_xticks(np.arange(round(start * 10), 11, 1 if start >= 0.5 else 2) / 10)
        axes.axvline(0.5, color=palette.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(shown)), names)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"AUC on all test {data.federation.unit}s (0.5 = chance)")
        alt = "AUC with 95 % confidence interval. " + "; ".join(
            f"{display_name(model)} {wording.auc_label(interval)}" for model, interval in shown
        )
        svg = to_svg(figure, name="forest", alt=f"{alt}.")
    return Picture(
        "forest",
        svg,
        "Together, alone, pooled",
        "Points are estimates, bars their 95 % confidence intervals: where bars overlap widely, these test "
        f"{data.federation.unit}s do not tell the models apart.",
    )
