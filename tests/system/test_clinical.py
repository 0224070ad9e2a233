"""Clinical data in a whole run: who trains what, what the mean is of, what reaches the coordinator."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from federation import BD, CLINICAL, Federation, write_clinical
from torch import Tensor

from fedpath.client.audit import verify
from fedpath.core.clinical.standard import agree, statistics_of
from fedpath.core.cohort import Example
from fedpath.core.config import FederationConfig, load_federation, load_site
from fedpath.core.models import load_model
from fedpath.core.models.multimodal.parts import MultimodalModel
from fedpath.core.training.alone import initial_model
from fedpath.core.training.data import load_site_examples
from fedpath.core.training.loop import train
from fedpath.core.training.settings import TrainSettings
from fedpath.server.records import read_rounds

pytestmark = pytest.mark.system

EVERYBODY, CLINICAL_GROUPS = ["image", "prompt", "single_head"], ["clinical", "fusion", "multi_head"]
State = dict[str, Tensor]

# Has no table, and sends the clinical encoder as if it had trained it on all its patients.
_PRETENDER = """
from fedpath.client.agent.worker import Worker
from fedpath.core.exchange.groups import group_of
from fedpath.cli.main import main

honest = Worker._train

def pretending(self, order, arrays):
    update, trained = honest(self, order, arrays)
    trained |= {name: array + 1 for name, array in arrays.items() if group_of(name) == "clinical"}
    return update.model_copy(update={"patients": update.patients | {"clinical": update.patients["image"]}}), trained

Worker._train = pretending
main()
"""

# Says that its patients are as old as nobody can be.
_BOASTER = """
from fedpath.client.agent import describe
from fedpath.cli.main import main

honest = describe.statistics_of

def impossible(schema, records, *, min_patients):
    statistics = honest(schema, records, min_patients=min_patients)
    age = statistics.fields["age"]
    return statistics.model_copy(update={"fields": {"age": age.model_copy(update={"sum": 200.0 * age.count})}})

describe.statistics_of = impossible
main()
"""


def run(federation: Federation) -> Path:
    """The whole run; its folder."""
    federation.start_server()
    federation.start_sites()
    names = ("server", *federation.sites)
    assert [federation.wait(name) for name in names] == [0, 0, 0, 0]
    assert not any("Traceback" in federation.output(name) for name in names)
    return federation.run_folder()


def test_each_group_is_the_mean_over_those_who_trained_it(federation: Federation) -> None:
    """A has a whole table, B one of half its patients, C none."""
    federation.configure(rounds=2, model=BD, clinical=CLINICAL)
    write_clinical(federation.site("A"), "A", seed=0)
    write_clinical(federation.site("B"), "B", seed=1, patients=range(0, 12, 2))
    folder = run(federation)

    for manifest in read_rounds(folder):
        assert manifest.sites["A"].patients == dict.fromkeys(sorted(EVERYBODY + CLINICAL_GROUPS), 8)
        assert manifest.sites["B"].patients == dict.fromkeys(EVERYBODY, 8) | dict.fromkeys(CLINICAL_GROUPS, 4)
        assert manifest.sites["C"].patients == dict.fromkeys(EVERYBODY, 8)
        assert manifest.patients == dict.fromkeys(EVERYBODY, 24) | dict.fromkeys(CLINICAL_GROUPS, 12)
    _weights_equal_a_literal_average(federation, folder)

    summary = json.loads((folder / "summary.json").read_text())
    trained = {
        "".join(sites): sorted(group for group, by in summary["groups"].items() if by == sites)
        for sites in (["A", "B", "C"], ["A", "B"])
    }
    assert trained == {"ABC": EVERYBODY, "AB": CLINICAL_GROUPS}
    assert summary["groups_never_trained"] == []
    clinical = summary["clinical"]
    assert clinical == json.loads((folder / "run.json").read_text())["clinical"]
    assert (clinical["patients"], clinical["sites"], clinical["sites_without"]) == (12, {"A": 8, "B": 4}, ["C"])
    assert {name: field["sites"] for name, field in clinical["fields"].items()} == {"age": ["A", "B"], "er": ["A", "B"]}
    assert clinical["says"] == (
        "clinical data of 12 training patients at A, B; none reported by C; age from 2, er from 2"
    )
    assert clinical["says"] in federation.output("server")
    assert "8 of 8 training patients have clinical data; told the coordinator sums of age (8), er" in federation.output(
        "A"
    )

    holds = [record.holds for record in verify(federation.site("A") / "state" / "audit.jsonl")]
    assert holds[0].endswith("counts and sums over 8 patients with clinical data (age, er)")
    assert "(clinical, fusion, image, multi_head, prompt, single_head)" in holds[1]
    events = [json.loads(line) for line in (federation.site("A") / "state" / "events.jsonl").open()]
    assert [event["routes"] for event in events if event["kind"] == "evaluated"] == [{"multi-modal": 2}] * 2
    _nothing_of_a_table_reached_the_coordinator(federation)


def _weights_equal_a_literal_average(federation: Federation, folder: Path) -> None:
    """Repeat the run without any federation: agree on the fields, train at each site from the mean, average, again."""
    torch.set_num_threads(1)  # as site.toml's compute.threads: more threads sum in another order
    config = load_federation(federation.toml)
    assert config.clinical is not None
    data = {
        site: load_site_examples(load_site(federation.site(site) / "site.toml"), config)["train"]
        for site in federation.sites
    }
    records = [{example.patient_id: example.bag.clinical for example in data[site]}.values() for site in "AB"]
    known = [[record for record in one if record is not None] for one in records]
    model = initial_model(config)
    assert isinstance(model, MultimodalModel)
    model.use_standard(agree(config.clinical, [statistics_of(config.clinical, one, min_patients=1) for one in known]))
    groups = model.parameter_groups()
    mean = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for round_ in (1, 2):
        a, b, c = (_trained(config, mean, data[site], site, round_) for site in federation.sites)
        # In float32 and this order, to the bit; eight patients each, of B's four have a record.
        for name in (name for group in EVERYBODY for name in groups[group]):
            two = torch.add(a[name] * (8 / 24), b[name], alpha=8 / 24)
            mean[name] = torch.add(two, c[name], alpha=8 / 24)
        for name in (name for group in CLINICAL_GROUPS for name in groups[group]):
            assert c[name].equal(mean[name])  # no step of C's training touches them
            mean[name] = torch.add(a[name] * (8 / 12), b[name], alpha=4 / 12)
    assert _state(folder / "last.safetensors") == {name: tensor.numpy().tobytes() for name, tensor in mean.items()}


def _trained(config: FederationConfig, mean: State, examples: list[Example], site: str, round_: int) -> State:
    model = initial_model(config)
    model.load_state_dict(mean)
    digest = hashlib.sha256(f"{config.federation.seed}/{site}/{round_}".encode()).digest()
    settings = TrainSettings(1, config.training.learning_rate, config.training.weight_decay, True)
    train(model, examples, settings, seed=int.from_bytes(digest[:7]), span=((round_ - 1) / 2, round_ / 2))
    return model.state_dict()


def _state(path: Path) -> dict[str, bytes]:
    model, _ = load_model(path)
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def _nothing_of_a_table_reached_the_coordinator(federation: Federation) -> None:
    """No patient, cell, heading or word of a hospital's table is in any file of the coordinator."""
    words = {b"Pat-ID"}
    for site in "AB":
        for line in (federation.site(site) / f"clinical-{site}.csv").read_text().splitlines():
            words |= {cell.encode() for cell in line.split(";") if len(cell) > 3}
    assert {b"patient-A-01", b"Alter-B", b"pos-A"} < words
    files = [path for path in federation.state.rglob("*") if path.is_file()]
    assert any(path.name == "flower.db" for path in files)
    for path in files:
        content = path.read_bytes()
        assert [word for word in words if word in content] == [], path


def test_where_nobody_has_clinical_data_the_single_modal_branch_is_trained(federation: Federation) -> None:
    """Nor does a hospital that has a table of fewer patients than it may tell, or one in which nothing is known."""
    federation.configure(rounds=2, model=BD, clinical=CLINICAL)
    write_clinical(federation.site("B"), "B", seed=1, patients=range(3))
    with (federation.site("B") / "site.toml").open("a") as file:
        file.write("[policy]\nmin_patients = 4\n")
    write_clinical(federation.site("C"), "C", seed=2)
    rows = [f"patient-C-{number:02d};NA;" for number in range(12)]
    (federation.site("C") / "clinical-C.csv").write_text("\n".join(["Pat-ID;Alter-C;Rezeptor-C", *rows]) + "\n")
    folder = run(federation)

    said = "no site reports clinical data: only the single-modal branch is trained"
    assert said in federation.output("server")
    few = "3 of 8 training patients have clinical data: fewer than policy.min_patients (4)"
    assert few in federation.output("B")
    assert few not in federation.output("server")
    assert "0 of 8 training patients have clinical data" in federation.output("C")
    assert all(manifest.patients == dict.fromkeys(EVERYBODY, 24) for manifest in read_rounds(folder))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["groups_never_trained"] == CLINICAL_GROUPS
    assert (summary["clinical"]["patients"], summary["clinical"]["sites_without"]) == (0, ["A", "B", "C"])
    assert summary["clinical"]["says"] == said

    initial = initial_model(load_federation(federation.toml))
    started = {name: tensor.numpy().tobytes() for name, tensor in initial.state_dict().items()}
    ended = _state(folder / "last.safetensors")
    for group, names in initial.parameter_groups().items():
        assert (group in EVERYBODY) == any(started[name] != ended[name] for name in names), group


def test_what_cannot_be_true_is_refused_by_name_and_the_others_go_on(tmp_path: Path) -> None:
    """B's table says two things of one patient, C sends a clinical group without a table, D impossible sums."""
    with Federation(tmp_path, ["A", "B", "C", "D"]) as federation:
        federation.configure(rounds=1, min_sites=1, model=BD, clinical=CLINICAL, server="join_timeout_s = 60")
        for site in "ABD":
            write_clinical(federation.site(site), site, seed=0)
        with (federation.site("B") / "clinical-B.csv").open("a") as file:
            file.write("patient-B-03;99;\n")
        # All must be there before the coordinator asks: it starts with min_sites, so it is started last.
        federation.start_sites("A", "B")
        federation.start_script("C", _PRETENDER, federation.join_arguments("C"))
        federation.start_script("D", _BOASTER, federation.join_arguments("D"))
        for site in federation.sites:
            federation.wait_for_output(site, "waiting up to")
        federation.start_server()
        assert [federation.wait(name) for name in ("server", "A", "B", "C", "D")] == [0, 0, 3, 0, 5]

        assert "patient 'patient-B-03': contradiction" in federation.output("B")
        assert "site B: refused: the site could not do it; its own log says why" in federation.output("server")
        for path in (path for path in federation.state.rglob("*") if path.is_file()):
            assert b"patient-B" not in path.read_bytes(), path
        impossible = "clinical statistics of 'age' are impossible: a mean of 200 outside 18 to 110 years"
        assert f"site D: refused: {impossible}" in federation.output("server")
        assert impossible in federation.output("D")
        (manifest,) = read_rounds(federation.run_folder())
        assert {site: part.outcome for site, part in manifest.sites.items()} == {"A": "answered", "C": "refused"}
        reason = (
            "site C, round 1: update refused: it sends group clinical, which only patients with clinical data train, "
            "and described none"
        )
        assert manifest.sites["C"].reason == reason
        assert manifest.patients == dict.fromkeys(EVERYBODY + CLINICAL_GROUPS, 8)
        assert f"site C: refused: {reason}" in federation.output("server")
        summary = json.loads((federation.run_folder() / "summary.json").read_text())
        assert summary["clinical"]["sites"] == {"A": 8}
        assert not any("Traceback" in federation.output(name) for name in ("server", *federation.sites))
