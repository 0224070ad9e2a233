"""What the page keeps of the events, and how much."""

import json
from typing import Any

import pytest

from fedpath.core.events import Event
from fedpath.server.page.live import _TAKES, Live

RUN = "20261127-000000"


@pytest.fixture
def live() -> Live:
    return Live(["A", "B", "C"])


def tell(live: Live, at: float, kind: str, **values: Any) -> None:
    live(Event(kind, at, {"run": RUN} | values))


def over(live: Live, at: float, outcome: str, site: str, reason: str = "", **more: Any) -> None:
    values = {"training_loss": 0.5, "validation_auc": 0.8, "sent_bytes": 10, "received_bytes": 20, "of_round": None}
    tell(live, at, f"site_{outcome}", round=1, site=site, reason=reason, **(values | more))


def begin(live: Live, at: float = 100.0) -> None:
    tell(live, at, "round_started", round=1, rounds=3, sites=["A", "B", "C"], deadline_s=60.0)


def test_a_round_as_it_goes(live: Live) -> None:
    tell(live, 90.0, "waiting", online=["A", "B"], missing=["C"], needed=3)
    sites = live.sections()["sites"]
    assert [sites[site]["state"] for site in "ABC"] == ["here", "here", "away"]
    assert live.sections()["live"][RUN]["missing"] == ["C"]
    begin(live)
    live(Event("moving", 101.0, {"site": "A", "way": "fetching", "done": 5, "total": 10}))
    assert live.sections()["sites"]["A"]["moving"] == {"way": "fetching", "done": 5, "total": 10, "at": 101.0}
    live(Event("moving", 102.0, {"site": "A", "way": "fetching", "done": 10, "total": 10}))
    live(Event("moving", 105.0, {"site": "A", "way": "sending", "done": 5, "total": 10}))
    over(live, 107.0, "answered", "A")
    over(live, 108.0, "refused", "B", "its update is not finite", training_loss=float("nan"))
    now = live.sections()
    run = now["live"][RUN]
    assert (run["round"], run["rounds"], run["began"], run["ended"], run["deadline_s"]) == (1, 3, 100.0, None, 60.0)
    a, b, c = (run["parts"][site] for site in "ABC")
    assert (a["outcome"], a["fetched"], a["sending"], a["ended"]) == ("answered", 102.0, 105.0, 107.0)
    assert (b["outcome"], b["reason"], c["outcome"]) == ("refused", "its update is not finite", "working")
    assert [now["sites"][site]["state"] for site in "ABC"] == ["answered", "refused", "working"]
    assert now["sites"]["A"]["moving"] is None
    tell(live, 110.0, "quorum_missing", round=1, counted=1, needed=2, missing=["C"])
    assert live.sections()["live"][RUN]["missing"] == ["C"]
    tell(live, 111.0, "round_finished", round=1, seconds=11.0, answered=["A"], contributed=["A"])
    assert live.sections()["live"][RUN]["ended"] == 111.0
    tell(live, 112.0, "run_finished", best_round=1, auc=0.8)
    now = live.sections()
    assert now["live"] == {}
    assert now["sites"]["A"]["state"] == "here"
    assert now["sites"]["B"]["state"] == "refused"


def test_it_stays_small(live: Live) -> None:
    for number in range(100):
        live(Event("round_started", 1.0, {"run": f"run-{number}", "round": 1, "rounds": 1, "sites": ["A"]}))
        over(live, 2.0, "refused", "A", "x" * 100_000)
        over(live, 2.0, "answered", f"nobody-{number}")
        live(Event("moving", 2.0, {"site": f"nobody-{number}", "way": "sending", "done": 1, "total": 2}))
    assert len(json.dumps(live.sections())) < 40_000
    assert set(live.sections()["sites"]) == set("ABC")


def test_an_event_without_its_values_does_no_harm(live: Live) -> None:
    """A listener that fails would fail the coordinator."""
    in_words = {"waiting", "stage_started", "round_started", "encoding", "quorum_missing", "evaluated"}
    for kind in _TAKES:
        live(Event(kind, 1.0, {}))
        if kind not in in_words:
            tell(live, 1.0, kind)
