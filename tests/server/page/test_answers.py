"""What the coordinator's page answers, over real HTTP: runs, files, the form, the log, the live data."""

import hashlib
import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from fedpath.server.page.proposal import choices

from .conftest import Coordinator

HOSTILE = "</script><img src=x onerror=alert(1)> \u2028 {{7*7}} \x1b[31m"


def latest(coordinator: Coordinator) -> str:
    return coordinator.registry.runs("test")[0].run


def test_the_list_and_the_story_of_a_run(coordinator: Coordinator) -> None:
    name = latest(coordinator)
    (run,) = [run for run in coordinator.visitor.sections("runs") if run["run"] == name]
    assert (run["model"], run["rounds"], run["done"]) == ("acmil", 2, 2)
    story = coordinator.visitor.get(f"/api/runs/{name}")
    (stage,) = story["stages"]
    assert [round_["round"] for round_ in stage["rounds"]] == [1, 2]
    for round_ in stage["rounds"]:
        assert set(round_["sites"]) == set("ABC")
        assert all(part["outcome"] == "answered" for part in round_["sites"].values())
    assert set(stage["validation"]) == set(stage["test"]) == set("ABC")
    sums = {site: sum(round_["sites"][site]["received_bytes"] for round_ in stage["rounds"]) for site in "ABC"}
    assert {site: of["received"] for site, of in story["traffic"].items()} == sums
    status, _, said = coordinator.visitor.ask("GET", "/api/runs/none")
    assert status == 404
    assert "there is none" in json.loads(said)["error"]
    about = coordinator.visitor.sections("about")
    assert (about["federation"], about["kind"], about["registry"]) == ("test", "serve", None)
    assert coordinator.visitor.sections("sites")["A"]["about"]["encoder"] == "noise"


def test_only_results_can_be_downloaded(coordinator: Coordinator) -> None:
    name, visitor = latest(coordinator), coordinator.visitor
    folder = coordinator.state / "runs" / name
    files = {file["name"]: file for file in visitor.get(f"/api/runs/{name}")["files"]}
    assert files.keys() == {"best.safetensors", "last.safetensors", "summary.json"}
    for file in files:
        status, headers, body = visitor.ask("GET", f"/files/{name}/{file}")
        assert status == 200
        assert hashlib.sha256(body).digest() == hashlib.sha256((folder / file).read_bytes()).digest()
        assert headers["content-disposition"].startswith("attachment")
        assert headers["content-type"] == "application/octet-stream"
    (folder / "secret.txt").write_text("secret")
    (folder / "stages").mkdir(exist_ok=True)
    for path in (
        "secret.txt",
        "run.json",
        "../../registry.db",
        "..%2F..%2Fregistry.db",
        "%2e%2e/%2e%2e/registry.db",
        "stages/../secret.txt",
        "stages/../best.safetensors",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "best.safetensors%00.txt",
        "",
    ):
        status, _, body = visitor.ask("GET", f"/files/{name}/{path}")
        assert status == 404, path
        assert b"secret" not in body.replace(b"secret.txt", b"")
    for path in ("/assets/../app.py", "/assets/..%2Fapp.py", "/assets/index.html", "/assets/login.html", "/app.py"):
        assert visitor.ask("GET", path)[0] == 404, path
    assert visitor.ask("GET", f"/files/..%2F..%2Fruns/{name}/best.safetensors")[0] == 404


def test_the_form_begins_with_recipes_of_this_federation(coordinator: Coordinator) -> None:
    form = coordinator.visitor.get("/api/form")
    assert [choice["name"] for choice in form] == ["", "acmil", "longmil", "bd", "vib"]
    assert "SECRET" not in json.dumps(form)
    for choice in form[:3]:
        status, said = coordinator.visitor.post("/api/check", {"toml": choice["toml"]})
        assert status == 200, said
        assert 'encoder = "noise"' in choice["toml"]


@pytest.mark.parametrize(
    "written", ['[server]\nregistry = "{}"\n', 'server.registry = "{}"\n', 'server = {{ registry = "{}" }}']
)
def test_the_registrys_password_is_in_no_form(coordinator: Coordinator, tmp_path: Path, written: str) -> None:
    secret = "postgresql+psycopg://fedpath:password@db/fedpath"
    config = coordinator.page.config
    config = config.model_copy(update={"server": config.server.model_copy(update={"registry": SecretStr(secret)})})
    (tmp_path / "federation.toml").write_text(written.format(secret))
    assert "password" not in json.dumps(choices(config, tmp_path / "federation.toml"))


def test_a_run_is_submitted_stopped_and_resumed(coordinator: Coordinator) -> None:
    visitor = coordinator.visitor
    recipe = next(choice for choice in visitor.get("/api/form") if choice["name"] == "acmil")
    content = {"toml": recipe["toml"], "name": HOSTILE.split(" \u2028")[0], "priority": 3, "after": ""}
    status, said = visitor.post("/api/runs", content)
    assert status == 201, said
    run = coordinator.registry.get("test", said["run"])
    assert run is not None
    assert (run.state, run.priority, run.label, run.rounds) == ("queued", 3, content["name"], 20)
    assert Path(str(run.folder)).parent == (coordinator.state / "runs").absolute()
    status, said = visitor.post("/api/runs", content)
    assert status == 400
    assert "called so already" in said["error"]
    status, said = visitor.post(f"/api/runs/{run.run}/stop", {})
    assert (status, "out of the queue" in said["says"]) == (200, True)
    status, said = visitor.post(f"/api/runs/{run.run}/stop", {})
    assert status == 400
    assert "nothing to stop" in said["error"]
    status, said = visitor.post(f"/api/runs/{run.run}/resume", {})
    assert (status, "in the queue again" in said["says"]) == (200, True)
    visitor.post(f"/api/runs/{run.run}/stop", {})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"toml": ""}, "holds no federation.toml"),
        ({}, "holds no federation.toml"),
        ({"toml": 7}, "holds no federation.toml"),
        ({"toml": "= ="}, "not valid TOML"),
        ({"toml": "[federation]\nnme = 'x'"}, "the form's federation.toml: key 'federation.nme' is unknown"),
        ([], "no JSON object"),
    ],
)
def test_what_is_wrong_in_a_form_is_named(coordinator: Coordinator, content: object, says: str) -> None:
    before = len(coordinator.registry.runs("test"))
    for path in ("/api/check", "/api/runs"):
        status, said = coordinator.visitor.post(path, content)
        assert status == 400
        assert says in said["error"]
        assert said["remedy"]
        assert str(coordinator.state.parent) not in json.dumps(said)
    assert len(coordinator.registry.runs("test")) == before


def test_fields_that_cannot_be_used_are_named(coordinator: Coordinator) -> None:
    toml = coordinator.visitor.get("/api/form")[0]["toml"]
    for field, value in (("name", "two\nlines"), ("name", 7), ("priority", 1.5), ("priority", True), ("after", "none")):
        status, said = coordinator.visitor.post("/api/runs", {"toml": toml, field: value})
        assert status == 400, (field, value)
        assert said["error"]
    other = toml.replace('sites = ["A", "B", "C"]', 'sites = ["A"]').replace('name = "test"', 'name = "other"')
    status, said = coordinator.visitor.post("/api/runs", {"toml": other})
    assert status == 400
    assert "federation.name" in said["error"]
    own = {"Origin": f"http://{coordinator.visitor.host}"}
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        assert coordinator.visitor.ask("POST", "/api/runs", own | headers, b'{"toml": ""}')[0] == 400


def test_what_hospitals_say_travels_as_data(coordinator: Coordinator) -> None:
    coordinator.events.emit("site_refused", run="r", round=1, site="A", reason=HOSTILE, training_loss=float("nan"))
    lines = coordinator.visitor.sections("log")["lines"]
    assert lines[-1]["text"] == f"site_refused: {HOSTILE}"
    assert coordinator.visitor.sections("sites")["A"]["says"] == HOSTILE
    live = coordinator.visitor.sections("live")
    assert "r" in live
    coordinator.events.emit("run_ended", run="r", error="over", remedy="none")


def test_a_registry_that_is_away_is_said_and_the_rest_goes_on(coordinator: Coordinator) -> None:
    coordinator.events.emit("registry_away", reason="the database is away")
    assert coordinator.visitor.sections("about")["registry"] == "the database is away"
    coordinator.events.emit("registry_back")
    assert coordinator.visitor.sections("about")["registry"] is None
