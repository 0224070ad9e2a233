"""The rules and alerts: valid, tested from both sides of every limit, and explained where their links lead."""

import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus import ROOT, RULES, SHIPPED, promtool, rules_of

CASES = Path(__file__).parent / "rules"
ALERTS = [rule for rule in rules_of(*RULES) if "alert" in rule]
# A number of an expression: not of a name, a label or a range.
_NUMBER = re.compile(r"(?<![\w:.])-?\d+(?:\.\d+)?(?![\w:.])")
_NO_LIMITS = re.compile(r'"[^"]*"|\[[^\]]*\]')


def _amtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["amtool", *words], capture_output=True, text=True, timeout=60, check=False)


def test_rules_and_configuration_are_valid() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", *RULES)
    assert done.returncode == 0, done.stderr
    done = promtool("check", "config", SHIPPED / "prometheus.yml")
    assert done.returncode == 0, done.stderr
    done = _amtool("check-config", SHIPPED / "alertmanager.yml")
    assert done.returncode == 0, done.stderr


def test_critical_alerts_go_out_at_once() -> None:
    for severity, receiver in (("critical", "operators-now"), ("warning", "operators")):
        config = f"--config.file={SHIPPED / 'alertmanager.yml'}"
        assert _amtool("config", "routes", "test", config, f"severity={severity}").stdout.split() == [receiver]


def test_what_is_left_out_because_of_another_alert_exists() -> None:
    names = {rule["alert"] for rule in ALERTS}
    rules = yaml.safe_load((SHIPPED / "alertmanager.yml").read_text())["inhibit_rules"]
    matchers = [text for rule in rules for side in ("source", "target") for text in rule[f"{side}_matchers"]]
    assert {text.split('"')[1] for text in matchers if text.startswith('alertname="')} <= names


@pytest.mark.parametrize("rules", RULES, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(rules: Path) -> None:
    done = promtool("test", "rules", CASES / rules.name)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_every_alert_says_what_is_wrong_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in ("critical", "warning")
    says = alert["annotations"]
    assert says.keys() == {"summary", "description", "remedy", "runbook"}
    # Whom it is about: one of these every series has.
    assert re.search(r"\$labels\.(site|run|instance)\b", says["description"])
    page, _, anchor = says["runbook"].partition("#")
    assert anchor == alert["alert"].lower()
    text = (ROOT / page).read_text()
    assert f"### {alert['alert']}\n" in text
    # The table of the page has it with its severity.
    (row,) = re.findall(rf"^\| \[{alert['alert']}\]\(#{anchor}\) \| (.+?) \|", text, flags=re.MULTILINE)
    assert alert["labels"]["severity"] in row.split(", ")


def test_every_alert_of_the_page_exists() -> None:
    text = (ROOT / "docs" / "alerts.md").read_text()
    assert set(re.findall(r"^### (Fedpath\w+)$", text, flags=re.MULTILINE)) == {rule["alert"] for rule in ALERTS}


def _changes(rule: dict[str, Any]) -> Iterator[dict[str, str]]:
    """What may be wrong with a rule: a number by half or double (0: by one or two), how long it waits."""
    outside = _NO_LIMITS.sub(lambda found: "·" * len(found.group()), rule["expr"])
    for found in _NUMBER.finditer(outside):
        value = float(found.group())
        for other in (-1.0, 2.0) if value == 0 else (value / 2, value * 2):
            yield {"expr": rule["expr"][: found.start()] + f"{other:g}" + rule["expr"][found.end() :]}
    if (waits := rule.get("for")) is not None:
        yield {"for": "0s"}
        yield {"for": f"{2 * int(waits[:-1])}{waits[-1]}"}


def _changeable() -> list[Any]:
    """The rules with something to change: file, place in it."""
    return [
        pytest.param(file, place, id=f"{file.stem}-{rule.get('alert') or rule['record']}-{place}")
        for file in RULES
        for place, rule in enumerate(rules_of(file))
        if any(True for _ in _changes(rule))
    ]


@cache
def _loaded(file: Path) -> str:
    """A YAML file as JSON, which promtool reads as well, and Python much faster."""
    return json.dumps(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize(("rules", "place"), _changeable())
def test_a_changed_limit_is_noticed(rules: Path, place: int, tmp_path: Path) -> None:
    changes = list(_changes(rules_of(rules)[place]))
    for number, change in enumerate(changes):
        content, cases = json.loads(_loaded(rules)), json.loads(_loaded(CASES / rules.name))
        (group,) = content["groups"]
        group["rules"][place] |= change
        name = group["rules"][place].get("alert") or group["rules"][place]["record"]
        cases["rule_files"] = [f"rules-{number}.yml"]
        # Those that are about it: whatever else fails says nothing.
        cases["tests"] = [
            case for case in cases["tests"] if f'"{name}"' in json.dumps(case) or f"{name}{{" in str(case)
        ]
        (tmp_path / f"rules-{number}.yml").write_text(json.dumps(content))
        (tmp_path / f"cases-{number}.yml").write_text(json.dumps(cases))
    done = promtool("test", "rules", *(tmp_path / f"cases-{number}.yml" for number in range(len(changes))))
    verdicts = re.findall(r"^  (SUCCESS|FAILED)", done.stdout + done.stderr, flags=re.MULTILINE)
    assert "parse error" not in done.stdout + done.stderr
    assert dict(zip(map(str, changes), verdicts, strict=True)) == {str(change): "FAILED" for change in changes}
