"""site.toml and kit.toml."""

from pathlib import Path

import pytest

from fedpath.core.config import SiteConfig, load_site
from fedpath.core.config.kit import KitConfig
from fedpath.core.config.loading import load_toml
from fedpath.core.errors import ConfigError

FULL = """
state = "kept"

[site]
name = "A"

[data]
manifest = "cohort/manifest.csv"
features = "/data/features"
validation_share = 0.1
test_share = 0.3
split_seed = 5

[features]
encoder = "uni_v1"
encoder_sha256 = "0a"
mpp = 0.5
patch_px = 256
transform = "imagenet"

[clinical]
table = "clinical.xlsx"
patient_column = "Pat. no."
sheet = "2024"
decimal = ","
missing = ["", "n.d."]
max_unusable = 0.1
[clinical.columns]
age = "Age at diagnosis"
er = { column = "ER", codes = { "pos" = "positive", 0 = "negative" } }
height = { column = "Height (m)", factor = 100 }

[slides]
folder = "slides"
mpp = 0.25

[encoder]
weights = "/data/uni.pt"

[compute]
device = "cpu"
precision = "float32"
threads = 4
vram_gb = 8
engine = "deepspeed"
deepspeed = { zero_stage = 2, processes = 2 }

[policy]
federations = ["lung", "liver"]
models = ["acmil"]
own_models = ["my-mil"]
max_local_epochs = 3
max_parallel_runs = 2
fine_tune = false
min_patients = 5
"""

SMALL = """
[site]
name = "A"
[data]
manifest = "manifest.csv"
features = "features"
"""


def load(folder: Path, text: str) -> SiteConfig:
    path = folder / "site.toml"
    path.write_text(text)
    return load_site(path)


def fault(folder: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    assert caught.value.message.startswith(f"{folder}/site.toml: ")
    return caught.value


def test_every_key_is_read_and_relative_paths_are_the_files(tmp_path: Path) -> None:
    assert load(tmp_path, FULL).model_dump() == {
        "site": {"name": "A"},
        "data": {
            "manifest": tmp_path / "cohort/manifest.csv",
            "features": Path("/data/features"),
            "validation_share": 0.1,
            "test_share": 0.3,
            "split_seed": 5,
        },
        "features": {
            "encoder": "uni_v1",
            "encoder_sha256": "0a",
            "mpp": 0.5,
            "patch_px": 256,
            "transform": "imagenet",
        },
        "clinical": {
            "table": tmp_path / "clinical.xlsx",
            "patient_column": "Pat. no.",
            "sheet": "2024",
            "decimal": ",",
            "missing": ["", "n.d."],
            "max_unusable": 0.1,
            "columns": {
                "age": {"column": "Age at diagnosis", "codes": {}, "factor": 1.0},
                "er": {"column": "ER", "codes": {"pos": "positive", "0": "negative"}, "factor": 1.0},
                "height": {"column": "Height (m)", "codes": {}, "factor": 100.0},
            },
        },
        "slides": {"folder": tmp_path / "slides", "mpp": 0.25},
        "encoder": {"weights": Path("/data/uni.pt")},
        "compute": {
            "device": "cpu",
            "precision": "float32",
            "threads": 4,
            "vram_gb": 8.0,
            "engine": "deepspeed",
            "deepspeed": {"zero_stage": 2, "processes": 2},
        },
        "policy": {
            "federations": ["lung", "liver"],
            "models": ["acmil"],
            "own_models": ["my-mil"],
            "max_local_epochs": 3,
            "max_parallel_runs": 2,
            "fine_tune": False,
            "min_patients": 5,
        },
        "state": tmp_path / "kept",
    }


def test_paths_do_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "site.toml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    config = load_site(Path("here/site.toml"))
    monkeypatch.chdir("/")
    assert config.data.manifest == tmp_path / "here/manifest.csv"
    assert config.state == tmp_path / "here/state"


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL)
    assert (config.data.validation_share, config.data.test_share) == (0.2, 0.2)
    assert (config.policy.federations, config.policy.models) == (None, None)
    assert (config.policy.max_local_epochs, config.policy.min_patients) == (50, 1)
    assert (config.compute.device, config.compute.precision, config.compute.threads) == ("auto", "auto", 1)


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (0.7, 0.4), (0.99, 0.01)])
def test_shares_must_leave_something_to_train_on(tmp_path: Path, validation: float, test: float) -> None:
    shares = f"validation_share = {validation}\ntest_share = {test}\n"
    error = fault(tmp_path, SMALL + shares)
    assert "key 'data': validation_share + test_share must stay below 1" in error.message


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("validation_share = 0", "data.validation_share"),
        ("test_share = 1.0", "data.test_share"),
        ("test_share = nan", "data.test_share"),
        ("split_seed = -1", "data.split_seed"),
        ('[compute]\ndevice = "tpu"', "compute.device"),
        ('[compute]\nprecision = "float16"', "compute.precision"),
        ("[compute]\nthreads = 0", "compute.threads"),
        ('[policy]\nmodels = "acmil"', "policy.models"),
        ("[policy]\nmin_patients = 0", "policy.min_patients"),
        ("[policy]\nmax_local_epochs = 2.5", "policy.max_local_epochs"),
        ('[policy]\nfederations = ["a b"]', "policy.federations.0"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, line: str, key: str) -> None:
    assert f"key '{key}'" in fault(tmp_path, f"{SMALL}{line}\n").message


def test_a_misspelt_policy_is_an_error_and_not_a_missing_policy(tmp_path: Path) -> None:
    error = fault(tmp_path, SMALL + "[policy]\nmin_patient = 10\n")
    assert error.message.endswith("key 'policy.min_patient' is unknown")
    assert error.remedy == "did you mean 'min_patients'?"
    assert fault(tmp_path, SMALL + "[polcy]\nmin_patients = 10\n").remedy == "did you mean 'policy'?"


def test_a_kit_names_federation_site_and_coordinator(tmp_path: Path) -> None:
    path = tmp_path / "kit.toml"
    path.write_text('federation = "lung"\nsite = "A"\naddress = "10.0.0.1:8443"\n')
    kit = load_toml(path, KitConfig)
    assert (kit.federation, kit.site, kit.address) == ("lung", "A", "10.0.0.1:8443")
    path.write_text('federation = "lung"\nsite = "A"\naddress = "10.0.0.1:84430"\n')
    with pytest.raises(ConfigError, match=r"key 'address' = '10\.0\.0\.1:84430'"):
        load_toml(path, KitConfig)
