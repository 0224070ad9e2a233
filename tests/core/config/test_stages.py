"""`[[stage]]`: what a pipeline may say, and how a fault in it is placed."""

from pathlib import Path

import pytest

from fedpath.core.config import FederationConfig, load_federation
from fedpath.core.config.stages import StageTraining, TrainStage, TuneStage
from fedpath.core.errors import ConfigError

TOML = """
[federation]
name = "lung"
sites = ["A", "B"]
[server]
address = "localhost:8443"
[task]
labels = ["no", "yes"]
[features]
encoder = "e"
width = 4
[training]
rounds = 7
weight_decay = 0.5
"""
FOUR = """
[[stage]]
kind = "select"
[stage.training]
rounds = 2
[[stage]]
kind = "fine-tune"
[stage.tuning]
rank = 4
adapter = "lora"
patches = { most = 32, least = 8 }
[[stage]]
kind = "encode"
[[stage]]
kind = "train"
name = "final"
model = { name = "acmil" }
"""


def load(folder: Path, stages: str) -> FederationConfig:
    path = folder / "federation.toml"
    path.write_text(TOML + stages)
    return load_federation(path)


def test_a_pipeline_is_read(tmp_path: Path) -> None:
    select, tune, encode, train = load(tmp_path, FOUR).stage
    assert [stage.name for stage in (select, tune, encode, train)] == ["select", "fine-tune", "encode", "final"]
    assert isinstance(tune, TuneStage)
    assert (tune.tuning.patches.most, tune.tuning.rank) == (32, 4)
    assert isinstance(train, TrainStage)


def test_a_pipeline_survives_json(tmp_path: Path) -> None:
    config = load(tmp_path, FOUR)
    assert FederationConfig.model_validate_json(config.model_dump_json()).stage == config.stage


def test_what_a_stage_says_of_training_stands_over_the_rest(tmp_path: Path) -> None:
    training = load(tmp_path, "").training
    own = StageTraining(rounds=2, learning_rate=0.5).over(training)
    assert (own.rounds, own.learning_rate, own.weight_decay) == (2, 0.5, 0.5)
    assert StageTraining().over(training) == training


@pytest.mark.parametrize(
    ("old", "new", "message", "remedy"),
    [
        ("rank = 4", "rnak = 4", "stage 2 ('fine-tune'), key 'tuning.rnak' is unknown", "did you mean 'rank'?"),
        ("rank = 4", "rank = 0", "stage 2 ('fine-tune'), key 'tuning.rank' = 0: ", "correct 'tuning.rank'"),
        ("rank = 4", "xx = 4", "key 'tuning.xx' is unknown", "remove it; [stage.tuning] knows: adapter"),
        (
            "least = 8",
            "least = 80",
            "stage 2 ('fine-tune'), key 'tuning.patches': least (80) is above most (32)",
            "correct 'tuning.patches'",
        ),
        ('"fine-tune"', '"finetune"', "stage 2, key 'kind' = 'finetune' is unknown", "did you mean 'fine-tune'?"),
        ('"encode"', '"x"', "stage 3, key 'kind' = 'x' is unknown", "use one of: select, fine-tune, encode, train"),
        ('kind = "encode"', 'name = "e"', "stage 3, key 'kind' is missing", "add 'kind' to [[stage]]: select"),
        ('name = "final"', 'nmae = "f"', "stage 4 ('train'), key 'nmae' is unknown", "did you mean 'name'?"),
        ('name = "final"', 'name = "a/b"', "stage 4 ('train'), key 'name' = 'a/b': ", "correct 'name'"),
        ('name = "final"', 'name = "encode"', "key 'stage': two stages have the name 'encode'", "correct 'stage'"),
        (
            'model = { name = "acmil" }',
            "model = 3",
            "stage 4 ('train'), key 'model' = 3: should be a table",
            "[stage.m",
        ),
        (
            FOUR,
            '[[stage]]\nkind = "fine-tune"\n[[stage]]\nkind = "train"\n',
            "key 'stage': stage 'fine-tune' needs selected patches",
            "correct 'stage'",
        ),
        (FOUR[FOUR.index('name = "final"') - 25 :], "", "key 'stage': nothing uses what stage 'encode' makes", ""),
        (FOUR, "stage = [3]\n", "stage 1 = 3: should be a table", "write it as [[stage]], with its keys below"),
    ],
)
def test_a_fault_in_a_stage_is_placed(tmp_path: Path, old: str, new: str, message: str, remedy: str) -> None:
    assert old in FOUR
    stages = FOUR.replace(old, new)
    path = tmp_path / "federation.toml"
    # A key of the top level stands before all tables.
    path.write_text(stages + TOML if stages.startswith("stage =") else TOML + stages)
    with pytest.raises(ConfigError) as caught:
        load_federation(path)
    assert message in caught.value.message
    assert remedy in caught.value.remedy
    assert len(caught.value.message) < 300
