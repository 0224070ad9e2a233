"""`fedpath server serve` and `fedpath run` as real processes: the queue, a kill, stop and resume, side by side."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from command import Run, fedpath
from federation import Federation, wait_until

from fedpath.core.models import load_model
from fedpath.server.records import read_rounds

pytestmark = pytest.mark.system


def serve(federation: Federation, name: str = "server", *more: str) -> None:
    federation.start(name, ["server", "serve", "--config", federation.toml, "--dir", federation.state, *more])


def stay(federation: Federation, *sites: str) -> None:
    for site in sites or federation.sites:
        federation.start(site, [*federation.join_arguments(site), "--stay"])


def run(federation: Federation, *arguments: str | Path) -> Run:
    done = fedpath("run", *arguments, "--dir", federation.state)
    assert done.code == 0, done.err
    return done


def submit(federation: Federation, name: str, *more: str) -> str:
    told = run(federation, "submit", "--config", federation.toml, "--name", name, "--json", *more)
    return str(json.loads(told.out)["run"])


def facts(federation: Federation, name: str) -> dict[str, Any]:
    return dict(json.loads(run(federation, "show", name, "--json").out))


def wait_for_state(federation: Federation, name: str, state: str) -> None:
    def there() -> bool:
        found = facts(federation, name)
        assert found["state"] == state or found["state"] not in ("failed", "finished"), found
        return bool(found["state"] == state)

    wait_until(there, f"run {name} is {state}", deadline_s=300)


def weights(federation: Federation, name: str) -> dict[str, dict[str, bytes]]:
    folder = federation.state / "runs" / name
    return {
        kind: {key: tensor.numpy().tobytes() for key, tensor in load_model(folder / kind)[0].state_dict().items()}
        for kind in ("best.safetensors", "last.safetensors")
    }


def test_a_queue_survives_a_kill_and_a_run_that_was_stopped_ends_with_the_same_bits(federation: Federation) -> None:
    federation.configure(rounds=4, training="local_epochs = 5")
    disturbed, whole = submit(federation, "disturbed"), submit(federation, "whole")
    federation.configure(rounds=1)
    last = submit(federation, "last", "--after", "whole", "--priority", "5")
    stay(federation)
    serve(federation)
    federation.wait_for_output("server", f"{disturbed}: round 1: counted A, B, C")

    # kill -9: the one that was served goes on, the queue is as it was.
    federation.signal("server", signal.SIGKILL)
    assert federation.wait("server") == -signal.SIGKILL
    assert facts(federation, "disturbed")["state"] == "running"
    serve(federation, "again")
    federation.wait_for_output("again", f"{disturbed}: begins (disturbed)")
    assert [facts(federation, name)["state"] for name in ("whole", "last")] == ["queued", "queued"]
    federation.wait_for_output("again", f"{disturbed}: round 2: counted A, B, C")

    # Stopped, the next one is served meanwhile; resumed, it goes on.
    assert "is asked to stop" in run(federation, "stop", "disturbed").out
    wait_for_state(federation, "disturbed", "stopped")
    wait_for_state(federation, "whole", "running")
    run(federation, "resume", "disturbed")
    watched = fedpath("run", "watch", "disturbed", "--dir", federation.state)
    assert watched.code == 0, watched.err
    assert f"run {disturbed} is finished" in watched.out
    assert "round 4: counted A, B, C" in watched.out
    wait_for_state(federation, "last", "finished")
    assert weights(federation, disturbed) == weights(federation, whole)
    assert len(read_rounds(federation.state / "runs" / last)) == 1
    compared = json.loads(run(federation, "compare", "disturbed", "whole", "last", "--json").out)
    assert compared["settings"]["training.rounds"] == {disturbed: 4, whole: 4, last: 1}
    assert compared["runs"][disturbed]["counted"] == {site: [1, 2, 3, 4] for site in "ABC"}

    # The hospitals were there all the time.
    for site in federation.sites:
        assert federation.ended(site) is None
        assert "Traceback" not in federation.output(site)
        assert (federation.site(site) / "state" / last / "federated.safetensors").is_file()
    federation.signal("again", signal.SIGINT)
    assert federation.wait("again") == 130
    assert "Traceback" not in federation.output("again")


def test_runs_side_by_side_where_hospitals_allow_it(federation: Federation) -> None:
    for site in "AB":
        with (federation.site(site) / "site.toml").open("a") as file:
            file.write("[policy]\nmax_parallel_runs = 2\n")
    federation.configure(rounds=3, min_sites=2, training="local_epochs = 5", server="grace_s = 3")
    first, second = submit(federation, "first"), submit(federation, "second")
    stay(federation)
    serve(federation, "server", "--parallel", "2")
    for name in ("first", "second"):
        wait_for_state(federation, name, "finished")
    one, other = facts(federation, "first"), facts(federation, "second")
    assert one["started"] < other["started"] < one["ended"]
    assert [sorted(round_["sites"]) for round_ in one["round"]] == [["A", "B", "C"]] * 3
    # C takes part in one run at a time: in the second when it is free, and in no round of it before.
    for round_ in other["round"]:
        assert set("AB") <= set(round_["sites"])
        assert {part["outcome"] for part in round_["sites"].values()} == {"answered"}
    assert other["refused"] == {}
    for name in (first, second):
        for site in "AB":
            assert (federation.site(site) / "state" / name / "federated.safetensors").is_file()
    for name in ("server", *federation.sites):
        assert "Traceback" not in federation.output(name)


def test_an_agent_that_does_not_stay_leaves_after_its_run(federation: Federation) -> None:
    """The next run does not take it for one that is there."""
    federation.configure(rounds=1)
    first, second = submit(federation, "first"), submit(federation, "second")
    serve(federation)
    federation.start_sites("A")
    stay(federation, "B", "C")
    assert federation.wait("A") == 0
    assert first in federation.output("A")
    wait_for_state(federation, "first", "finished")
    federation.wait_for_output("server", f"{second}: waiting: 2 of 3 sites are here; missing: A")
    federation.start_sites("A")
    assert federation.wait("A") == 0
    wait_for_state(federation, "second", "finished")
