"""select, fine-tune, encode, train: real orders and answers of real hospitals with slides, in one process."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import Killed, Sites
from slide_hospitals import ENCODER, MPP, PATCH_PX, write_slide_hospital

from fedpath.core.config import FederationConfig
from fedpath.core.encoders.registry import build_encoder, encoder_sha256, load_encoder
from fedpath.core.errors import ConfigError, FederationError
from fedpath.core.events import Event, EventLog
from fedpath.core.exchange.groups import personal_names
from fedpath.core.exchange.messages import Encoded, Finish, Order, Refusal
from fedpath.core.exchange.wire import Arrays
from fedpath.core.models import load_model
from fedpath.server.pipeline import Pipeline
from fedpath.server.stages import check_models

pytestmark = pytest.mark.usefixtures("nobody_comes_back")

NAMES = ("A", "B", "C")
SHORT = {"rounds": 1, "learning_rate": 0.001}
SELECT = {"kind": "select", "model": {"name": "vib", "options": {"inner": 8, "attention": 8}}}
TUNE = {
    "kind": "fine-tune",
    "model": {"name": "mean-pool"},
    "tuning": {"patches": {"most": 4, "least": 2}, "encoder_learning_rate": 0.001},
}
ENCODE = {"kind": "encode", "timeout_s": 60.0}
TRAIN = {"kind": "train", "model": {"name": "mean-pool"}}
CONFIG: dict[str, Any] = {
    "federation": {"name": "test", "sites": list(NAMES)},
    "server": {"address": "localhost:1", "grace_s": 0.0, "min_sites": 2, "join_timeout_s": 0.5},
    "task": {"labels": ["normal", "tumour"]},
    "features": {"encoder": ENCODER, "width": 128, "mpp": MPP, "patch_px": PATCH_PX},
    "training": SHORT,
    "deadline": {"quorum_wait_s": 0.0},
    "stage": [SELECT, TUNE, ENCODE, TRAIN],
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hospitals with slides."""
    folder = tmp_path_factory.mktemp("drawn")
    for look, site in enumerate(NAMES):
        write_slide_hospital(folder / site, site, look=look)
    return folder


@pytest.fixture
def hospitals(drawn: Path, tmp_path: Path) -> Path:
    """Their own copies: every run leaves something at a hospital."""
    return shutil.copytree(drawn, tmp_path / "hospitals")


def config_with(**changes: Any) -> FederationConfig:
    return check_models(FederationConfig.model_validate(CONFIG | changes))


def serve(
    config: FederationConfig, folder: Path, sites: Sites, stop: threading.Event | None = None
) -> tuple[dict[str, Any], list[Event]]:
    events: list[Event] = []
    log = EventLog(None, events.append)
    return Pipeline(config, "run", sites, folder, log, stop or threading.Event()).execute(), events


def kinds(sites: Sites, site: str) -> list[str]:
    return [kind for name, kind in sites.heard if name == site]


def test_all_four_stages(hospitals: Path, tmp_path: Path) -> None:
    config, sites, folder = config_with(), Sites(hospitals, NAMES), tmp_path / "run"
    summary, events = serve(config, folder, sites)

    # Each stage in turn; a model is tested only where it is a result.
    rounds = ["describe", "train", "evaluate", "finish"]
    assert kinds(sites, "A") == [*rounds, *rounds, "encode", "describe", "train", "evaluate", "evaluate", "finish"]
    assert [event.values["stage"] for event in events if event.kind == "stage_started"] == [
        "select", "fine-tune", "encode", "train",
    ]  # fmt: skip
    # The tuned encoder is another one than before, and the same here and at every hospital.
    base, kept = encoder_sha256(build_encoder(ENCODER)), folder / "stages/2-fine-tune/encoder.safetensors"
    encoder, name = load_encoder(kept)
    tuned = encoder_sha256(encoder)
    assert (name, tuned != base) == (ENCODER, True)
    for site in NAMES:
        assert (hospitals / site / "state/run/fine-tune/encoder.safetensors").read_bytes() == kept.read_bytes()
    # The contract moves with it.
    for number, wanted in (("1-select", base), ("2-fine-tune", base), ("4-train", tuned)):
        run = json.loads((folder / "stages" / number / "run.json").read_text())
        assert run["config"]["features"]["encoder_sha256"] == wanted
        assert {site["contract"]["encoder_sha256"] for site in run["sites"].values()} == {wanted}
    # Readers of any run's summary find the last stage's figures where they always are.
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["folder"] == "stages/4-train"
    assert summary["best_round"] == 1
    assert set(summary["test"]) == set(NAMES)
    assert [stage["kind"] for stage in summary["stages"]] == ["select", "fine-tune", "encode", "train"]
    assert [stage.get("test") for stage in summary["stages"][:3]] == [{}, {}, None]
    assert summary["stages"][1]["groups"].keys() == {"encoder", "head"}


@pytest.mark.parametrize("local", [{"method": "scaffold", "personal": ["norm"]}, {"method": "fedprox", "steps": 3}])
def test_how_sites_train_holds_in_every_stage(hospitals: Path, tmp_path: Path, local: dict[str, Any]) -> None:
    own = TRAIN | {"model": {"name": "transmil", "options": {"inner": 8, "heads": 2}}}
    config, folder = config_with(local=local, stage=[SELECT, TUNE, ENCODE, own]), tmp_path / "run"
    summary, _ = serve(config, folder, Sites(hospitals, NAMES))
    # What encodes the slides is the same everywhere, whatever layers it has.
    kept = folder / "stages/2-fine-tune/encoder.safetensors"
    for site in NAMES:
        assert (hospitals / site / "state/run/fine-tune/encoder.safetensors").read_bytes() == kept.read_bytes()
    assert [stage.get("personal") for stage in summary["stages"]] == [
        local.get("personal", []), [], None, local.get("personal", []),
    ]  # fmt: skip
    models = [load_model(hospitals / site / "state/run/train/federated.safetensors")[0] for site in NAMES]
    same = {
        name: all(torch.equal(tensor, model.state_dict()[name]) for model in models)
        for name, tensor in models[0].state_dict().items()
    }
    norms = {name.removeprefix("image/") for name in personal_names(models[0], local.get("personal", []))}
    assert {name for name, equal in same.items() if not equal} == norms


def test_a_site_that_comes_while_the_selector_is_trained_takes_part(hospitals: Path, tmp_path: Path) -> None:
    class Late(Sites):
        def answer(self, site: str, order: Order, arrays: Arrays) -> Any:
            if order.kind == "train":
                self.come("C")
            return super().answer(site, order, arrays)

    sites = Late(hospitals, NAMES[:2])
    summary, _ = serve(config_with(stage=[SELECT | {"training": {"rounds": 2}}, TRAIN]), tmp_path / "run", sites)
    assert [stage["sites"] for stage in summary["stages"]] == [["A", "B", "C"]] * 2


def test_a_kill_while_fine_tuning_changes_no_bit(hospitals: Path, tmp_path: Path) -> None:
    class Dying(Sites):
        def answer(self, site: str, order: Order, arrays: Arrays) -> Any:
            kind = None if order.facts.stage is None else order.facts.stage.kind
            if (site, order.kind, kind, getattr(order, "round", 0)) == ("B", "train", "fine-tune", 3):
                raise Killed
            return super().answer(site, order, arrays)

    others = shutil.copytree(hospitals, tmp_path / "others")
    config = config_with(stage=[SELECT, TUNE | {"training": {"rounds": 3}}, ENCODE, TRAIN])
    whole, _ = serve(config, tmp_path / "whole", Sites(others, NAMES))
    with pytest.raises(Killed):
        serve(config, tmp_path / "run", Dying(hospitals, NAMES))
    again, _ = serve(config, tmp_path / "run", Sites(hospitals, NAMES))
    for run in (whole, again):
        del run["stages"][2]  # which took how long
    assert again == whole


def test_a_stop_while_encoding_asks_only_who_has_not_encoded(hospitals: Path, tmp_path: Path) -> None:
    stop = threading.Event()

    class Stopping(Sites):
        def answer(self, site: str, order: Order, arrays: Arrays) -> Any:
            if (site, order.kind) == ("B", "encode"):
                raise KeyboardInterrupt
            return super().answer(site, order, arrays)

    config, folder = config_with(), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        serve(config, folder, Stopping(hospitals, NAMES), stop)
    back = Sites(hospitals, NAMES)
    summary, events = serve(config, folder, back)
    assert kinds(back, "A")[0] == "describe"
    assert kinds(back, "B")[0] == kinds(back, "C")[0] == "encode"
    assert [event.values["stages"] for event in events if event.kind == "resumed"] == [["select", "fine-tune"]]
    assert summary["sites"] == ["A", "B", "C"]


def test_who_cannot_encode_takes_no_part_afterwards(hospitals: Path, tmp_path: Path) -> None:
    shutil.rmtree(hospitals / "B" / "state", ignore_errors=True)

    class Losing(Sites):
        def answer(self, site: str, order: Order, arrays: Arrays) -> Any:
            answer = super().answer(site, order, arrays)
            if site == "B" and isinstance(order, Finish) and order.facts.stage and order.facts.stage.name == "select":
                shutil.rmtree(hospitals / "B" / "slides")
            return answer

    summary, events = serve(config_with(), tmp_path / "run", Losing(hospitals, NAMES))
    assert summary["sites"] == ["A", "C"]
    assert "B" in [event.values["site"] for event in events if event.kind == "site_refused"]


@pytest.mark.parametrize("lie", [{"encoder_sha256": "0" * 64}, {"mpp": 0.25}, {"width": 8}])
def test_new_features_of_another_kind_are_refused(hospitals: Path, tmp_path: Path, lie: dict[str, Any]) -> None:
    class Lying(Sites):
        def answer(self, site: str, order: Order, arrays: Arrays) -> Any:
            answer, sent = super().answer(site, order, arrays)
            if site == "C" and isinstance(answer, Encoded):
                answer = answer.model_copy(update={"contract": answer.contract.model_copy(update=lie)})
            return answer, sent

    sites = Lying(hospitals, NAMES)
    summary, _ = serve(config_with(), tmp_path / "run", sites)
    assert summary["sites"] == ["A", "B"]
    assert next(iter(lie)) in sites.told["C"]
    assert kinds(sites, "C")[-2:] == ["encode", "refuse"]


@pytest.mark.parametrize(
    ("when", "told"),
    [
        (("fine-tune", 1), "stage 'fine-tune' goes on with what stage 'select' left at the sites"),
        (("fine-tune", 2), "stage 'encode' goes on with what stage 'fine-tune' left at the sites"),
        (("train", 1), "stage 'train' goes on with what stage 'encode' left at the sites"),
    ],
)
def test_a_latecomer_to_a_stage_that_stands_on_others_is_told_so(
    hospitals: Path, tmp_path: Path, when: tuple[str, int], told: str
) -> None:
    class Late(Sites):
        def answer(self, site: str, order: Order, arrays: Arrays) -> Any:
            kind = None if order.facts.stage is None else order.facts.stage.kind
            if (site, order.kind, kind, getattr(order, "round", 0)) == ("A", "train", *when):
                self.come("C")
            return super().answer(site, order, arrays)

    sites = Late(hospitals, NAMES[:2])
    twice = {"training": {"rounds": 2}}
    changed = [SELECT, TUNE | twice, ENCODE, TRAIN | twice]
    summary, _ = serve(config_with(stage=changed), tmp_path / "run", sites)
    assert summary["sites"] == ["A", "B"]
    assert sites.told["C"].startswith(told)


def test_too_few_sites_that_encode_end_the_run_and_it_goes_on_later(hospitals: Path, tmp_path: Path) -> None:
    class Failing(Sites):
        def answer(self, site: str, order: Order, arrays: Arrays) -> Any:
            if order.kind == "encode" and site != "A":
                self.leave(site)
                return Refusal(reason="the disk is full"), {}
            return super().answer(site, order, arrays)

    sites, folder = Failing(hospitals, NAMES), tmp_path / "run"
    with pytest.raises(FederationError, match=r"1 of 2 sites encoded .*B: the disk is full; C: the disk is full"):
        serve(config_with(), folder, sites)
    assert "run has ended early" in sites.told["A"]
    summary, _ = serve(config_with(), folder, Sites(hospitals, NAMES))
    assert summary["sites"] == ["A", "B", "C"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_sha256": "0" * 64}, "its hash is "),
        ({"width": 8}, "its features have width 128, features.width is 8"),
        ({"mpp": None}, "stage 'fine-tune' reads patches from slides, and features.mpp is not stated"),
        ({"encoder": "seeded-cnov"}, "seeded-cnov"),
    ],
)
def test_an_encoder_that_is_not_the_federations_is_found_before_anybody_waits(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_with(features=CONFIG["features"] | changes)


def test_a_model_of_a_stage_is_found_before_anybody_waits() -> None:
    with pytest.raises(ConfigError, match=r"stage 'fine-tune': .*'bd', which reads clinical data"):
        config_with(stage=[SELECT, TUNE | {"model": {"name": "bd"}}])
    with pytest.raises(ConfigError, match=r"stage 'select': model.options.hidden"):
        config_with(stage=[SELECT | {"model": {"name": "vib", "options": {"hidden": 3}}}])
