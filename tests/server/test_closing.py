"""The end of a run: what is kept of it does not depend on which site answered first."""

import threading
from collections.abc import Collection
from pathlib import Path

import pytest
from in_process import Sites, settings, write_sites

from fedpath.core.config import FederationConfig
from fedpath.core.events import Event, EventLog
from fedpath.core.exchange.groups import to_arrays
from fedpath.core.training.alone import initial_model
from fedpath.server.closing import Close
from fedpath.server.folder import RunFolder
from fedpath.server.rounds import facts_of
from fedpath.server.standing import Standing
from fedpath.server.talk import Asked, Reply

NAMES = ("A", "B", "C")
CONFIG = settings(NAMES, server={"address": "localhost:1"})


class LastFirst(Sites):
    """Sites of which the last one that was asked answers first."""

    def next_reply(self, asked: Collection[Asked], timeout_s: float) -> Reply | None:
        """The answer of the last of them."""
        return super().next_reply(list(asked)[::-1], timeout_s)


class Leaving(Sites):
    """Sites of which B goes away with an order in hand."""

    _gone = False

    def next_reply(self, asked: Collection[Asked], timeout_s: float) -> Reply | None:
        """The answer of the first of them."""
        if not self._gone and any(one.site == "B" for one in asked):
            self._gone = True
            self.leave("B")
        return super().next_reply(asked, timeout_s)


@pytest.mark.parametrize("back", [True, False])
def test_a_site_that_goes_away_is_asked_again_when_it_is_back(tmp_path: Path, back: bool) -> None:
    write_sites(tmp_path / "hospitals", NAMES)
    patience = {"deadline": {"quorum_wait_s": 30.0 if back else 0.5}}
    config, events = FederationConfig.model_validate(CONFIG | patience), list[Event]()
    sites, folder = Leaving(tmp_path / "hospitals", NAMES), RunFolder(tmp_path / "run", config)
    standing = folder.standing(to_arrays(initial_model(config)))

    def hear(event: Event) -> None:
        events.append(event)
        if back and event.kind == "figures_missing":
            sites.come("B")

    log, facts = EventLog(None, hear), facts_of(config, "run")
    closing = Close(config, facts, sites, folder, log, threading.Event()).figures(standing, list(NAMES))
    there = list(NAMES) if back else ["A", "C"]
    assert (list(closing.validation), list(closing.test or {})) == (there, there)
    waited = [event.values for event in events if event.kind == "figures_missing"]
    assert waited[0] == {"what": "validation figures", "missing": ["B"]}
    missing = [(event.values["site"], event.values["split"]) for event in events if event.kind == "evaluation_missing"]
    assert missing == ([] if back else [("B", "validation"), ("B", "test")])


@pytest.mark.parametrize("back", [True, False])
def test_a_site_that_goes_away_during_the_goodbye_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    monkeypatch.setattr("fedpath.server.closing._RETURN_S", 30.0 if back else 0.5)
    write_sites(tmp_path / "hospitals", NAMES)
    server = {"server": {"address": "localhost:1", "grace_s": 0.0}}
    config, events = FederationConfig.model_validate(CONFIG | server), list[Event]()
    sites, folder = Leaving(tmp_path / "hospitals", NAMES), RunFolder(tmp_path / "run", config)
    standing = folder.standing(to_arrays(initial_model(config)))

    def hear(event: Event) -> None:
        events.append(event)
        if back and event.kind == "figures_missing":
            sites.come("B")

    close = Close(config, facts_of(config, "run"), sites, folder, EventLog(None, hear), threading.Event())
    assert close.say_goodbye(standing, list(NAMES), more=False) == (list(NAMES) if back else ["A", "C"])
    unheard = [event.values["site"] for event in events if event.kind == "farewell_unheard"]
    assert unheard == ([] if back else ["B"])


@pytest.fixture
def close(tmp_path: Path) -> tuple[Close, Standing, LastFirst]:
    """The end of a run of three hospitals."""
    write_sites(tmp_path / "hospitals", NAMES)
    config, sites = FederationConfig.model_validate(CONFIG), LastFirst(tmp_path / "hospitals", NAMES)
    folder = RunFolder(tmp_path / "run", config)
    standing = folder.standing(to_arrays(initial_model(config)))
    return (
        Close(config, facts_of(config, "run"), sites, folder, EventLog(), threading.Event()),
        standing,
        sites,
    )


@pytest.mark.parametrize("more", [True, False])
def test_the_sites_that_have_the_model_are_named_in_one_order(
    close: tuple[Close, Standing, LastFirst], more: bool
) -> None:
    ending, standing, sites = close
    assert ending.say_goodbye(standing, list(NAMES), more=more) == list(NAMES)
    assert [site for site, kind in sites.heard if kind == "finish"] == ["C", "B", "A"]


def test_the_figures_are_kept_in_one_order(close: tuple[Close, Standing, LastFirst]) -> None:
    ending, standing, sites = close
    closing = ending.figures(standing, list(NAMES))
    assert [site for site, _ in sites.heard[:3]] == ["C", "B", "A"]
    assert list(closing.validation) == list(NAMES)
    assert list(closing.test or {}) == list(NAMES)
