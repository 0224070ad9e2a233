"""`fedpath simulate`: who is dealt what, what the file's settings become, what a hospital answers. Without Ray."""

import io
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import fedpath
from federation import WIDTH, write_cohort
from in_process import Sites, write_sites
from rich.console import Console

from fedpath.cli.simulate.deal import deal_patients
from fedpath.cli.simulate.federation import simulated, site_names
from fedpath.cli.simulate.hospital import answer
from fedpath.cli.simulate.hospitals import Deal, check_folder, make_hospitals
from fedpath.cli.simulate.planted import draw_bags, manifest
from fedpath.cli.simulate.show import View
from fedpath.cli.simulate.talk import Failures
from fedpath.core.bags.store import read_bag
from fedpath.core.cohort import Cohort, load_cohort
from fedpath.core.config import FederationConfig, SiteConfig, load_site
from fedpath.core.config.federated import ExchangeSection
from fedpath.core.errors import ConfigError
from fedpath.core.events import Event
from fedpath.core.exchange.groups import to_arrays
from fedpath.core.exchange.messages import (
    Describe,
    Refusal,
    Train,
    Update,
    decode_answer,
    encode,
)
from fedpath.core.exchange.stored import ArrayFile
from fedpath.core.exchange.wire import Apart, Arrays, apart_from, hash_arrays
from fedpath.core.files import sha256_file
from fedpath.core.training.alone import initial_model
from fedpath.server.rounds import facts_of

LABELS = ["normal", "tumour"]
SETTINGS: dict[str, Any] = {
    "federation": {"name": "test", "sites": ["A", "B", "C", "D"]},
    "server": {"address": "localhost:1"},
    "task": {"labels": LABELS},
    "features": {"encoder": "noise", "width": WIDTH, "mpp": 0.5, "patch_px": 128},
    "model": {"name": "acmil", "options": {"inner": 4, "attention": 4}},
    "training": {"rounds": 2, "learning_rate": 0.01},
}
TOML = f"""
[federation]
name = "test"
sites = ["A", "B"]
[server]
address = "localhost:1"
[task]
labels = ["normal", "tumour"]
[features]
encoder = "noise"
width = {WIDTH}
mpp = 0.5
patch_px = 128
[model]
name = "acmil"
options = {{ inner = 4, attention = 4 }}
[training]
rounds = 2
learning_rate = 0.01
"""


def config_with(**changes: dict[str, Any]) -> FederationConfig:
    return FederationConfig.model_validate(
        {key: SETTINGS.get(key, {}) | changes.get(key, {}) for key in SETTINGS | changes}
    )


# --- who is dealt what ------------------------------------------------------------------------------------------------


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """100 drawn patients: 60 to train on, 20 to validate, 20 to test."""
    (tmp_path / "manifest.csv").write_text(manifest(config_with(), 100))
    return load_cohort(tmp_path / "manifest.csv", labels=LABELS)


def counted(cohort: Cohort, dealt: dict[str, str]) -> dict[str, Counter[tuple[str, int]]]:
    """Each hospital's slides by split and label."""
    hospitals: dict[str, Counter[tuple[str, int]]] = {site: Counter() for site in dealt.values()}
    for slide in cohort.slides:
        hospitals[dealt[slide.patient_id]][slide.split, slide.label] += 1
    return hospitals


def test_patients_are_dealt_like_cards(cohort: Cohort) -> None:
    dealt = deal_patients(cohort, site_names(7), seed=0)
    assert dealt.keys() == {slide.patient_id for slide in cohort.slides}
    hospitals = counted(cohort, dealt)
    assert sorted(hospitals) == site_names(7)
    for split, label in [(split, label) for split in ("train", "validation", "test") for label in (0, 1)]:
        numbers = [hospital[split, label] for hospital in hospitals.values()]
        assert max(numbers) - min(numbers) <= 1
    sizes = [hospital.total() for hospital in hospitals.values()]
    assert max(sizes) - min(sizes) <= 1
    assert deal_patients(cohort, site_names(7), seed=0) == dealt
    assert deal_patients(cohort, site_names(7), seed=1) != dealt


@pytest.mark.parametrize("skew", [0.05, 1.0, 1000.0])
def test_skewed_hospitals_differ_in_labels_but_not_in_size(cohort: Cohort, skew: float) -> None:
    dealt = deal_patients(cohort, site_names(10), seed=0, skew=skew)
    assert dealt == deal_patients(cohort, site_names(10), seed=0, skew=skew)
    hospitals = counted(cohort, dealt)
    assert {hospital.total() for hospital in hospitals.values()} == {10}
    assert {hospital["train", 0] + hospital["train", 1] for hospital in hospitals.values()} == {6}
    shares = [
        (hospital["train", 0] + hospital["validation", 0] + hospital["test", 0]) / 10 for hospital in hospitals.values()
    ]
    spread = float(np.std(shares))
    low, high = {0.05: (0.3, 0.5), 1.0: (0.15, 0.45), 1000.0: (0.0, 0.2)}[skew]
    assert low <= spread <= high


def test_more_hospitals_than_training_patients(cohort: Cohort) -> None:
    with pytest.raises(ConfigError, match=r"61 hospitals, but .* 60 training patients"):
        deal_patients(cohort, site_names(61), seed=0)


def test_any_process_draws_the_same_bag(tmp_path: Path) -> None:
    config = config_with()
    draw_bags(config, tmp_path / "one", 12, range(12), seed=3)
    draw_bags(config, tmp_path / "two", 12, [7], seed=3)
    (path,) = (tmp_path / "two").iterdir()
    one, two = read_bag(tmp_path / "one" / path.name), read_bag(path)
    assert one.features_ND.equal(two.features_ND)
    planted = np.stack([read_bag(path).features_ND.numpy() for path in sorted((tmp_path / "one").iterdir())])
    # The odd ones have the second label: their first instances are shifted.
    apart = planted[1::2, :4].mean(axis=(0, 1)) - planted[::2, :4].mean(axis=(0, 1))
    assert 2 < float(np.linalg.norm(apart)) < 4


# --- what the file's settings become ----------------------------------------------------------------------------------


def test_names_sort_as_they_count() -> None:
    assert site_names(2) == ["site-001", "site-002"]
    assert site_names(1000) == sorted(site_names(1000))


@pytest.mark.parametrize(("stated", "needed"), [(None, 100), (1, 50), (3, 150), (4, 200)])
def test_the_quorum_keeps_its_share(stated: int | None, needed: int) -> None:
    config = config_with(server={"min_sites": stated})
    many = simulated(config, site_names(200), seed=7)
    assert many.min_sites == needed
    assert (many.federation.sites, many.federation.seed) == (site_names(200), 7)
    assert (config.federation.sites, config.federation.seed) == (["A", "B", "C", "D"], 0)
    # Whoever takes long shares the cores with others: nobody is late.
    assert many.server.round_timeout_s > 1e6
    assert (many.server.grace_s, many.deadline.quorum_wait_s) == (0, 0)


def test_a_scale_for_a_hospital_that_is_not_there() -> None:
    config = config_with(local={"learning_rate_scale": {"B": 0.5}})
    with pytest.raises(ConfigError, match="learning_rate_scale names B"):
        simulated(config, site_names(3))
    assert simulated(config, ["A", "B"]).local.learning_rate_scale == {"B": 0.5}


def test_failures_are_of_the_seed() -> None:
    config = config_with()
    orders = [train_order(config, {}, round_=round_) for round_ in (1, 2)]
    failing = {
        (site, order.round): Failures(0.1, seed=1).die_at(site, order) for site in site_names(500) for order in orders
    }
    dead = [at for at in failing.values() if at is not None]
    assert 60 < len(dead) < 140
    assert set(dead) == {"validated", "trained"}
    assert failing[site_names(500)[0], 1] == Failures(0.1, seed=1).die_at(site_names(500)[0], orders[0])
    assert Failures(1.0).die_at("A", Describe(facts=orders[0].facts)) is None
    assert not any(Failures(0.0).die_at(site, orders[0]) for site in site_names(500))


# --- hospitals --------------------------------------------------------------------------------------------------------


def train_order(config: FederationConfig, model: Arrays, *, round_: int = 1) -> Train:
    return Train(
        facts=facts_of(config, "run"),
        round=round_,
        rounds=2,
        base=hash_arrays(model),
        local_epochs=1,
        learning_rate=0.01,
        weight_decay=0.0,
        class_weights=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hospitals' folders; not to be changed."""
    folder = tmp_path_factory.mktemp("hospitals")
    write_sites(folder, "ABCD")
    return folder


def hospitals_in(folder: Path, state: Path, *names: str) -> dict[str, SiteConfig]:
    return {
        name: load_site(folder / name / "site.toml").model_copy(update={"state": state / name})
        for name in names or "ABCD"
    }


def test_a_hospital_answers_as_its_worker_does(folder: Path, tmp_path: Path) -> None:
    config = config_with()
    model = to_arrays(initial_model(config))
    site, order = hospitals_in(folder, tmp_path, "A")["A"], train_order(config, model)
    got = answer(site, "test", encode(order), model, tmp_path / "file")
    (update, arrays), (_, expected) = decode_answer(got.content), Sites(folder, "A").answer("A", order, model)
    assert isinstance(update, Update)
    assert hash_arrays(arrays) == hash_arrays(expected)
    assert got.file is None
    assert not (tmp_path / "file").exists()
    assert "trained" in (tmp_path / "A" / "events.jsonl").read_text()


def test_a_large_answer_is_a_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpath.core.exchange.parcel.LARGE", 100)
    config = config_with()
    model = to_arrays(initial_model(config))
    site = hospitals_in(folder, tmp_path, "A")["A"]
    order = train_order(config, model).model_copy(update={"exchange": ExchangeSection(encoding="int8")})
    got = answer(site, "test", encode(order), model, tmp_path / "file")
    update, arrays = decode_answer(got.content)
    assert isinstance(update, Update)
    assert arrays == {}
    assert got.file is not None
    assert got.apart == apart_from(got.content)
    assert got.apart == Apart(sha256_file(got.file), got.file.stat().st_size)
    with ArrayFile(got.file) as file:
        assert file.names == model.keys()
        assert file.changes


def test_what_is_wrong_at_a_hospital_is_told_in_full(tmp_path: Path) -> None:
    write_sites(tmp_path, "A")
    (tmp_path / "A" / "features" / "slide-A-03.h5").write_bytes(b"torn")
    config = config_with()
    order = encode(Describe(facts=facts_of(config, "run")))
    got = answer(load_site(tmp_path / "A" / "site.toml"), "test", order, {}, tmp_path / "file")
    refusal, _ = decode_answer(got.content)
    assert isinstance(refusal, Refusal)
    assert "slide-A-03.h5" in refusal.reason


def test_dealt_hospitals_share_the_features(tmp_path: Path) -> None:
    write_cohort(tmp_path / "data", "X", seed=0, patients=24)
    config = simulated(config_with(), site_names(4))
    deal = Deal(site_names(4), {}, tmp_path / "data", 0, None, 0)
    hospitals = make_hospitals(deal, config, tmp_path / "out", None)
    assert list(hospitals) == site_names(4)
    slides = [
        slide.slide_id for site in hospitals.values() for slide in load_cohort(site.data.manifest, labels=LABELS).slides
    ]
    assert sorted(slides) == sorted(path.stem for path in (tmp_path / "data" / "features").iterdir())
    assert {site.data.features for site in hospitals.values()} == {tmp_path / "data" / "features"}
    # Once more, as after a kill; and not for other hospitals.
    check_folder(tmp_path / "out")
    assert make_hospitals(deal, config, tmp_path / "out", None) == hospitals
    with pytest.raises(ConfigError, match="other hospitals"):
        make_hospitals(Deal(site_names(3), {}, tmp_path / "data", 0, None, 0), config, tmp_path / "out", None)


def test_a_cohort_by_its_site_toml(tmp_path: Path) -> None:
    write_sites(tmp_path, "X")
    (tmp_path / "X" / "manifest.csv").rename(tmp_path / "X" / "list.csv")
    toml = tmp_path / "X" / "site.toml"
    toml.write_text(toml.read_text().replace("manifest.csv", "list.csv") + "[compute]\nthreads = 2\n")
    for data in (tmp_path / "X", toml):
        deal = Deal(site_names(2), {}, data, 0, None, 0)
        hospitals = make_hospitals(deal, simulated(config_with(), site_names(2)), tmp_path / "out", None)
        assert [site.compute.threads for site in hospitals.values()] == [2, 2]
        assert [site.site.name for site in hospitals.values()] == site_names(2)
        (tmp_path / "out" / "simulation.json").unlink()


def test_real_hospitals_keep_their_own_state(folder: Path, tmp_path: Path) -> None:
    given = {name: folder / name / "site.toml" for name in "AB"}
    config = simulated(config_with(), list(given))
    hospitals = make_hospitals(Deal(list(given), given, None, 0, None, 0), config, tmp_path, None)
    assert hospitals["A"].state.is_relative_to(tmp_path)
    with pytest.raises(ConfigError, match="is of site 'B'"):
        make_hospitals(Deal(["A"], {"A": given["B"]}, None, 0, None, 0), config, tmp_path / "other", None)


# --- the command's own errors -----------------------------------------------------------------------------------------


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    (tmp_path / "federation.toml").write_text(TOML)
    return tmp_path / "federation.toml"


def test_options_that_do_not_fit(toml: Path, tmp_path: Path) -> None:
    start = ["simulate", "--config", toml]
    fedpath(*start, "--sites", "3", "--site", "A=a.toml").assert_error(2, "--sites deals a cohort")
    fedpath(*start, "--data", tmp_path, "--site", "A=a.toml").assert_error(2, "--data deals a cohort")
    fedpath(*start, "--site", "A").assert_error(2, "is not NAME=FILE")
    fedpath(*start, "--out", tmp_path).assert_error(2, "holds no simulation")
    fedpath(*start, "--out", tmp_path / "out", "--ray-address", "127.0.0.1:1").assert_error(2, "no Ray cluster there")
    assert not (tmp_path / "out").exists()


def test_without_ray(toml: Path, tmp_path: Path) -> None:
    script = "import sys; sys.modules['ray'] = None; from fedpath.cli.main import main; main()"
    command = [sys.executable, "-c", script, "simulate", "--config", str(toml), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: this command needs ray, which is not installed\nremedy: pip install 'fedpath[ray]'\n"
    )
    assert not (tmp_path / "out").exists()


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contributed", "line"),
    [
        (["A", "B", "C"], "round 1 of 2: 3 of 4 hospitals counted, 1.5 s (2 a second)"),
        # Krum takes one of them.
        (["B"], "round 1 of 2: 1 of 4 hospitals counted, 2 more answered, 1.5 s (2 a second)"),
    ],
)
def test_who_counted_is_who_is_in_the_model(contributed: list[str], line: str) -> None:
    console = Console(file=io.StringIO(), width=200)
    view = View(console)
    view.event(Event("round_started", 0.0, {"round": 1, "rounds": 2, "sites": list("ABCD")}))
    finished = {"round": 1, "seconds": 1.5, "answered": ["A", "B", "C"], "contributed": contributed}
    view.event(Event("round_finished", 0.0, finished))
    assert console.file.getvalue().splitlines() == [line]  # type: ignore[attr-defined]
