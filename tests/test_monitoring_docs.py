"""docs/monitoring.md lists what the code exports: every metric with its type, labels and help, every check."""

import re
from pathlib import Path

import pytest

from fedpath.client.monitoring import rows as client
from fedpath.client.policy import CAUSES
from fedpath.core.monitoring.metrics import Row
from fedpath.server.monitoring import rows as server

PAGE = (Path(__file__).parents[1] / "docs" / "monitoring.md").read_text()


def section(heading: str) -> str:
    return PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize(
    ("heading", "rows"), [("Metrics of the coordinator", server.ROWS), ("Metrics of a hospital", client.ROWS)]
)
def test_every_metric_is_listed(heading: str, rows: tuple[Row, ...]) -> None:
    listed = re.findall(
        r"^\| `(\w+)` \| (counter|gauge|histogram) \| (.+?) \| (.+) \|$", section(heading), re.MULTILINE
    )
    wanted = [(row.name, row.kind, ", ".join(f"`{label}`" for label in row.labels) or "–", row.help) for row in rows]
    assert listed == wanted
    assert len({name for name, *_ in wanted}) == len(wanted)


@pytest.mark.parametrize(
    "row", {row.name: row for row in (*server.ROWS, *client.ROWS)}.values(), ids=lambda row: row.name
)
def test_names_and_labels_follow_the_rules(row: Row) -> None:
    assert row.name.startswith("fedpath_")
    assert row.name.endswith("_total") == (row.kind == "counter")
    assert not {"patient", "slide", "path", "file"} & set(row.labels)
    assert row.help.endswith(".")


def test_every_word_of_a_fixed_set_is_listed() -> None:
    words = (*server.RUN_ENDS, *server.OUTCOMES, *server.PHASES, *server.REFUSED_CAUSES, *server.DENIED)
    for heading, known in (
        ("Metrics of the coordinator", words),
        ("Metrics of a hospital", (*client.PHASES, *CAUSES, *client.DATA_CAUSES, *client.ORDER_CAUSES)),
    ):
        text = section(heading)
        assert [word for word in known if not re.search(rf"\b{word}\b", text)] == []


def test_every_check_is_listed() -> None:
    checks = re.findall(r"^\| (coordinator|hospital) \| `(\w+)` \|", section("Health"), re.MULTILINE)
    assert [check for role, check in checks if role == "coordinator"] == list(server.CHECKS)
    assert [check for role, check in checks if role == "hospital"] == list(client.CHECKS)
