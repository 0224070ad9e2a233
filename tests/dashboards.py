"""What the dashboards and rules of `deploy/` ask Prometheus: every query, and the series each one names."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
# What Grafana puts in for its own variables; a reader's choices are all at first.
_VARIABLES = {"$__rate_interval": "10s", "$__range": "1m", "$__interval": "1s"}
_SELECTOR = re.compile(r"(?<![\w:\"])((?:fedpath|ray|process|up)[\w:]*|[a-z_]+:fedpath_[\w:]*)(\{[^}]*\})?(?!\s*\()")


@dataclass(frozen=True)
class Asked:
    """A query of a dashboard."""

    board: str
    panel: str
    """Title of the panel, or what else asks."""
    expr: str
    instant: bool

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}"


def panels(board: Path) -> Iterator[dict[str, Any]]:
    """All panels of a dashboard, without the headings."""
    return (panel for panel in json.loads(board.read_text())["panels"] if panel["type"] != "row")


def asked(board: Path) -> Iterator[Asked]:
    """All queries of a dashboard as Prometheus gets them: panels, variables, annotations."""
    content = json.loads(board.read_text())
    for panel in panels(board):
        for target in panel["targets"]:
            yield Asked(board.stem, panel["title"], filled(target["expr"]), target["instant"])
    for variable in content["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert found, variable["query"]
            # A label without values makes an empty list.
            expr = f"count by ({found[2]}) ({_with(filled(found[1]), found[2])})"
            yield Asked(board.stem, f"variable {variable['name']}", expr, True)
    for annotation in content["annotations"]["list"]:
        yield Asked(board.stem, f"annotation {annotation['name']}", filled(annotation["expr"]), False)


def filled(expr: str) -> str:
    """Put values in for a dashboard's variables: all hospitals, all runs."""
    for name, value in _VARIABLES.items():
        expr = expr.replace(name, value)
    expr = re.sub(r"\$(instance|run|site)\b", ".*", expr)
    assert "$" not in expr, expr
    return expr


def selectors(expr: str) -> dict[str, str]:
    """The series that an expression names: selector → metric."""
    return {found[0]: found[1] for found in _SELECTOR.finditer(expr)}


def labels_of(selector: str) -> Mapping[str, tuple[str, str]]:
    """The labels that a selector asks for: label → operator and value."""
    return {label: (how, value) for label, how, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', selector)}


def _with(selector: str, label: str) -> str:
    """Ask for series that have a label."""
    if selector.endswith("}"):
        return f'{selector[:-1]}, {label}!=""}}'
    return f'{selector}{{{label}!=""}}'
