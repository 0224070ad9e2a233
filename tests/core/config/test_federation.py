"""federation.toml: what it may say, and what each mistake is called."""

from pathlib import Path

import pytest

from fedpath.core.config import FederationConfig, load_federation
from fedpath.core.errors import ConfigError

FULL = """
[federation]
name = "lung-2026"
sites = ["A", "B", "C"]
seed = 7

[server]
address = "coordinator.example.org:8443"
listen = "0.0.0.0:9443"
credentials = "keys/server"
min_sites = 2
join_timeout_s = 30
grace_s = 5
round_timeout_s = 60.5

[task]
labels = ["normal", "tumour"]

[features]
encoder = "seeded-conv"
width = 256
mpp = 0.5
patch_px = 128
encoder_sha256 = "{sha256}"

[clinical.fields.age]
type = "number"
unit = "years"
minimum = 0
maximum = 120.0
outcome_derived = false

[clinical.fields.er]
type = "binary"
positive = "positive"
negative = "negative"
outcome_derived = false

[clinical.fields.grade]
type = "category"
vocabulary = ["1", "2", "3"]
outcome_derived = false

[model]
name = "acmil"
options = {{ n_branches = 3, mask_ratio = 0.0 }}

[training]
rounds = 4
local_epochs = 2
learning_rate = 5e-4
weight_decay = 0
class_weights = false
accumulate_bags = 8
patience = 3

[encoder]
weights = "weights/conv.safetensors"

[local]
method = "fedprox"
proximal = 0.1
personal = ["norm"]
steps = 20
learning_rate_scale = {{ B = 0.5 }}

[aggregation]
combine = "trimmed-mean"
byzantine = 0
clip_norm = 3.0
max_update_norm = 12.5
order = "arrival"
engine = "ray"
ray_address = "auto"
ray_workers = 4

[optimizer]
name = "fedadam"
learning_rate = 0.02
momentum = 0.8
second_momentum = 0.9
adaptivity = 0.01

[exchange]
encoding = "int8"
changes_only = true

[deadline]
factor = 2.0
floor_s = 30.0
quorum_wait_s = 60.0

[late]
rule = "carry"
staleness_exponent = 1.0
most_rounds = 2

[asynchronous]
buffer = 2
concurrency = 3

[[stage]]
kind = "train"
name = "only"
model = {{ name = "abmil" }}
training = {{ rounds = 2 }}
""".format(sha256="ab" * 32)

SMALL = """
[federation]
name = "small"
sites = ["A", "B"]
[server]
address = "localhost:8443"
[task]
labels = ["no", "yes"]
[features]
encoder = "table"
width = 4
"""


def load(folder: Path, text: str) -> FederationConfig:
    path = folder / "federation.toml"
    path.write_text(text, encoding="utf-8")
    return load_federation(path)


def fault(folder: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    error = caught.value
    assert error.exit_code == 2
    assert error.message.startswith(f"{folder}/federation.toml: ")
    assert error.remedy
    assert "\n" not in error.message + error.remedy
    return error


def test_every_key_is_read(tmp_path: Path) -> None:
    config = load(tmp_path, FULL)
    assert config.model_dump() == {
        "federation": {"name": "lung-2026", "sites": ["A", "B", "C"], "seed": 7},
        "server": {
            "address": "coordinator.example.org:8443",
            "listen": "0.0.0.0:9443",
            "credentials": tmp_path / "keys/server",
            "min_sites": 2,
            "join_timeout_s": 30.0,
            "grace_s": 5.0,
            "round_timeout_s": 60.5,
        },
        "task": {"labels": ["normal", "tumour"]},
        "features": {
            "encoder": "seeded-conv",
            "width": 256,
            "mpp": 0.5,
            "patch_px": 128,
            "encoder_sha256": "ab" * 32,
        },
        "clinical": {
            "fields": {
                "age": {"outcome_derived": False, "type": "number", "unit": "years", "minimum": 0.0, "maximum": 120.0},
                "er": {
                    "outcome_derived": False,
                    "type": "binary",
                    "positive": "positive",
                    "negative": "negative",
                },
                "grade": {"outcome_derived": False, "type": "category", "vocabulary": ["1", "2", "3"]},
            }
        },
        "model": {"name": "acmil", "options": {"n_branches": 3, "mask_ratio": 0.0}},
        "training": {
            "rounds": 4,
            "local_epochs": 2,
            "learning_rate": 5e-4,
            "weight_decay": 0.0,
            "class_weights": False,
            "accumulate_bags": 8,
            "patience": 3,
        },
        "encoder": {"weights": tmp_path / "weights/conv.safetensors"},
        "local": {
            "method": "fedprox",
            "proximal": 0.1,
            "personal": ["norm"],
            "steps": 20,
            "learning_rate_scale": {"B": 0.5},
        },
        "aggregation": {
            "combine": "trimmed-mean",
            "byzantine": 0,
            "keep": None,
            "clip_norm": 3.0,
            "max_update_norm": 12.5,
            "order": "arrival",
            "engine": "ray",
            "ray_address": "auto",
            "ray_workers": 4,
        },
        "optimizer": {
            "name": "fedadam",
            "learning_rate": 0.02,
            "momentum": 0.8,
            "second_momentum": 0.9,
            "adaptivity": 0.01,
        },
        "exchange": {"encoding": "int8", "changes_only": True},
        "deadline": {"factor": 2.0, "floor_s": 30.0, "quorum_wait_s": 60.0},
        "late": {"rule": "carry", "staleness_exponent": 1.0, "most_rounds": 2},
        "asynchronous": {"buffer": 2, "concurrency": 3},
        "stage": [
            {
                "kind": "train",
                "name": "only",
                "model": {"name": "abmil", "options": {}},
                "training": {
                    "rounds": 2,
                    "local_epochs": None,
                    "learning_rate": None,
                    "weight_decay": None,
                    "class_weights": None,
                    "accumulate_bags": None,
                },
            }
        ],
    }
    assert config.min_sites == 2
    assert config.clinical is not None
    assert list(config.clinical.fields) == ["age", "er", "grade"]  # the order of the file is that of the model


def test_a_config_survives_json(tmp_path: Path) -> None:
    for text in (FULL, SMALL):
        config = load(tmp_path, text)
        assert FederationConfig.model_validate_json(config.model_dump_json()) == config


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL)
    assert config.min_sites == 2  # all of them
    assert config.server.listen is None
    assert config.server.credentials == tmp_path / "credentials/server"
    assert (config.features.mpp, config.features.patch_px, config.features.encoder_sha256) == (None, None, None)
    assert (config.model.name, config.model.options) == ("acmil", {})
    assert (config.training.rounds, config.training.local_epochs) == (10, 1)
    assert (config.training.accumulate_bags, config.training.patience) == (1, None)
    assert config.aggregation.max_update_norm is None
    assert config.clinical is None


def test_credentials_are_found_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "federation.toml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    assert load_federation(Path("deep/federation.toml")).server.credentials == tmp_path / "deep/credentials/server"
    absolute = SMALL.replace("[task]", 'credentials = "/etc/fedpath"\n[task]')
    assert load(tmp_path, absolute).server.credentials == Path("/etc/fedpath")


@pytest.mark.parametrize(
    ("line", "key", "remedy"),
    [
        ('name = "small"', "federation.name", "add 'name' to [federation]"),
        ('sites = ["A", "B"]', "federation.sites", "add 'sites' to [federation]"),
        ('address = "localhost:8443"', "server.address", "add 'address' to [server]"),
        ("width = 4", "features.width", "add 'width' to [features]"),
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, line: str, key: str, remedy: str) -> None:
    error = fault(tmp_path, SMALL.replace(line, ""))
    assert error.message.endswith(f"key '{key}' is missing")
    assert error.remedy == remedy


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    error = fault(tmp_path, SMALL.replace("[task]", "").replace('labels = ["no", "yes"]', ""))
    assert error.message.endswith("key 'task' is missing")
    assert error.remedy == "add 'task' to the top level"


@pytest.mark.parametrize(
    ("old", "new", "key", "remedy"),
    [
        ("width = 4", "width = 4\nwidht = 5", "features.widht", "did you mean 'width'?"),
        ("[task]", "min_site = 1\n[task]", "server.min_site", "did you mean 'min_sites'?"),
        ("width = 4", "width = 4\n[trainning]\nrounds = 3", "trainning", "did you mean 'training'?"),
        ("width = 4", "width = 4\n[training]\nround = 3", "training.round", "did you mean 'rounds'?"),
        (
            "width = 4",
            "width = 4\n[model]\ncolour = 3",
            "model.colour",
            "remove it; [model] knows: name, options",
        ),
    ],
)
def test_an_unknown_key_gets_its_near_match(tmp_path: Path, old: str, new: str, key: str, remedy: str) -> None:
    error = fault(tmp_path, SMALL.replace(old, new))
    assert error.message.endswith(f"key '{key}' is unknown")
    assert error.remedy == remedy


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        # wrong types
        ("width = 4", 'width = "4"', "features.width"),
        ("width = 4", "width = 4.0", "features.width"),
        ("width = 4", "width = true", "features.width"),
        ('sites = ["A", "B"]', 'sites = "A"', "federation.sites"),
        ('sites = ["A", "B"]', "sites = [1, 2]", "federation.sites.0"),
        ("[server]", "server = 3\n[servers]", "federation.server"),
        ("width = 4", 'width = 4\n[training]\nclass_weights = "no"', "training.class_weights"),
        ("width = 4", "width = 4\n[training]\nlearning_rate = true", "training.learning_rate"),
        # wrong ranges
        ("width = 4", "width = 0", "features.width"),
        ("width = 4", "width = 4\nmpp = 0", "features.mpp"),
        ("width = 4", "width = 4\nmpp = nan", "features.mpp"),
        ("width = 4", "width = 4\nmpp = inf", "features.mpp"),
        ("width = 4", 'width = 4\nencoder_sha256 = "abc"', "features.encoder_sha256"),
        ("width = 4", "width = 4\n[training]\nrounds = 0", "training.rounds"),
        ("width = 4", "width = 4\n[training]\naccumulate_bags = 0", "training.accumulate_bags"),
        ("width = 4", "width = 4\n[training]\npatience = 0", "training.patience"),
        ("width = 4", "width = 4\n[training]\nlearning_rate = -1e-3", "training.learning_rate"),
        ("width = 4", "width = 4\n[training]\nlearning_rate = inf", "training.learning_rate"),
        ("width = 4", "width = 4\n[aggregation]\nmax_update_norm = 0", "aggregation.max_update_norm"),
        ("[task]", "join_timeout_s = 0\n[task]", "server.join_timeout_s"),
        ("[task]", "round_timeout_s = inf\n[task]", "server.round_timeout_s"),
        ("[task]", "min_sites = 0\n[task]", "server.min_sites"),
        ('name = "small"', 'name = "small"\nseed = -1', "federation.seed"),
        ('name = "small"', 'name = "small"\nseed = 4294967296', "federation.seed"),
        # names that become files and addresses that must be reached
        ('name = "small"', 'name = "../small"', "federation.name"),
        ('name = "small"', 'name = ""', "federation.name"),
        ('name = "small"', 'name = "small\\n"', "federation.name"),
        ('"A", "B"', '"A", "B/.."', "federation.sites.1"),
        ('sites = ["A", "B"]', "sites = []", "federation.sites"),
        ('"localhost:8443"', '"localhost"', "server.address"),
        ('"localhost:8443"', '"https://localhost:8443"', "server.address"),
        ('"localhost:8443"', '"localhost:0"', "server.address"),
        ('"localhost:8443"', '"a..b:8443"', "server.address"),
        ('"localhost:8443"', f'"{"x" * 64}.org:8443"', "server.address"),
        ('"localhost:8443"', f'"{".".join(["x" * 60] * 5)}:8443"', "server.address"),
        ('"localhost:8443"', '"localhost:8443"\nlisten = ":8443"', "server.listen"),
        ('"localhost:8443"', '"localhost:65536"', "server.address"),
        ('"localhost:8443"', '"localhost:8443"\nlisten = "0.0.0.0:99999"', "server.listen"),
        ('["no", "yes"]', '["no"]', "task.labels"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, old: str, new: str, key: str) -> None:
    assert old in SMALL
    assert f"key '{key}'" in fault(tmp_path, SMALL.replace(old, new)).message


def test_the_value_is_shown(tmp_path: Path) -> None:
    error = fault(tmp_path, SMALL.replace("width = 4", "width = -4"))
    assert error.message.endswith("key 'features.width' = -4: Input should be greater than or equal to 1")
    assert error.remedy == "correct 'features.width' in that file"


def test_duplicates_are_refused(tmp_path: Path) -> None:
    error = fault(tmp_path, SMALL.replace('["A", "B"]', '["A", "B", "A"]'))
    assert "key 'federation.sites'" in error.message
    assert "a site is listed twice" in error.message
    error = fault(tmp_path, SMALL.replace('["no", "yes"]', '["no", "yes", "no"]'))
    assert "key 'task.labels'" in error.message
    assert "a label is listed twice" in error.message


def test_sites_that_differ_only_in_case_would_share_a_folder(tmp_path: Path) -> None:
    # Kits are folders: on a Mac or on Windows, "a" and "A" are one.
    assert "listed twice" in fault(tmp_path, SMALL.replace('["A", "B"]', '["A", "a"]')).message


def test_a_quorum_of_more_sites_than_there_are_is_refused(tmp_path: Path) -> None:
    error = fault(tmp_path, SMALL.replace("[task]", "min_sites = 3\n[task]"))
    assert error.message.endswith("server.min_sites is 3 but federation.sites names only 2")


ESTIMATORS = {"trimmed-mean": 2, "krum": 2, "multi-krum": 2, "bulyan": 4}


@pytest.mark.parametrize(("combine", "times"), ESTIMATORS.items())
def test_a_quorum_that_is_too_small_for_the_estimator_is_refused(tmp_path: Path, combine: str, times: int) -> None:
    needed = times * 2 + (1 if combine == "trimmed-mean" else 3)
    names = [f"S{number}" for number in range(needed + 1)]
    sites = ", ".join(f'"{name}"' for name in names)
    aggregation = f'\n[aggregation]\ncombine = "{combine}"\nbyzantine = 2\n'
    text = SMALL.replace('"A", "B"', sites) + aggregation
    assert load(tmp_path, text).min_sites == needed + 1
    assert load(tmp_path, text.replace("[task]", f"min_sites = {needed}\n[task]")).min_sites == needed
    what = f"aggregation.combine '{combine}' with aggregation.byzantine 2 needs {needed} updates a round"
    error = fault(tmp_path, text.replace("[task]", f"min_sites = {needed - 1}\n[task]"))
    assert error.message.endswith(f"{what}, and server.min_sites is {needed - 1}: lower the one or raise the other")
    error = fault(tmp_path, SMALL + aggregation)
    assert error.message.endswith(f"{what}, and federation.sites names 2: lower the one or raise the other")
    error = fault(tmp_path, f"{text}[asynchronous]\nbuffer = 2\n")
    assert error.message.endswith(f"{what}, and asynchronous.buffer is 2: lower the one or raise the other")


def test_multi_krum_cannot_keep_more_than_all_but_the_liars(tmp_path: Path) -> None:
    text = SMALL.replace('"A", "B"', '"A", "B", "C", "D", "E"') + '\n[aggregation]\ncombine = "multi-krum"\nkeep = '
    assert load(tmp_path, f"{text}4\n").aggregation.keep == 4
    error = fault(tmp_path, f"{text}5\n")
    assert "aggregation.keep is 5" in error.message
    assert error.message.endswith("keeps at most 4 of server.min_sites 5")


def test_more_labels_than_an_order_may_carry_are_refused(tmp_path: Path) -> None:
    labels = ", ".join(f'"l{number}"' for number in range(1001))
    assert "key 'task.labels'" in fault(tmp_path, SMALL.replace('"no", "yes"', labels)).message


def test_the_first_of_several_faults_is_told_and_the_others_counted(tmp_path: Path) -> None:
    error = fault(tmp_path, SMALL.replace("width = 4", "").replace('name = "small"', ""))
    assert "key 'federation.name' is missing; 1 more" in error.message


def test_a_port_of_the_systems_choice_may_be_listened_on(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL.replace("[task]", 'listen = "127.0.0.1:0"\n[task]'))
    assert config.server.listen == "127.0.0.1:0"


def test_settings_do_not_change(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL)
    with pytest.raises(ValueError, match="frozen"):
        config.training.rounds = 3  # type: ignore[misc]
