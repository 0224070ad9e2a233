"""Which sites are there for which run: policies, goodbyes, agents that stay and agents that leave."""

from collections.abc import Collection, Mapping
from typing import Any

import pytest

from fedpath.core.exchange.contract import FeatureContract
from fedpath.core.exchange.messages import (
    Answer,
    Describe,
    Description,
    Finish,
    Order,
    Receipt,
    Refusal,
    Refuse,
    RunFacts,
)
from fedpath.core.exchange.wire import Arrays
from fedpath.server.attendance import Attendance, Line
from fedpath.server.talk import Asked, Reply

CONTRACT = FeatureContract(encoder="noise", encoder_sha256="0", width=8, mpp=None, patch_px=None, transform="none")


class Sites:
    """Answers every order at once with what was laid down; says who connects when."""

    def __init__(self, names: str) -> None:
        self.there, self.came = set(names), dict.fromkeys(names, 1)
        self.sent: list[tuple[str, Order]] = []
        self.answers: dict[str, Answer] = {}

    def connect(self, site: str) -> None:
        self.there.add(site)
        self.came[site] += 1

    def online(self) -> set[str]:
        return set(self.there)

    def arrivals(self, site: str) -> int:
        return self.came.get(site, 0)

    def post(self, orders: Mapping[str, Order], arrays: Arrays, ttl_s: float) -> list[Asked]:
        self.sent += orders.items()
        return [Asked(site, f"{len(self.sent)}-{site}") for site in orders]

    def next_reply(self, asked: Collection[Asked], timeout_s: float) -> Reply | None:
        one = next(iter(asked))
        return Reply(one, self.answers[one.site], 0, 0)

    def drop(self, asked: Asked) -> None:
        """Nothing is kept."""


def facts(run: str) -> RunFacts:
    return RunFacts.model_validate(
        {
            "federation": "test",
            "run": run,
            "seed": 0,
            "labels": ["normal", "tumour"],
            "features": {"encoder": "noise", "width": 8},
            "model": {"name": "acmil"},
        }
    )


def description(**more: Any) -> Description:
    counts = {"train": 8, "validation": 2, "test": 2}
    return Description(contract=CONTRACT, patients=counts, slides=counts, version="1", **more)


def say(sites: Sites, line: Line, site: str, order: Order, answer: Answer) -> None:
    sites.answers[site] = answer
    (asked,) = line.post({site: order}, {}, 1.0)
    line.next_reply([asked], 0.0)


def begin(sites: Sites, line: Line, run: str, names: str, **more: Any) -> None:
    for site in names:
        say(sites, line, site, Describe(facts=facts(run)), description(**more))


@pytest.fixture
def sites() -> Sites:
    return Sites("AB")


def test_by_default_a_site_takes_part_in_one_run_at_a_time(sites: Sites) -> None:
    attendance = Attendance(sites)
    one, other = attendance.line("one"), attendance.line("other")
    assert one.online() == other.online() == {"A", "B"}
    begin(sites, one, "one", "A")
    assert (one.online(), other.online()) == ({"A", "B"}, {"B"})
    assert attendance.busy("other", "AB") == {"A": ["one"]}
    attendance.over("one")
    assert other.online() == {"A", "B"}


def test_side_by_side_up_to_what_it_allows_and_each_is_told_of_the_others(sites: Sites) -> None:
    attendance = Attendance(sites)
    lines = {run: attendance.line(run) for run in ("one", "two", "three")}
    begin(sites, lines["one"], "one", "AB", max_parallel_runs=2)
    begin(sites, lines["two"], "two", "AB", max_parallel_runs=2)
    assert [line.online() for line in lines.values()] == [{"A", "B"}, {"A", "B"}, set()]
    assert [getattr(order, "beside", None) for _, order in sites.sent] == [[], [], ["one"], ["one"]]


def test_sites_that_are_told_the_same_get_one_object(sites: Sites) -> None:
    """It is written once, however many it goes to."""
    attendance = Attendance(sites)
    begin(sites, attendance.line("one"), "one", "AB", max_parallel_runs=2)
    order = Describe(facts=facts("two"))
    attendance.line("two").post({"A": order, "B": order}, {}, 1.0)
    (_, first), (_, second) = sites.sent[-2:]
    assert first is second


def test_what_was_allowed_last_time_counts_until_a_site_says_otherwise(sites: Sites) -> None:
    attendance = Attendance(sites, {"A": 2})
    attendance.line("one").post(dict.fromkeys("AB", Describe(facts=facts("one"))), {}, 1.0)
    assert attendance.line("two").online() == {"A"}


@pytest.mark.parametrize("stays", [True, False])
def test_who_has_heard_the_goodbye_is_gone_or_there_for_others(sites: Sites, stays: bool) -> None:
    attendance = Attendance(sites)
    one, other = attendance.line("one"), attendance.line("other")
    begin(sites, one, "one", "AB")
    say(sites, one, "A", Finish(facts=facts("one"), base="0" * 64, best_round=1), Receipt(stays=stays))
    assert "A" not in one.online()
    assert ("A" in other.online()) is stays
    sites.connect("A")
    assert "A" in one.online()
    assert "A" in other.online()


def test_a_goodbye_that_nobody_heard_leaves_the_site_where_it_is(sites: Sites) -> None:
    attendance = Attendance(sites)
    line = attendance.line("one")
    begin(sites, line, "one", "A")
    line.post({"A": Finish(facts=facts("one"), base="0" * 64, best_round=1)}, {}, 1.0)
    assert "A" in attendance.line("other").online()


def test_a_site_that_refuses_or_is_refused_is_asked_again_when_it_has_connected_anew(sites: Sites) -> None:
    attendance = Attendance(sites)
    line = attendance.line("one")
    begin(sites, line, "one", "B")
    say(sites, line, "A", Describe(facts=facts("one")), Refusal(reason="no"))
    say(sites, line, "B", Refuse(facts=facts("one"), reason="no"), Receipt(stays=True))
    assert line.online() == set()
    assert attendance.line("two").online() == {"A", "B"}
    sites.connect("A")
    sites.connect("B")
    assert line.online() == {"A", "B"}


def test_between_stages_a_site_stays_in_its_run(sites: Sites) -> None:
    attendance = Attendance(sites)
    line = attendance.line("one")
    begin(sites, line, "one", "A")
    say(sites, line, "A", Finish(facts=facts("one"), base="0" * 64, best_round=1, more=True), Receipt())
    assert "A" in line.online()
    assert "A" not in attendance.line("other").online()
