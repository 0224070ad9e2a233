import dataclasses

import numpy as np
import pytest

from fedpath.core.report import Interval, ModelResult, wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.874, "0.87"),
        (0.9949, "0.99"),
        (0.9977, "0.998"),
        (0.99999, "0.999"),
        (1.0, "1.00"),
        (None, "—"),
        (np.nan, "—"),
    ],
)
def test_auc_never_rounds_up_to_one(value, text):
    assert wording.auc(value) == text


def test_labels_with_and_without_interval():
    assert wording.auc_label(Interval(0.87, 0.81, 0.92)) == "0.87 [0.81–0.92]"
    assert wording.auc_label(Interval(0.87, float("nan"), 0.92)) == "0.87"
    assert wording.auc_label(None) == "—"


@pytest.mark.parametrize(("value", "text"), [(0.936, "94 %"), (0.9977, "99.8 %"), (0.99999, "99.9 %"), (1.0, "100 %")])
def test_percent(value, text):
    assert wording.percent(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (540_312, "540 kB"), (5_403_120, "5.4 MB"), (3 * 10**12, "3000 GB")],
)
def test_size(count, text):
    assert wording.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.42 s"), (2.6, "2.6 s"), (59.4, "59 s"), (125, "2 min 05 s"), (11_400, "3 h 10 min")],
)
def test_duration(seconds, text):
    assert wording.duration(seconds) == text


def at(data, federated, local, pooled, low=None):
    """The example with these AUCs and no predictions."""

    def result(model, value, low=None):
        interval = Interval(value, low, None if low is None else min(value + 0.05, 1.0))
        return ModelResult(model.name, model.kind, interval, (), model.site)

    models = [
        result(data.federated, federated, low),
        *(result(m, local) for m in data.locals),
        result(data.pooled, pooled),
    ]
    return dataclasses.replace(data, models=tuple(models))


def test_verdict_says_how_often_a_tumour_slide_ranks_above_a_normal_one(data):
    sentences = wording.verdict(at(data, 0.94, 0.8, 0.95, low=0.88))
    assert sentences[0] == (
        "The federated model ranks a random tumour slide above a random normal one in 94 % of cases "
        "(95 % confidence interval 88–99 %)."
    )
    assert "0.80 on average (A alone 0.80, B alone 0.80, C alone 0.80)" in sentences[1]
    assert sentences[1].endswith("its whole confidence interval lies above that average.")
    assert sentences[2].endswith("reaches 0.95: 0.01 above the federated model.")


def test_verdict_claims_no_more_than_the_interval_allows(data):
    assert "may be chance" in wording.verdict(at(data, 0.84, 0.8, 0.85, low=0.7))[1]


def test_verdict_admits_when_federating_did_not_help(data):
    sentences = wording.verdict(at(data, 0.80, 0.804, 0.80, low=0.7))
    assert "did not help" in sentences[1]
    assert sentences[2].endswith("the same as the federated model.")


def test_verdict_without_comparison_or_result(data):
    alone = dataclasses.replace(data, models=data.models[:1])
    assert len(wording.verdict(alone)) == 2
    assert "42 test slides (21 normal and 21 tumour) of 3 hospitals" in wording.verdict(alone)[1]
    assert wording.verdict(dataclasses.replace(data, models=())) == [
        "This run has no test result for a federated model."
    ]


def test_verdict_speaks_of_bags_where_there_are_no_slides(data):
    bags = dataclasses.replace(data, federation=dataclasses.replace(data.federation, mpp=None))
    assert "a random tumour bag above" in wording.verdict(bags)[0]


def test_verdict_gives_the_range_when_there_are_many_hospitals(data):
    few = at(data, 0.94, 0.8, 0.95, low=0.88)
    many = [ModelResult(f"local-{i}", "local", Interval(0.7 + i / 100), (), f"H{i}") for i in range(8)]
    sentence = wording.verdict(dataclasses.replace(few, models=(few.models[0], *many)))[1]
    assert "(from 0.70, H0 alone, to 0.77, H7 alone)" in sentence
