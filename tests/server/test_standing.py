"""How the coordinator weighs what the sites say about a model."""

import pytest

from fedpath.core.exchange.messages import Metrics
from fedpath.server.records import RoundManifest, SiteRound
from fedpath.server.standing import Best, Standing, weighted


def test_a_figure_is_weighted_by_patients() -> None:
    figures = {"A": Metrics(auc=0.5, patients=10), "B": Metrics(auc=1.0, patients=30)}
    assert weighted(figures, "auc") == pytest.approx((0.5 * 10 + 1.0 * 30) / 40)


def test_sites_without_the_figure_do_not_count() -> None:
    figures = {"A": Metrics(auc=0.5, patients=10), "B": Metrics(auc=None, loss=2.0, patients=90), "C": Metrics()}
    assert weighted(figures, "auc") == 0.5
    assert weighted(figures, "loss") == 2.0


def test_nobody_says_anything() -> None:
    assert weighted({}, "auc") is None
    assert weighted({"A": Metrics()}, "auc") is None
    assert weighted({"A": Metrics(auc=0.9, patients=0)}, "auc") is None


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ((0.8, 0.5), (0.9, 0.9), True),  # AUC first
        ((0.8, 0.5), (0.7, 0.1), False),
        ((0.8, 0.5), (0.8, 0.4), True),  # then the loss
        ((0.8, 0.5), (0.8, 0.5), False),  # the earlier one stays
        ((None, 0.5), (None, 0.4), True),
        ((None, 0.5), (None, 0.6), False),
        ((None, 0.5), (0.1, 9.0), True),
        ((0.8, 0.5), (None, None), False),
        ((None, None), (0.1, 9.0), True),
        ((None, None), (None, None), True),  # nobody can validate: the latest
    ],
)
def test_the_best_has_the_highest_auc_then_the_lowest_loss(
    before: tuple[float | None, float | None], after: tuple[float | None, float | None], kept: bool
) -> None:
    assert Best(3, *before).beaten_by(*after) is kept


def test_any_trained_model_beats_the_initial_one() -> None:
    assert Best(0, 0.99, 0.01).beaten_by(0.1, 9.0)
    assert Best().beaten_by(None, None)


def test_a_site_goes_on_from_its_last_order_whose_update_counted() -> None:
    standing = Standing({})
    assert standing.last_counted("A") == 0
    for round_, part in [
        (1, SiteRound(outcome="answered")),
        (2, SiteRound(outcome="refused", reason="NaN")),
        (3, SiteRound(outcome="answered", of_round=2)),
        (4, SiteRound(outcome="late")),
    ]:
        standing.advance(_manifest(round_, {"A": part}))
    assert standing.last_counted("A") == 2
    assert standing.last_counted("B") == 0


def _manifest(round_: int, sites: dict[str, SiteRound]) -> RoundManifest:
    return RoundManifest(
        round=round_, base="", result="", sites=sites, patients={}, validation_auc=None, validation_loss=None,
        seconds=1.0, aggregation_s=0.0,
    )  # fmt: skip


def test_which_of_a_sites_updates_counted_last() -> None:
    standing = Standing({})
    outcomes = [("answered", None), ("late", None), ("answered", 2), ("refused", None), ("answered", None)]
    for round_, (outcome, of_round) in enumerate(outcomes, 1):
        part = SiteRound(outcome=outcome, of_round=of_round)
        standing.manifests.append(
            RoundManifest(
                round=round_, base="", result="", sites={"A": part}, patients={}, validation_auc=None,
                validation_loss=None, seconds=0.0, aggregation_s=0.0,
            )
        )  # fmt: skip
    assert standing.last_counted("A") == 5
    # Round 3 counted what was trained on the model of round 2.
    assert [standing.last_counted("A", upto) for upto in range(6)] == [0, 1, 1, 2, 2, 5]
    assert standing.last_counted("B") == 0
