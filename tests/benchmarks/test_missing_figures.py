"""What the missing-modality study makes of its scores."""

import pytest
from _common import write_block
from _missing_figures import ratios_of, summarise, table_of
from _missing_runs import METHODS, PERCENTS, Job, Recipe, Score

RECIPE = Recipe(1e-3, 1)


def _scores(auc):
    """Scores of two draws; ``auc(method, percent, draw)``."""
    return {
        Job("planted", method, percent, draw, RECIPE): Score(auc(method, percent, draw), 0.5, None, None)
        for method in METHODS
        for percent in ([0] if method == "image-only" else PERCENTS)
        for draw in (0, 1)
    }


def test_bd_is_held_against_the_filling_with_the_highest_mean_draw_by_draw():
    # fill-mean is best in the second draw and on the mean, fill-zero in the first.
    known = {"fill-zero": (0.85, 0.70), "fill-mean": (0.80, 0.80), "bd": (0.82, 0.84), "image-only": (0.81, 0.81)}
    figures = summarise(_scores(lambda method, _, draw: known.get(method, (0.6, 0.6))[draw]), {})
    assert figures["planted_bd_minus_best_filling_40"] == pytest.approx(0.03)
    assert figures["planted_bd_minus_best_filling_40_se"] == pytest.approx(0.01)
    assert figures["planted_auc:image-only@100"] == pytest.approx(0.81)
    ratios = ratios_of(figures)
    assert ratios["bd_minus_best_filling_100"] == pytest.approx(0.03)
    assert ratios["bd_minus_image_only_min"] == pytest.approx(0.02)


def test_the_smallest_difference_to_image_only_is_of_all_rates():
    figures = summarise(_scores(lambda method, percent, _: 0.8 - (percent == 20 and method == "bd") * 0.05), {})
    assert ratios_of(figures)["bd_minus_image_only_min"] == pytest.approx(-0.05)


def test_a_table_is_put_between_its_markers_and_nowhere_else(tmp_path):
    rows = table_of(summarise(_scores(lambda *_: 0.8), {}), "planted", "auc")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- it:begin -->\nold\n<!-- it:end -->\nafter\n")
    write_block(page, "it", rows)
    written = page.read_text()
    assert written.startswith("before\n<!-- it:begin -->\n\n| patients without a table | 0 % |")
    assert "| bd − image-only | +0.000 ± 0.000 |" in written
    assert "old" not in written
    assert written.endswith("|\n\n<!-- it:end -->\nafter\n")
    with pytest.raises(SystemExit, match="no place"):
        write_block(page, "other", rows)
