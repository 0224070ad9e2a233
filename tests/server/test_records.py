"""What a run leaves in the coordinator's folder."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedpath.core.config import FederationConfig
from fedpath.core.exchange.contract import FeatureContract
from fedpath.core.exchange.groups import to_arrays
from fedpath.core.exchange.messages import Description, Metrics
from fedpath.core.exchange.wire import hash_arrays
from fedpath.core.models import load_model
from fedpath.core.training.alone import initial_model
from fedpath.server.folder import RunFolder
from fedpath.server.records import RoundManifest, SiteRound, read_rounds, write_round

CONFIG = FederationConfig.model_validate(
    {
        "federation": {"name": "lung", "sites": ["A", "B"], "seed": 3},
        "server": {"address": "localhost:8443"},
        "task": {"labels": ["no", "yes"]},
        "features": {"encoder": "e", "width": 4},
        "model": {"options": {"inner": 3, "attention": 2}},
    }
)


def manifest(round_: int) -> RoundManifest:
    return RoundManifest(
        round=round_,
        base="a" * 64,
        result="b" * 64,
        sites={
            "A": SiteRound(
                outcome="answered",
                patients={"image": 5},
                training_loss=1 / 3,
                training_s=0.1,
                validation=Metrics(loss=0.7, auc=None, slides=3, patients=2),
                sent_bytes=10,
                received_bytes=12,
            ),
            "B": SiteRound(outcome="late", reason="no answer within 60 s"),
        },
        patients={"image": 5},
        validation_auc=None,
        validation_loss=0.7,
        seconds=1.25,
        aggregation_s=0.001,
    )


def test_rounds_come_back_in_order(tmp_path: Path) -> None:
    assert read_rounds(tmp_path / "run") == []
    numbers = [2, 10, 1, 9, 100]
    for number in numbers:
        write_round(tmp_path / "run", manifest(number))
    assert read_rounds(tmp_path / "run") == [manifest(number) for number in sorted(numbers)]
    assert (tmp_path / "run/rounds/0002.json").is_file()


def test_a_manifest_of_another_shape_is_not_misread(tmp_path: Path) -> None:
    write_round(tmp_path, manifest(1))
    path = tmp_path / "rounds/0001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"extra": 1}))
    with pytest.raises(ValidationError, match="extra"):
        read_rounds(tmp_path)


def test_who_takes_part_is_kept_and_no_path_of_the_coordinator(tmp_path: Path) -> None:
    description = Description(
        contract=FeatureContract(encoder="e", encoder_sha256="c" * 64, width=4, mpp=None, patch_px=None, transform="t"),
        patients={"train": 5, "validation": 1, "test": 1},
        slides={"train": 6, "validation": 1, "test": 1},
        version="0.1.0",
    )
    RunFolder(tmp_path, CONFIG).start("r1", {"A": description}, {"B": "width is 5"})
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept["run"] == "r1"
    assert kept["refused"] == {"B": "width is 5"}
    assert Description.model_validate(kept["sites"]["A"]) == description
    assert kept["config"]["training"]["rounds"] == 10
    assert "credentials" not in kept["config"]["server"]
    # The run can be repeated from what was kept.
    assert FederationConfig.model_validate_json(json.dumps(kept["config"])).model == CONFIG.model


def test_a_kept_model_is_a_model(tmp_path: Path) -> None:
    arrays = to_arrays(initial_model(CONFIG))
    models = RunFolder(tmp_path, CONFIG).models
    models.keep(7, arrays, {}, contributions={"A": [1, 7]})
    models.call("best", 7)
    model, metadata = load_model(tmp_path / "best.safetensors")
    assert hash_arrays(to_arrays(model)) == hash_arrays(arrays)
    assert metadata["federation"] == "lung"
    assert metadata["round"] == "7"
    assert json.loads(metadata["contributions"]) == {"A": [1, 7]}
    assert json.loads(metadata["labels"]) == ["no", "yes"]


def test_the_same_model_gives_the_same_file(tmp_path: Path) -> None:
    arrays = to_arrays(initial_model(CONFIG))
    for name in ("one", "two"):
        RunFolder(tmp_path / name, CONFIG).models.keep(1, arrays, {})
    one, two = (tmp_path / name / "models/0001.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_the_summary_is_json(tmp_path: Path) -> None:
    RunFolder(tmp_path, CONFIG).keep_summary({"best_round": 3, "auc": None})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"best_round": 3, "auc": None}
