import dataclasses

import pytest

from fedpath.core.report import Interval, ModelResult, Prediction


def test_an_auc_must_be_that_of_the_predictions(data):
    federated = data.federated
    with pytest.raises(ValueError, match="its predictions give"):
        dataclasses.replace(federated, test_auc=Interval(federated.test_auc.value - 0.01))
    with pytest.raises(ValueError, match="at A"):
        dataclasses.replace(federated, site_auc={"A": Interval(0.123)})


def test_auc_by_hospital_comes_from_the_predictions_and_keeps_a_stated_interval(data):
    federated = data.federated
    value = federated.auc_at("A").value
    assert federated.auc_at("A") == Interval(value)
    stated = Interval(value, value - 0.1, 1.0)
    assert dataclasses.replace(federated, site_auc={"A": stated}).auc_at("A") == stated


def test_auc_is_unknown_where_a_class_is_missing():
    predictions = (Prediction("A", 1, (0.1, 0.9)), Prediction("B", 0, (0.8, 0.2)), Prediction("B", 1, (0.3, 0.7)))
    model = ModelResult("federated", "federated", Interval(1.0), predictions)
    assert model.auc_at("A") is None
    assert model.auc_at("B") == Interval(1.0)


def test_contradictions_are_refused(data):
    with pytest.raises(ValueError, match="not among the hospitals: C"):
        dataclasses.replace(data, hospitals=data.hospitals[:2])
    with pytest.raises(ValueError, match="same name"):
        dataclasses.replace(data, models=(*data.models, data.models[0]))
    with pytest.raises(ValueError, match="best round 99"):
        dataclasses.replace(data, best_round=99)
    shorter = dataclasses.replace(data.pooled, predictions=data.pooled.predictions[1:], test_auc=None)
    with pytest.raises(ValueError, match="same slides"):
        dataclasses.replace(data, models=(*data.models[:-1], shorter))
    with pytest.raises(ValueError, match="names its site"):
        dataclasses.replace(data.federated, kind="local")


def test_mean_of_local(data):
    values = [model.test_auc.value for model in data.locals]
    assert data.mean_of_local == pytest.approx(sum(values) / 3)
    unknown = dataclasses.replace(data.models[1], test_auc=None)
    assert dataclasses.replace(data, models=(data.models[0], unknown, *data.models[2:])).mean_of_local is None
