"""A real Prometheus and a real Alertmanager (Debian's), on free ports, with the rules and configuration of `deploy/`.

Both are given copies of the shipped files in which addresses and durations are others; what is asked is the same.
"""

import copy
import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml
from federation import free_port, wait_until

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "deploy" / "prometheus"
RULES = sorted((SHIPPED / "rules").glob("*.yml"))


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool."""
    return subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=60, check=False)


def rules_of(*files: Path) -> list[dict[str, Any]]:
    """All rules of some files."""
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


class Prometheus:
    """A running Prometheus, asked over its HTTP API."""

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)

    def ready(self) -> bool:
        """Whether it answers queries."""
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, expr: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        return self._api("query", query=expr)["result"]

    def range(self, expr: str, *, start: float, end: float, step: float = 1.0) -> list[dict[str, Any]]:
        """The series that an expression had in a span of time."""
        return self._api("query_range", query=expr, start=start, end=end, step=step)["result"]

    def rules(self) -> list[dict[str, Any]]:
        """All rules with their state."""
        return [rule for group in self._api("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped."""
        return self._api("targets")["activeTargets"]

    def names(self) -> set[str]:
        """Every metric there is a series of."""
        answer: Any = self._api("label/__name__/values")
        return set(answer)

    def _api(self, what: str, **parameters: Any) -> Any:
        answer = self._client.get(f"/api/v1/{what}", params=parameters).json()
        assert answer["status"] == "success", (what, parameters, answer)
        return answer["data"]


class Webhook:
    """What Alertmanager has delivered."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/"
        self.alerts: list[dict[str, Any]] = []

    def firing(self, name: str) -> list[dict[str, Any]]:
        """The firing alerts of a name, as they came."""
        return [one for one in self.alerts if one["labels"]["alertname"] == name and one["status"] == "firing"]


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Listen for what Alertmanager delivers."""
    hook = Webhook(free_port())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["content-length"])))
            hook.alerts.extend(content["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", int(hook.url.rstrip("/").rpartition(":")[2])), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def alertmanager(folder: Path, hook: Webhook) -> Iterator[int]:
    """Run Alertmanager with the shipped configuration, which delivers to ``hook`` at once; its port."""
    config = yaml.safe_load((SHIPPED / "alertmanager.yml").read_text())
    config["route"] |= {"group_wait": "0s", "group_interval": "1s"}
    for route in config["route"].get("routes", []):
        route |= {"group_wait": "0s", "group_interval": "1s"}
    for receiver in config["receivers"]:
        for kind in [key for key in receiver if key.endswith("_configs")]:
            del receiver[kind]
        receiver["webhook_configs"] = [{"url": hook.url, "send_resolved": True}]
    file, port = folder / "alertmanager.yml", free_port()
    file.write_text(yaml.safe_dump(config))
    words = ["prometheus-alertmanager", f"--config.file={file}", f"--storage.path={folder / 'alerts'}",
             f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]  # fmt: skip
    with _process(words, folder / "alertmanager.log"):
        wait_until(lambda: _answers(f"http://127.0.0.1:{port}/-/ready"), "Alertmanager answers", 30)
        yield port


@contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, Sequence[Mapping[str, Any]]], rules: Sequence[Path], *, alerts_to: int
) -> Iterator[Prometheus]:
    """Run Prometheus with the shipped configuration.

    Args:
        folder: for its data.
        targets: of each job, as `static_configs`.
        rules: files of rules.
        alerts_to: port of Alertmanager.
    """
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"}
    config["rule_files"] = [str(rule) for rule in rules]
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [f"127.0.0.1:{alerts_to}"]}]}]
    config["scrape_configs"] = [
        job | {"static_configs": list(targets[job["job_name"]])}
        for job in config["scrape_configs"]
        if job["job_name"] in targets
    ]
    assert len(config["scrape_configs"]) == len(targets)
    file, port = folder / "prometheus.yml", free_port()
    file.write_text(yaml.safe_dump(config))
    words = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'series'}",
             f"--web.listen-address=127.0.0.1:{port}", "--rules.alert.resend-delay=1s"]  # fmt: skip
    with _process(words, folder / "prometheus.log"):
        running = Prometheus(port)
        wait_until(running.ready, "Prometheus answers", 30)
        yield running


def hasty(rules: Path, folder: Path, *, thresholds: Mapping[str, Mapping[str, str]]) -> Path:
    """Write a copy of a file of rules whose alerts wait for one second only; return where it is.

    Args:
        rules: the file.
        folder: where the copy goes.
        thresholds: by alert, the durations in its expression that are to be others. Each must be there once.
    """
    content = copy.deepcopy(yaml.safe_load(rules.read_text()))
    for group in content["groups"]:
        group.pop("interval", None)
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "1s"
            for old, new in thresholds.get(rule.get("alert", ""), {}).items():
                assert rule["expr"].count(old) == 1, (rule["alert"], old)
                rule["expr"] = rule["expr"].replace(old, new)
    copied = folder / rules.name
    copied.write_text(yaml.safe_dump(content))
    return copied


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def _process(words: Sequence[str], log: Path) -> Iterator[None]:
    """Run a process as long as the block runs; show what it said where the block fails."""
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"GOMAXPROCS": "1"})
        try:
            yield
        except BaseException:
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")
            raise
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
