"""A round's deadline follows from what earlier rounds took."""

from fedpath.core.config.federated import DeadlineSection
from fedpath.server.deadline import deadline_s
from fedpath.server.records import RoundManifest, SiteRound

SETTINGS = DeadlineSection(factor=2.0, floor_s=30.0)


def took(**seconds: float) -> RoundManifest:
    """A round in which site A, B, … answered after so many seconds, and Z not at all."""
    sites = {site: SiteRound(outcome="answered", seconds=value) for site, value in seconds.items()}
    sites["Z"] = SiteRound(outcome="late", seconds=0.0)
    return RoundManifest(
        round=1, base="a" * 64, result="b" * 64, sites=sites, patients={}, validation_auc=None, validation_loss=None,
        seconds=1.0, aggregation_s=0.0,
    )  # fmt: skip


def test_the_first_round_has_all_the_time() -> None:
    assert deadline_s(SETTINGS, 3600.0, []) == 3600.0
    assert deadline_s(SETTINGS, 3600.0, [took()]) == 3600.0


def test_it_is_a_multiple_of_what_the_slowest_took() -> None:
    assert deadline_s(SETTINGS, 3600.0, [took(A=10, B=40)]) == 80.0
    # The median of 40, 50 and 500.
    assert deadline_s(SETTINGS, 3600.0, [took(A=40), took(B=500), took(A=50, B=7)]) == 100.0


def test_it_stays_between_floor_and_longest() -> None:
    assert deadline_s(SETTINGS, 3600.0, [took(A=1)]) == 30.0
    assert deadline_s(SETTINGS, 60.0, [took(A=1000)]) == 60.0


def test_the_last_five_rounds_count() -> None:
    slow, fast = [took(A=1000)] * 20, [took(A=20)] * 5
    assert deadline_s(SETTINGS, 3600.0, slow + fast) == 40.0
