"""The real Prometheus and Alertmanager watch a real federation.

Every query of every dashboard and rule has an answer, and a hospital that is killed is reported.
"""

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import pytest
from dashboards import BOARDS, Asked, asked, selectors
from federation import Federation, free_port, wait_until
from prometheus import RULES, Prometheus, Webhook, alertmanager, hasty, prometheus, rules_of, webhook

pytestmark = pytest.mark.system

MEANT_TO_BE_EMPTY = {
    "ray_": "no Ray cluster is running: the names are compared with Ray's own dashboards in tests/deploy",
    "fedpath_client_gpu_": "only where there is a GPU",
    "fedpath_client_trainer_memory_bytes": "0 but for DeepSpeed's processes",
    "fedpath_run_stage": "only of a pipeline",
    "ALERTS": "nothing is wrong",
}
"""Beginnings of metrics that have no series in this federation, and why."""
SITES = ("A", "B", "C")
T = TypeVar("T")


@dataclass(frozen=True)
class Watched:
    """A federation that is being watched."""

    federation: Federation
    series: Prometheus
    hook: Webhook
    began: float


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A federation in the middle of its rounds, scraped every second."""
    folder, began = tmp_path_factory.mktemp("watched"), time.time()
    with ExitStack() as stack:
        federation = stack.enter_context(Federation(folder, SITES))
        # More rounds than the test lasts, and two hospitals are enough for one.
        federation.configure(rounds=500, min_sites=2)
        ports = {name: free_port() for name in ("server", *SITES)}
        federation.start("server", [*federation.server_arguments(), "--metrics-port", str(ports["server"])])
        for site in SITES:
            federation.start(site, [*federation.join_arguments(site), "--metrics-port", str(ports[site])])
        targets = {
            "fedpath-coordinator": [{"targets": [f"127.0.0.1:{ports['server']}"]}],
            "fedpath-site": [{"targets": [f"127.0.0.1:{ports[site]}"], "labels": {"site": site}} for site in SITES],
        }
        rules = [hasty(file, folder, thresholds={"FedpathSiteOffline": {"> 120": "> 4"}}) for file in RULES]
        hook = stack.enter_context(webhook())
        series = stack.enter_context(
            prometheus(folder, targets, rules, alerts_to=stack.enter_context(alertmanager(folder, hook)))
        )
        wait_until(lambda: _value(series, "max(fedpath_round)") >= 3, "Prometheus sees the third round", 60)
        wait_until(lambda: _value(series, "count(up == 1)") == len(ports), "every process is scraped", 60)
        recorded = {rule["record"] for rule in rules_of(*RULES) if "record" in rule}
        wait_until(lambda: recorded <= series.names(), "the rules are evaluated", 20)
        yield Watched(federation, series, hook, began)


def test_every_query_has_an_answer(watched: Watched) -> None:
    queries = [query for board in BOARDS for query in asked(board)]
    silent = {query for query in queries if not _explained(query.expr)}

    def left() -> set[str]:
        silent.difference_update([query for query in silent if _answer(watched, query)])
        return {f"{query}: {query.expr}" for query in silent}

    assert _at_last(left) == set()
    # What is asked and explained is all that there is to explain.
    assert [start for start in MEANT_TO_BE_EMPTY if not any(start in query.expr for query in queries)] == []


def test_every_rule_finds_its_series(watched: Watched) -> None:
    # Prometheus has read and evaluated them all; what is to be recorded was, or there would be no `watched`.
    assert [(rule["name"], rule["lastError"]) for rule in watched.series.rules() if rule["health"] != "ok"] == []
    rules = rules_of(*RULES)
    assert len(watched.series.rules()) == len(rules)
    missing = {
        (rule.get("alert") or rule["record"], selector)
        for rule in rules
        for selector in selectors(rule["expr"])
        if not _explained(selector)
    }

    def left() -> set[tuple[str, str]]:
        missing.difference_update([one for one in missing if watched.series.ask(one[1])])
        return missing

    assert _at_last(left) == set()
    # Asked as shipped, with the limits as they are: nothing is wrong. How full this machine's disk is says nothing.
    firing = {rule["alert"] for rule in rules if "alert" in rule and watched.series.ask(rule["expr"])}
    assert firing <= {"FedpathDiskLow"}


def test_every_alert_would_fire_if_its_limits_were_others(watched: Watched) -> None:
    """Its parts fit together: the labels of what it compares and joins are those of real series."""
    quiet = {rule["alert"]: _loosened(rule["expr"]) for rule in rules_of(*RULES) if "alert" in rule}
    # Of hospitals that were never there, and all were.
    del quiet["FedpathSiteMissing"]

    def left() -> set[str]:
        for name in [name for name, expr in quiet.items() if watched.series.ask(expr)]:
            del quiet[name]
        return set(quiet)

    assert _at_last(left) == set()


def test_a_hospital_that_is_killed_is_reported(watched: Watched) -> None:
    watched.federation.signal("C", signal.SIGKILL)

    def reported(name: str) -> set[str]:
        return {alert["labels"]["site"] for alert in watched.hook.firing(name)}

    wait_until(lambda: "C" in reported("FedpathSiteOffline"), "the webhook hears that C is offline", 60)
    wait_until(lambda: "C" in reported("FedpathTargetDown"), "the webhook hears that C does not answer", 60)
    (alert, *_) = [one for one in watched.hook.firing("FedpathSiteOffline") if one["labels"]["site"] == "C"]
    assert alert["annotations"]["summary"] == "Hospital C is offline"
    assert alert["annotations"]["runbook"] == "docs/alerts.md#fedpathsiteoffline"
    # The round goes on with the others, so nothing says that it does not.
    assert not watched.hook.firing("FedpathQuorumLost")


def _loosened(expr: str) -> str:
    """Move every limit so far away that whatever is compared with it is beyond."""
    expr = re.sub(r"(?<![=!<>])>(?!=)", "> -1e18 +", expr)
    expr = re.sub(r"(?<![=!<>])<(?!=)", "< 1e18 +", expr)
    return re.sub(r"== 0\b", ">= 0", expr)


def _at_last(left: Callable[[], set[T]]) -> set[T]:
    """What is left when nothing is, or after 15 seconds: on a busy machine a scrape may fail once."""
    deadline = time.monotonic() + 15
    wait_until(lambda: not left() or time.monotonic() > deadline, "everything is asked", 60)
    return left()


def _answer(watched: Watched, query: Asked) -> bool:
    """Whether a query has series, now or since the beginning."""
    if query.instant:
        return bool(watched.series.ask(query.expr))
    return bool(watched.series.range(query.expr, start=watched.began, end=time.time()))


def _explained(expr: str) -> bool:
    """Whether an expression names something that is meant to be empty."""
    return any(start in expr for start in MEANT_TO_BE_EMPTY)


def _value(series: Prometheus, expr: str) -> float:
    found = series.ask(expr)
    return float(found[0]["value"][1]) if found else 0.0
