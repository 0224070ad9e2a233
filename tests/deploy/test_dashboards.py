"""The dashboards: as their generator makes them, complete, and about metrics that exist."""

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from dashboards import BOARDS, ROOT, panels

GENERATOR = ROOT / "deploy" / "grafana" / "generate.py"
_LABELLED = {"timeseries", "stat", "state-timeline", "heatmap"}


def test_the_committed_dashboards_are_those_of_the_generator(tmp_path: Path) -> None:
    subprocess.run([sys.executable, GENERATOR, tmp_path], check=True, capture_output=True, timeout=60)
    made = sorted(tmp_path.glob("*.json"))
    assert [path.name for path in made] == [path.name for path in BOARDS] == ["coordinator.json", "site.json"]
    for path, committed in zip(made, BOARDS, strict=True):
        assert path.read_bytes() == committed.read_bytes(), "run `python deploy/grafana/generate.py` and commit"


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_every_panel_is_explained(board: Path) -> None:
    ids: list[int] = []
    for panel in panels(board):
        name = panel["title"]
        ids.append(panel["id"])
        assert panel["description"].endswith("."), name
        assert panel["datasource"]["uid"] == "${datasource}", name
        assert panel["fieldConfig"]["defaults"]["unit"], name
        assert panel["targets"], name
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", name
            assert target["legendFormat"] or panel["type"] not in _LABELLED, name
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), name
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_panels_lie_beside_one_another(board: Path) -> None:
    def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
        a, b = one["gridPos"], other["gridPos"]
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"] or a["y"] + a["h"] <= b["y"]
        return not (apart or b["y"] + b["h"] <= a["y"])

    for panel in panels(board):
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, panel["title"]
    assert [
        (one["title"], other["title"]) for one, other in combinations(panels(board), 2) if overlap(one, other)
    ] == []
