"""A whole run: what comes out, what left each hospital, and that a seed decides every bit."""

import hashlib
import json
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from federation import Federation, write_cohort

from fedpath.client.audit import verify
from fedpath.core.config import FederationConfig, load_federation, load_site
from fedpath.core.models import load_model
from fedpath.core.training.alone import initial_model
from fedpath.core.training.data import load_site_examples
from fedpath.core.training.loop import train
from fedpath.core.training.settings import TrainSettings
from fedpath.server.records import read_rounds

pytestmark = pytest.mark.system


def test_three_hospitals_train_one_model(federation: Federation) -> None:
    federation.configure(training="accumulate_bags = 3")
    federation.start_server()
    federation.start_sites()
    assert [federation.wait(name) for name in ("server", *federation.sites)] == [0, 0, 0, 0]
    run = federation.run_folder()

    manifests = read_rounds(run)
    assert [manifest.round for manifest in manifests] == [1, 2, 3]
    for manifest, following in pairwise(manifests):
        assert following.base == manifest.result
    for manifest in manifests:
        assert {site: part.outcome for site, part in manifest.sites.items()} == dict.fromkeys("ABC", "answered")
        assert manifest.patients == {"image": 24}
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["test"]) == {"A", "B", "C"}
    assert summary["best_round"] in (1, 2, 3)

    _weights_equal_a_literal_average(federation, run)
    _every_hospital_has_the_best_model(federation, run)
    _the_audit_log_accounts_for_every_byte(federation, run)
    _nothing_about_a_patient_reached_the_coordinator(federation)

    # The same seed gives the same weights, to the bit, in a run of its own; what is printed does not matter.
    again = federation.folder / "again"
    federation.start("server", [*federation.server_arguments(again), "--json"])
    for site in federation.sites:
        federation.start(site, [*federation.join_arguments(site), "--json"])
    assert [federation.wait(name) for name in ("server", *federation.sites)] == [0, 0, 0, 0]
    for name in ("last", "best"):
        assert _state(run / f"{name}.safetensors") == _state(federation.run_folder(again) / f"{name}.safetensors")
    assert [m.result for m in read_rounds(federation.run_folder(again))] == [m.result for m in manifests]
    _all_that_is_printed_is_json(federation, again)


def _all_that_is_printed_is_json(federation: Federation, state: Path) -> None:
    """With --json each process prints the lines of its events.jsonl, and a result."""
    told = {name: [json.loads(line) for line in federation.output(name).splitlines()] for name in ("server", "A")}
    kept = [json.loads(line) for line in (state / "events.jsonl").read_text().splitlines()]
    assert told["server"][:-1] == kept
    assert told["server"][-1]["summary"]["rounds"] == 3
    assert [lines[-1]["kind"] for lines in told.values()] == ["result", "result"]
    assert told["A"][-1]["finished"]


def _weights_equal_a_literal_average(federation: Federation, run: Path) -> None:
    """Repeat the run without any federation: train at each site from the mean, average, again."""
    torch.set_num_threads(1)  # as site.toml's compute.threads: more threads sum in another order
    config = load_federation(federation.toml)
    data = {
        site: load_site_examples(load_site(federation.site(site) / "site.toml"), config)["train"]
        for site in federation.sites
    }
    mean = initial_model(config).state_dict()
    for round_ in (1, 2, 3):
        a, b, c = (_trained(config, mean, data[site], site, round_) for site in federation.sites)
        n_a, n_b, n_c = (len({example.patient_id for example in data[site]}) for site in federation.sites)
        # In float32 and this order, to the bit: parameters whose gradient is rounding noise (a bias before a softmax)
        # make Adam amplify any other rounding.
        total = n_a + n_b + n_c
        mean = {name: a[name] * (n_a / total) for name in mean}
        for more, patients in ((b, n_b), (c, n_c)):
            mean = {name: torch.add(mean[name], more[name], alpha=patients / total) for name in mean}
    assert _state(run / "last.safetensors") == {name: tensor.numpy().tobytes() for name, tensor in mean.items()}


def _trained(config: FederationConfig, mean: dict, examples: list, site: str, round_: int) -> dict:
    model = initial_model(config)
    model.load_state_dict(mean)
    digest = hashlib.sha256(f"{config.federation.seed}/{site}/{round_}".encode()).digest()
    train(
        model,
        examples,
        TrainSettings(1, config.training.learning_rate, config.training.weight_decay, True, accumulate_bags=3),
        seed=int.from_bytes(digest[:7]),
        span=((round_ - 1) / 3, round_ / 3),
    )
    return model.state_dict()


def _every_hospital_has_the_best_model(federation: Federation, run: Path) -> None:
    for site in federation.sites:
        received = federation.site(site) / "state" / run.name / "federated.safetensors"
        assert _state(received) == _state(run / "best.safetensors")


def _the_audit_log_accounts_for_every_byte(federation: Federation, run: Path) -> None:
    manifests = read_rounds(run)
    for site in federation.sites:
        records = verify(federation.site(site) / "state" / "audit.jsonl")
        updates = [record.size for record in records if record.kind == "update"]
        assert updates == [manifest.sites[site].received_bytes for manifest in manifests]
        kinds = [record.kind for record in records]
        assert kinds == ["description", "update", "update", "update", "evaluation", "evaluation", "receipt"]


def _nothing_about_a_patient_reached_the_coordinator(federation: Federation) -> None:
    """No name of a slide, a patient or a folder of a hospital is in any file of the coordinator."""
    files = [path for path in federation.state.rglob("*") if path.is_file()]
    assert any(path.name == "flower.db" for path in files)
    for path in files:
        content = path.read_bytes()
        for word in (b"slide-A", b"patient-A", b"slide-B", b"patient-B", str(federation.site("A")).encode()):
            assert word not in content, (path, word)


def _state(path: Path) -> dict[str, bytes]:
    model, _ = load_model(path)
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def test_sites_that_do_not_fit_or_fail_are_named_and_the_others_go_on(federation: Federation) -> None:
    """B's features come from another encoder, C's data is broken: A alone goes on, and each reads why not it."""
    federation.configure(rounds=2, min_sites=1, server="join_timeout_s = 60")
    write_cohort(federation.site("B"), "B", seed=1, encoder="other")
    truncated = federation.site("C") / "features" / "slide-C-01.h5"
    truncated.write_bytes(truncated.read_bytes()[:500])
    # All three must be there before the coordinator asks: it starts with min_sites, so it is started last.
    federation.start_sites()
    for site in federation.sites:
        federation.wait_for_output(site, "waiting up to")
    federation.start_server()

    assert federation.wait("C") == 3
    assert federation.wait("B") == 5
    assert federation.wait("A") == 0
    assert federation.wait("server") == 0
    assert "encoder is 'other', the federation asks for 'noise'" in federation.output("B")
    assert "encoder is 'other', the federation asks for 'noise'" in federation.output("server")
    assert str(truncated) in federation.output("C")
    assert "slide-C-01" not in federation.output("server")
    assert "site C: refused: the site could not do it; its own log says why" in federation.output("server")
    for name in ("A", "B", "C", "server"):
        assert "Traceback" not in federation.output(name)
    summary = json.loads((federation.run_folder() / "summary.json").read_text())
    assert summary["sites"] == ["A"]
    assert set(summary["refused"]) == {"B", "C"}
    for manifest in read_rounds(federation.run_folder()):
        assert set(manifest.sites) == {"A"}


def test_a_killed_and_a_stopped_site_do_not_stop_the_run(federation: Federation) -> None:
    federation.configure(rounds=40, min_sites=1, training="local_epochs = 5", server="round_timeout_s = 60")
    federation.start_sites()
    for site in federation.sites:
        federation.wait_for_output(site, "waiting up to")
    federation.start_server()
    federation.wait_for_output("server", "round 2: counted A, B, C")
    federation.signal("B", signal.SIGKILL)
    federation.signal("C", signal.SIGINT)
    assert federation.wait("C") == 130
    assert "Traceback" not in federation.output("C")
    federation.wait_for_output("server", ": counted A in")
    federation.signal("server", signal.SIGINT)
    assert federation.wait("server") == 130
    assert "Traceback" not in federation.output("server")
    # What was finished is kept, and says who contributed.
    manifests = read_rounds(federation.run_folder())
    assert manifests[0].patients == {"image": 24}
    assert manifests[-1].sites["B"].outcome == "lost"
    assert (federation.run_folder() / "last.safetensors").is_file()


def test_a_latecomer_is_taken_in_and_a_run_that_ends_early_says_so(federation: Federation) -> None:
    federation.configure(rounds=200, min_sites=2, training="local_epochs = 2", server="grace_s = 0")
    federation.start_server()
    federation.start_sites("A", "B")
    federation.wait_for_output("server", "starting without C")
    federation.start_sites("C")
    federation.wait_for_output("server", "counted A, B, C")
    federation.signal("server", signal.SIGINT)
    assert federation.wait("server") == 130
    assert "stopped on request" in federation.output("server")
    for site in federation.sites:
        if federation.wait(site) == 5:
            assert "the run has ended early: stopped on request" in federation.output(site)
        assert "Traceback" not in federation.output(site)
    manifests = read_rounds(federation.run_folder())
    assert set(manifests[0].sites) == {"A", "B"}
    assert set(manifests[-1].sites) == {"A", "B", "C"}
