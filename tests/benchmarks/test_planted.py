"""Planted patients tell as much as they are said to, and lose their tables as they should."""

import math

import numpy as np
import pytest
import torch
from _planted_modalities import MARK, Planted, breast_cohort, directions, perfect_scores, planted_cohort, without_tables

from fedpath.core.training.metrics import auc


def _labels(cohort):
    return np.array([example.target for example in cohort.examples])


def _tables(cohort):
    return np.stack([example.bag.clinical.values_F.numpy() for example in cohort.examples])


@pytest.mark.parametrize("overlap", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("image", "clinical"), [(1.5, 1.5), (1.0, 2.0), (1.2, 0.0)])
def test_a_perfect_reader_of_the_evidence_reaches_the_stated_aucs(image, clinical, overlap):
    planted = Planted(image, clinical, overlap, patches=1, witnesses=1.0, width=2)
    cohort = planted_cohort(planted, 10_000, seed=3, part=0)
    z_B2, y_B = cohort.evidence_B2, _labels(cohort)
    d_2, rho = np.array([image, clinical]), planted.correlation
    # log p(z | 1) - log p(z | 0) of two normals with one covariance; pinv, as an overlap of 1 may leave one dimension.
    ratio_B = z_B2 @ np.linalg.pinv(np.array([[1, rho], [rho, 1]])) @ d_2
    for name, score_B in {"image": z_B2[:, 0], "clinical": z_B2[:, 1], "both": ratio_B}.items():
        assert auc(y_B, score_B) == pytest.approx(planted.best_auc[name], abs=0.012), name
    has_B = np.arange(len(y_B)) % 3 == 0
    found_B = perfect_scores(planted, z_B2, has_B)
    assert found_B == pytest.approx(np.where(has_B, ratio_B, image * z_B2[:, 0]))


def test_overlap_goes_from_adding_up_to_adding_nothing():
    assert Planted(1.0, 2.0, 0.0).both == pytest.approx(math.hypot(1.0, 2.0))
    assert Planted(1.0, 2.0, 1.0).both == pytest.approx(2.0)
    rho = Planted(1.0, 2.0, 0.5).correlation
    assert Planted(1.0, 2.0, 0.5).both ** 2 == pytest.approx((1 + 4 - 4 * rho) / (1 - rho**2))


def test_the_evidence_can_be_read_from_slide_and_table_without_loss():
    cohort = planted_cohort(Planted(), 300, seed=5, part=0)
    numbers_BF = _tables(cohort)[:, :4]
    readable_BE = np.column_stack([numbers_BF, np.ones(len(numbers_BF))])
    _, residual, *_ = np.linalg.lstsq(readable_BE, cohort.evidence_B2[:, 1], rcond=None)
    assert residual[0] < 1e-12
    u_D, v_D = directions(Planted(), seed=5)
    for example, z_i in zip(cohort.examples, cohort.evidence_B2[:, 0], strict=True):
        features_ND = example.bag.features_ND.double().numpy()
        is_witness_N = features_ND @ v_D > MARK / 2
        assert is_witness_N.sum() == 4
        assert features_ND[is_witness_N].mean(axis=0) @ u_D == pytest.approx(z_i, abs=1e-5)


def test_the_same_seed_draws_the_same_patients_and_parts_differ():
    first, again = (planted_cohort(Planted(), 20, seed=1, part=0) for _ in range(2))
    other = planted_cohort(Planted(), 20, seed=1, part=1)
    assert np.array_equal(_tables(first), _tables(again))
    assert torch.equal(first.examples[7].bag.features_ND, again.examples[7].bag.features_ND)
    assert not np.array_equal(_tables(first), _tables(other))
    assert not {e.patient_id for e in first.examples} & {e.patient_id for e in other.examples}


def test_rates_are_nested_and_exact_and_leave_slides_alone():
    examples = planted_cohort(Planted(), 50, seed=1, part=0).examples
    without: set[str] = set()
    for percent in (0, 20, 40, 60, 80, 100):
        left = without_tables(examples, percent, seed=9)
        gone = {example.patient_id for example in left if example.bag.clinical is None}
        assert len(gone) == 50 * percent // 100
        assert without <= gone
        assert [e.patient_id for e in left] == [e.patient_id for e in examples]
        assert all(a.bag.features_ND is b.bag.features_ND for a, b in zip(left, examples, strict=True))
        without = gone
    assert without_tables(examples, 40, seed=9) == without_tables(examples, 40, seed=9)
    assert without_tables(examples, 40, seed=9) != without_tables(examples, 40, seed=10)


def test_the_real_table_keeps_its_patients_and_classes():
    cohort = breast_cohort(Planted(), seed=0)
    assert len(cohort.examples) == 569
    assert sum(_labels(cohort)) == 212
    assert list(cohort.schema.fields) == ["mean_texture", "mean_smoothness", "mean_symmetry", "texture_error"]
    assert auc(_labels(cohort), cohort.evidence_B2[:, 0]) == pytest.approx(Planted().best_auc["image"], abs=0.04)
