import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from fedpath.core.report import curves


def drawn(classes, seed, ties):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, 60)
    scores = rng.random((60, classes)) + 0.5 * np.eye(classes)[targets]
    if ties:
        scores = np.round(scores, 1)
    return targets, scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("ties", [False, True])
def test_roc_is_sklearns(ties):
    targets, probabilities = drawn(2, 1, ties)
    fpr, tpr, _ = roc_curve(targets, probabilities[:, 1], drop_intermediate=False)
    ours = curves.roc(targets, probabilities)
    np.testing.assert_allclose(ours, (fpr, tpr), atol=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_area_is_sklearns_macro_auc(classes, ties):
    targets, probabilities = drawn(classes, 2, ties)
    wanted = roc_auc_score(targets, probabilities[:, 1] if classes == 2 else probabilities, multi_class="ovr")
    assert curves.auc(targets, probabilities) == pytest.approx(wanted, abs=1e-12)


def test_auc_is_none_without_both_classes():
    assert curves.auc(np.array([1, 1]), np.array([[0.2, 0.8], [0.1, 0.9]])) is None
    assert curves.auc(np.array([], dtype=np.int64), np.zeros((0, 2))) is None


@pytest.mark.parametrize("ties", [False, True])
def test_precision_recall_is_sklearns(ties):
    targets, probabilities = drawn(2, 3, ties)
    recall, precision, average = curves.precision_recall(targets, probabilities[:, 1])
    wanted_precision, wanted_recall, _ = precision_recall_curve(targets, probabilities[:, 1])
    np.testing.assert_allclose(recall[1:], wanted_recall[:-1][::-1], atol=1e-12)
    np.testing.assert_allclose(precision[1:], wanted_precision[:-1][::-1], atol=1e-12)
    assert average == pytest.approx(average_precision_score(targets, probabilities[:, 1]))
    assert curves.precision_recall(np.array([0, 0]), np.array([0.1, 0.2])) is None
