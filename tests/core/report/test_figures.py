import dataclasses
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from fedpath.core.report import canvas, curves, figures, palette, progress, wording
from fedpath.core.report.data import display_name

ALL = [
    figures.roc_by_model,
    figures.roc_by_hospital,
    figures.precision_recall,
    figures.every_slide,
    figures.forest,
    progress.validation_by_round,
    progress.training_by_round,
]


def texts(picture):
    return [node.text for node in ET.fromstring(picture.svg).iter("text")]


@pytest.mark.parametrize("draw", ALL)
def test_figures_are_well_formed_labelled_and_the_same_each_time(data, draw):
    picture = draw(data)
    root = ET.fromstring(picture.svg)
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert len(root.get("aria-label")) > 20
    assert not re.search(r"https?:", picture.svg)
    ids = re.findall(r'\bid="([^"]+)"', picture.svg)
    assert all(i.startswith(f"{picture.name}-") for i in ids)
    assert set(re.findall(r'href="#([^"]+)"', picture.svg) + re.findall(r"url\(#([^)]+)\)", picture.svg)) <= set(ids)
    assert draw(data) == picture


def test_roc_legend_gives_the_data_s_numbers(data):
    labels = texts(figures.roc_by_model(data))
    for model in data.models:
        assert f"{display_name(model)}: AUC = {wording.auc_label(model.test_auc)}" in labels
    labels = texts(figures.roc_by_hospital(data))
    for site in data.sites:
        assert f"{site}: AUC = {wording.auc_label(data.federated.auc_at(site))}" in labels


def test_roc_line_runs_through_the_data_s_points_at_equal_aspect(data):
    svg = figures.roc_by_model(data).svg
    thick = re.search(r'<path d="([^"]+)"[^>]*style="[^"]*stroke: var\(--ink[^"]*stroke-width: 2\.2', svg)
    points = np.array(re.findall(r"[ML] (\S+) (\S+)", thick.group(1)), dtype=float)
    edge = 72 * (canvas.WIDTH - canvas.LEFT - canvas.RIGHT)
    rates = np.stack([points[:, 0] - 72 * canvas.LEFT, edge - (points[:, 1] - 72 * canvas.TOP)], axis=1) / edge
    wanted = np.stack(curves.roc(*data.federated.arrays()), axis=1)
    distance = np.abs(rates[:, None] - wanted[None]).max(axis=2).min(axis=1)
    assert distance.max() < 1e-4
    assert len(points) > 3


def test_forest_names_every_model_with_its_interval(data):
    labels = texts(figures.forest(data))
    for model in data.models:
        assert display_name(model) in labels
        assert wording.auc_label(model.test_auc) in labels


def test_a_hospital_keeps_its_colour_and_colours_are_left_to_the_page(data):
    for draw in (figures.roc_by_model, figures.roc_by_hospital, progress.validation_by_round):
        svg = draw(data).svg
        for index in range(3):
            assert f"stroke: var(--site-{index}, {palette.SITES[index]})" in svg
    bare = re.sub(r"var\([^)]*\)", "", svg)
    assert not set(re.findall(r"#[0-9a-f]{6}", bare)) & set(palette.VARIABLES.values())


def test_nothing_is_drawn_from_nothing(data):
    empty = dataclasses.replace(data, models=(), rounds=(), best_round=None)
    assert [draw(empty) for draw in ALL] == [None] * len(ALL)


def test_many_classes_have_no_precision_recall(data):
    three = dataclasses.replace(data, federation=dataclasses.replace(data.federation, labels=("a", "b", "c")))
    assert figures.precision_recall(three) is None
    assert figures.every_slide(three) is None


def test_names_are_text_and_never_formulas(data):
    hospitals = tuple(dataclasses.replace(h, name=f"{h.name}_$x^2$<b>") for h in data.hospitals)
    named = dataclasses.replace(
        data, hospitals=hospitals, rounds=(), best_round=None, models=(), departures=(), heatmaps=()
    )
    model = dataclasses.replace(
        data.federated,
        predictions=tuple(dataclasses.replace(p, site=f"{p.site}_$x^2$<b>") for p in data.federated.predictions),
    )
    labels = texts(figures.roc_by_hospital(dataclasses.replace(named, models=(model,))))
    assert any(label.startswith("A_$x^2$<b>: AUC") for label in labels)


def test_the_caller_s_matplotlib_settings_stay():
    import matplotlib

    from fedpath.core.report.svg import drawing

    before = dict(matplotlib.rcParams)
    with drawing():
        assert matplotlib.rcParams["svg.hashsalt"] == "fedpath"
    assert dict(matplotlib.rcParams) == before


def test_long_names_and_many_hospitals_fit(data):
    assert canvas.short("Karolinska") == "Karolinska"
    assert canvas.short("Universitaetsklinikum-Heidelberg") == "Universita…lberg"
    assert canvas.columns_for(["A", "B", "C", "Weighted mean"]) == 4
    assert canvas.columns_for(["Karolinska"] * 10 + ["Weighted mean"]) == 2
    assert canvas.columns_for(["x" * 80]) == 1
    assert canvas.margin(["A"]) == canvas.LEFT < canvas.margin(["Universita…lberg"]) < canvas.WIDTH / 2
