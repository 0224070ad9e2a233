"""What benchmarks/vib.py makes of what it measured: planted patches, recall, the sums of a slide's operations."""

import numpy as np
import pytest
import torch
from _drawn_cohort import planted_patches
from _vib_compute import EPOCHS, SELECT_EPOCHS, Cost, K, N, Way, compared, pipeline, pipeline_table
from _vib_recall import recall_at

from fedpath.core.bags import Bag
from fedpath.core.config.stages import TuningSection


def grid(edge: int, columns: int, rows: int) -> Bag:
    corners = [(edge * x, edge * y) for y in range(rows) for x in range(columns)]
    return Bag("s", torch.zeros(len(corners), 1), torch.tensor(corners), edge)


def test_a_patch_is_planted_when_half_of_it_lies_in_nests() -> None:
    bag = grid(256, 4, 1)
    # All of patch 0, 60 % of patch 1; two nests hold 30 % each of patch 2; patch 3 has 30 %.
    nests = [
        [(0, 0), (409, 0), (409, 256), (0, 256)],
        [(512, 0), (588, 0), (588, 256), (512, 256)],
        [(690, 0), (844, 0), (844, 256), (690, 256)],
    ]
    assert planted_patches(bag, [[(float(x), float(y)) for x, y in nest] for nest in nests]).tolist() == [
        True,
        True,
        True,
        False,
    ]
    assert not planted_patches(bag, []).any()


def test_recall_counts_what_is_planted_among_the_best() -> None:
    ranking, planted = np.array([4, 2, 0, 1, 3]), np.array([True, False, True, False, False])
    assert [recall_at(ranking, planted, share) for share in (0.0, 0.2, 0.4, 0.6, 1.0)] == [0, 0, 0.5, 1, 1]


def test_the_sums_of_a_slide() -> None:
    chosen = {
        "full": Way(N, TuningSection(), "none"),
        "frozen": Way(N, TuningSection(), "none"),
        "sparse": Way(K, TuningSection(), "upper"),
    }
    costs = {"full": Cost(3e9, 0.3), "frozen": Cost(2e9, 0.2), "sparse": Cost(2.5e9, 0.25)}
    figures = compared(chosen, costs)
    assert figures["full_tflop_a_step"] == pytest.approx(N * 3e9 / 1e12)
    assert figures["compute_full_vs_sparse"] == pytest.approx(
        figures["compute_full_vs_frozen"] * figures["compute_frozen_vs_sparse"]
    )
    assert figures["seconds_full_vs_sparse"] == pytest.approx(N * 0.3 / (K * 0.25))

    whole = pipeline(costs["full"], costs["sparse"], once=1e9, selecting=1e6)
    spent = 2 * N * 1e9 + SELECT_EPOCHS * N * 1e6 + EPOCHS * K * 2.5e9
    assert whole["compute_full_vs_pipeline"] == pytest.approx(EPOCHS * N * 3e9 / spent)
    assert float(pipeline_table(whole)[-2][1].replace(",", "")) == pytest.approx(spent / 1e12, abs=0.5)
