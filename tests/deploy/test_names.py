"""Every metric, label and word that a rule or a dashboard names is one that something exports."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from dashboards import BOARDS, asked, labels_of, selectors
from prometheus import RULES, rules_of

from fedpath.client.monitoring.rows import ROWS as CLIENT
from fedpath.core.monitoring.metrics import Row
from fedpath.server.monitoring.rows import ROWS as SERVER

EXPORTED = {row.name: row for row in (*SERVER, *CLIENT)}
RECORDED = {rule["record"] for rule in rules_of(*RULES) if "record" in rule}
SCRAPED = {"instance", "job", "site"}
"""Labels that the scrape adds; `site` where the configuration says so."""


def _expressions() -> Iterator[tuple[str, str]]:
    """What is asked, and by whom."""
    for rule in rules_of(*RULES):
        yield rule.get("alert") or rule["record"], rule["expr"]
    for board in BOARDS:
        for query in asked(board):
            yield str(query), query.expr


def _row(metric: str) -> Row | None:
    """The metric of a series; a histogram has three kinds."""
    return EXPORTED.get(metric) or EXPORTED.get(re.sub(r"_(bucket|sum|count)$", "", metric))


@pytest.mark.parametrize(("who", "expr"), list(_expressions()))
def test_what_is_asked_for_exists(who: str, expr: str) -> None:
    named = selectors(expr)
    # Nothing that looks like a metric of ours has escaped.
    assert set(re.findall(r"\bfedpath_\w+", expr)) <= {part for name in named.values() for part in name.split(":")}
    for selector, metric in named.items():
        if metric in RECORDED or metric == "up" or metric.startswith(("process_", "ray_")):
            continue
        row = _row(metric)
        assert row is not None, metric
        for label, (how, value) in labels_of(selector).items():
            assert label in {*row.labels, *SCRAPED}, selector
            known = {values[row.labels.index(label)] for values in row.known} if label in row.labels else set()
            if how in ("=", "!=") and known and value:
                assert value in known, selector


def test_recorded_values_and_exported_metrics_are_used() -> None:
    used = {metric for _, expr in _expressions() for metric in selectors(expr).values()}
    assert used >= RECORDED
    # The other way round: what is exported is looked at somewhere, but for what is about the exporter itself.
    seen = {row.name for metric in used if (row := _row(metric)) is not None}
    assert EXPORTED.keys() - seen == {"fedpath_child_events_total"}


def test_names_of_ray_are_those_of_rays_own_dashboards() -> None:
    package = find_spec("ray")
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    named = {metric for _, expr in _expressions() for metric in selectors(expr).values() if metric.startswith("ray_")}
    assert named
    assert [metric for metric in named if not re.search(rf"\b{metric}\b", text)] == []
