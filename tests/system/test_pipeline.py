"""A pipeline from slides to a model of tuned features, by real processes, disturbed and undisturbed."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import Federation, wait_until
from slide_hospitals import ENCODER, MPP, PATCH_PX, write_slide_hospital

from fedpath.client.audit import verify
from fedpath.core.bags import read_meta
from fedpath.core.encoders.registry import encoder_sha256, info_of, load_encoder
from fedpath.core.models import load_model
from fedpath.server.records import read_rounds

pytestmark = pytest.mark.system

ROUNDS = 4
SMALL = "options = { inner = 8, attention = 8 }"
PIPELINE = f"""
[[stage]]
kind = "select"
model = {{ name = "vib", {SMALL} }}
training = {{ rounds = 1 }}
[[stage]]
kind = "fine-tune"
model = {{ name = "abmil", {SMALL} }}
tuning = {{ patches = {{ most = 16, least = 4 }}, encoder_learning_rate = 1e-3 }}
training = {{ rounds = {ROUNDS}, local_epochs = 4 }}
[[stage]]
kind = "encode"
[[stage]]
kind = "train"
training = {{ rounds = 1 }}
"""


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """Two hospitals with drawn slides."""
    with Federation(tmp_path, ["A", "B"]) as running:
        for look, site in enumerate("AB"):
            write_slide_hospital(running.site(site), site, look=look)
        running.configure(model=f'[model]\nname = "abmil"\n{SMALL}', training=PIPELINE, rounds=1)
        text = running.toml.read_text()
        features = f'encoder = "{ENCODER}"\nwidth = {info_of(ENCODER).width}\nmpp = {MPP}\npatch_px = {PATCH_PX}\n'
        head, tail = text.split("[features]\n")
        running.toml.write_text(f"{head}[features]\n{features}{tail.split(chr(10), 4)[4]}")
        yield running


def test_a_pipeline_that_is_killed_on_both_sides_ends_with_the_bits_of_one_that_is_not(federation: Federation) -> None:
    whole = _undisturbed(federation)
    _what_each_stage_left(federation, whole)
    _what_left_the_hospitals(federation)

    federation.start_server()
    federation.start_sites()
    federation.wait_for_output("server", "stage 2 of 4: fine-tune")
    run = federation.run_folder()
    rounds = run / "stages" / "2-fine-tune"
    wait_until(lambda: rounds.exists() and len(read_rounds(rounds)) >= 1, "a round of fine-tuning")
    federation.signal("B", signal.SIGKILL)
    federation.signal("server", signal.SIGKILL)
    federation.wait("server")
    federation.wait("B")
    assert 1 <= len(read_rounds(rounds)) < ROUNDS
    names = _go_on(federation)

    assert "done already: select" in federation.output("server-2")
    for name in names:
        assert "Traceback" not in federation.output(name)
    assert _models(run) == _models(whole)
    assert _tuned(run) == _tuned(whole)
    results = [m.result for m in read_rounds(rounds)]
    assert results == [m.result for m in read_rounds(whole / "stages" / "2-fine-tune")]
    for site in federation.sites:
        for stage, file in (("fine-tune", "encoder.safetensors"), ("train", "federated.safetensors")):
            here, there = (federation.site(site) / "state" / folder.name / stage / file for folder in (run, whole))
            assert _content(here) == _content(there), (site, file)


def _go_on(federation: Federation) -> list[str]:
    """Give the same commands again until the run is over, as its people would; return the processes' names.

    The coordinator's state says that a site is there until its heartbeats have been missed, so one that is back before
    that may ask in vain. As every site counts here, it says so and ends, and the sites that hear of it end too.
    """
    agents = {"A": "A", "B": "B-2"}
    federation.start("B-2", federation.join_arguments("B"))
    names = [*agents.values()]
    for attempt in range(2, 7):
        server = f"server-{attempt}"
        federation.start_server(name=server)
        names.append(server)

        def all_ended(server: str = server, attempt: int = attempt) -> bool:
            for site, agent in agents.items():
                if federation.ended(agent) == 5:
                    agents[site] = f"{site}-{attempt}-{len(names)}"
                    federation.start(agents[site], federation.join_arguments(site))
                    names.append(agents[site])
            return federation.ended(server) is not None

        wait_until(all_ended, f"{server} ends", deadline_s=180.0)
        if federation.ended(server) == 0:
            assert [federation.wait(agent) for agent in agents.values()] == [0, 0]
            return names
        assert federation.ended(server) == 6
        assert "it is not connected" in federation.output(server)
        assert "the same command goes on there" in federation.output(server)
    raise AssertionError("the run did not come to its end")


def _undisturbed(federation: Federation) -> Path:
    state = federation.folder / "undisturbed"
    federation.start_server(state=state, name="undisturbed")
    federation.start_sites()
    assert [federation.wait(name) for name in ("undisturbed", *federation.sites)] == [0, 0, 0]
    return federation.run_folder(state)


def _what_each_stage_left(federation: Federation, run: Path) -> None:
    tuned = _tuned(run)
    summary = json.loads((run / "summary.json").read_text())
    assert [stage["kind"] for stage in summary["stages"]] == ["select", "fine-tune", "encode", "train"]
    assert set(summary["test"]) == {"A", "B"}
    for site in federation.sites:
        state = federation.site(site) / "state" / run.name
        selector, _ = load_model(state / "select" / "federated.safetensors")
        assert type(selector).__name__ == "Vib"
        encoder, _ = load_encoder(state / "fine-tune" / "encoder.safetensors")
        assert encoder_sha256(encoder) == tuned
        assert not (state / "fine-tune" / "patches").exists()
        made = list((state / "encode" / "features").glob("*.h5"))
        assert len(made) == 8
        assert {read_meta(path).encoder_sha256 for path in made} == {tuned}
        assert load_model(state / "train" / "federated.safetensors")
        said = federation.output(site)
        for words in (
            "stage select is over",
            "chose 16 patches of each of 6 slides",
            "encoded 8 slides in",
            "the run is over",
        ):
            assert words in said
    assert encoder_sha256(load_encoder(run / "stages" / "2-fine-tune" / "encoder.safetensors")[0]) == tuned


def _what_left_the_hospitals(federation: Federation) -> None:
    for site in federation.sites:
        records = verify(federation.site(site) / "state" / "audit.jsonl")
        tuned = [record.holds for record in records if record.kind == "update" and "encoder" in record.holds]
        assert len(tuned) == ROUNDS
        assert all("(encoder, head)" in holds for holds in tuned)
        (encoded,) = (record.holds for record in records if record.kind == "encoded")
        assert encoded == "how 8 slides were encoded again, and how long it took"
    for path in (path for path in (federation.folder / "undisturbed").rglob("*") if path.is_file()):
        content = path.read_bytes()
        for word in (b"slide-A", b"patient-B", str(federation.site("A")).encode()):
            assert word not in content, (path, word)


def _tuned(run: Path) -> str:
    """The tuned encoder's hash."""
    (sha256,) = (
        stage["encoder_sha256"]
        for stage in json.loads((run / "pipeline.json").read_text())["done"]
        if stage["name"] == "fine-tune"
    )
    return str(sha256)


def _models(run: Path) -> dict[str, bytes]:
    """Every kept file of weights."""
    return {str(path.relative_to(run)): _content(path) for path in sorted(run.rglob("*.safetensors"))}


def _content(path: Path) -> bytes:
    """The tensors of a safetensors file; its metadata names the run."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]
