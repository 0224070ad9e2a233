"""How sites train in a whole run: FedProx, SCAFFOLD, FedBN and steps, in every combination, undisturbed and killed."""

import json
import shutil
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from in_process import Killed, Sites, write_sites
from literal_training import literal_training
from own_package import MY_MIL as SOURCE
from own_package import write_package
from torch import Tensor

from fedpath.client.agent.carried import PERSONAL
from fedpath.client.agent.memory import SiteMemory
from fedpath.core.cohort import Example, load_cohort, load_examples
from fedpath.core.config import FederationConfig
from fedpath.core.config.federated import Combine, ServerOptimizer
from fedpath.core.errors import ConfigError
from fedpath.core.events import EventLog
from fedpath.core.exchange.groups import CONTROL, to_arrays
from fedpath.core.exchange.messages import Answer, Evaluation, Finish, Order, Train, Update
from fedpath.core.exchange.wire import Arrays
from fedpath.core.models import BagModel, load_model
from fedpath.core.training import TrainSettings, evaluate
from fedpath.core.training.alone import initial_model
from fedpath.server.folder import RunFolder
from fedpath.server.records import RoundManifest, read_rounds
from fedpath.server.rounds import FederatedRun
from fedpath.server.stages import check_models
from fedpath.server.talk import Asked, Reply

pytestmark = pytest.mark.usefixtures("nobody_comes_back")

NAMES = ("A", "B", "C")
LABELS = ["normal", "tumour"]
CONFIG: dict[str, Any] = {
    "federation": {"name": "test", "sites": list(NAMES), "seed": 5},
    "server": {"address": "localhost:1", "grace_s": 0.0, "min_sites": 2, "join_timeout_s": 1.0},
    "task": {"labels": LABELS},
    "features": {"encoder": "noise", "width": 8, "mpp": 0.5, "patch_px": 128},
    "model": {"name": "mean-pool", "options": {"inner": 4, "dropout": 0.0}},
    "training": {"rounds": 3, "learning_rate": 0.01, "weight_decay": 1e-3, "accumulate_bags": 2},
    "deadline": {"quorum_wait_s": 0.0},
}
MY_MIL = {"model": {"name": "my-mil", "options": {"hidden": 4}}}
SCAFFOLD, NORM = {"method": "scaffold"}, {"personal": ["norm"]}
BD: dict[str, Any] = {
    "model": {"name": "bd", "options": {"hidden": 8, "prompt": 4, "dropout": 0.1}},
    "clinical": {
        "fields": {
            "age": {"type": "number", "unit": "years", "minimum": 18.0, "maximum": 110.0, "outcome_derived": False}
        }
    },
}


@pytest.fixture(autouse=True)
def my_mil(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with batch norm, of a package that everybody has installed."""
    folder = tmp_path_factory.mktemp("site-packages")
    # Before a batch norm, and before a softmax, a bias has no effect and a gradient that is nothing but rounding.
    source = SOURCE
    for layer in ("nn.Linear(width, hidden", "nn.Linear(hidden, 1"):
        assert f"{layer})" in source
        source = source.replace(f"{layer})", f"{layer}, bias=False)")
    write_package(folder, source=source)
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hospitals; A and B have clinical tables."""
    folder = tmp_path_factory.mktemp("hospitals")
    write_sites(folder, NAMES)
    for site in NAMES:
        with (folder / site / "site.toml").open("a") as file:
            file.write('[policy]\nown_models = ["my-mil"]\n')
            if site != "C":
                rows = [f"patient-{site}-{number:02d},{40 + 3 * number}" for number in range(12)]
                (folder / site / "clinical.csv").write_text("\n".join(["patient_id,Age", *rows]) + "\n")
                file.write('[clinical]\ntable = "clinical.csv"\n[clinical.columns]\nage = "Age"\n')
    return folder


@pytest.fixture
def hospitals(drawn: Path, tmp_path: Path) -> Path:
    """Their own copies: every run leaves something at a hospital."""
    return shutil.copytree(drawn, tmp_path / "hospitals")


def config_with(**changes: Any) -> FederationConfig:
    return FederationConfig.model_validate(CONFIG | changes)


@dataclass
class Ran:
    """A run, as its folder has it."""

    folder: Path
    hospitals: Path
    summary: dict[str, Any]
    manifests: list[RoundManifest]
    name: str = "run"

    def model(self, name: str = "last") -> dict[str, Tensor]:
        return load_model(self.folder / f"{name}.safetensors")[0].state_dict()

    def kept(self, site: str) -> tuple[BagModel, dict[str, str]]:
        return load_model(self.hospitals / site / "state" / self.name / "federated.safetensors")

    def memory(self, site: str) -> SiteMemory:
        return SiteMemory(self.hospitals / site / "state" / self.name)

    def bits(self) -> dict[str, bytes]:
        """All that the run left: at the coordinator and at each hospital."""
        states = {f"coordinator/{name}": self.model(name) for name in ("best", "last")}
        states |= {site: self.kept(site)[0].state_dict() for site in NAMES}
        bits = {f"{of}/{name}": t.numpy().tobytes() for of, state in states.items() for name, t in state.items()}
        for site in NAMES:
            kept = self.memory(site).load(len(self.manifests))
            bits |= {f"{site}/{name}": array.tobytes() for name, array in kept.items()}
        return bits


def run(folder: Path, sites: Sites, hospitals: Path, *, name: str = "run", **changes: Any) -> Ran:
    config = config_with(**changes)
    federated = FederatedRun(
        config, name, initial_model(config), sites, RunFolder(folder, config), EventLog(), threading.Event()
    )
    return Ran(folder, hospitals, federated.execute().summary, read_rounds(folder), name)


def examples_of(hospitals: Path, site: str, split: str = "train") -> list[Example]:
    cohort = load_cohort(hospitals / site / "manifest.csv", labels=LABELS)
    return load_examples(cohort, hospitals / site / "features", split, width=8)  # type: ignore[arg-type]


def settings_of(config: FederationConfig) -> TrainSettings:
    training = config.training
    return TrainSettings(
        training.local_epochs, training.learning_rate, training.weight_decay, training.class_weights,
        training.accumulate_bags, steps=config.local.steps,
    )  # fmt: skip


# --- what the run is, without a federation ----------------------------------------------------------------------------


@dataclass
class Literal:
    """A whole run in float64: every site from the global model, the means over the sites, c and all c_i."""

    model: dict[str, Tensor]
    personal: dict[str, dict[str, Tensor]]
    c: dict[str, Tensor] = field(default_factory=dict)
    c_of: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def literal_run(config: FederationConfig, hospitals: Path, is_personal: Collection[str] = ()) -> Literal:
    """Repeat a run as the papers write it, with FedAvg's mean weighted by patients."""
    model, local = initial_model(config).double(), config.local
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = [name.removeprefix("module.") for name, _ in model.named_parameters()]
    names = [name for name in names if name not in is_personal]
    c = {name: torch.zeros_like(state[name]) for name in names}
    run = Literal(
        {name: tensor for name, tensor in state.items() if name not in is_personal},
        {site: {name: state[name].clone() for name in is_personal} for site in NAMES},
        c,
        {site: {name: torch.zeros_like(state[name]) for name in names} for site in NAMES},
    )
    for round_ in range(1, config.training.rounds + 1):
        patients, after, deltas = {}, {}, {}
        for site in NAMES:
            examples = examples_of(hospitals, site)
            model.load_state_dict(run.model | run.personal[site])
            correction = None
            if local.method == "scaffold":
                correction = {name: run.c[name] - run.c_of[site][name] for name in names}
            means = literal_training(
                model,
                examples,
                settings_of(config),
                seed=int.from_bytes(sha256(f"5/{site}/{round_}".encode()).digest()[:7]),
                span=((round_ - 1) / config.training.rounds, round_ / config.training.rounds),
                proximal=local.proximal if local.method == "fedprox" else 0.0,
                correction=correction,
                personal=is_personal,
            )
            trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            patients[site] = len({example.patient_id for example in examples})
            after[site] = {name: trained[name] for name in run.model}
            run.personal[site] = {name: trained[name] for name in is_personal}
            deltas[site] = {name: means[name] - run.c_of[site][name] for name in names if name in means}
            run.c_of[site] |= {name: means[name] for name in deltas[site]}
        whole = sum(patients.values())
        run.model = {
            name: sum(patients[site] / whole * after[site][name] for site in NAMES)  # type: ignore[misc]
            for name in run.model
        }
        for name in names:
            run.c[name] = run.c[name] + sum(deltas[site][name] for site in NAMES if name in deltas[site]) / len(NAMES)
    return run


def assert_close(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name].double(), expected[name].double(), rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "local",
    [
        {"method": "plain"},
        {"method": "fedprox", "proximal": 3.0},
        {"method": "scaffold"},
        {"method": "scaffold", "steps": 7},
        {"method": "plain", "steps": 3},
    ],
)
def test_a_run_ends_with_what_its_definition_gives(hospitals: Path, tmp_path: Path, local: dict[str, Any]) -> None:
    ran = run(tmp_path / "run", Sites(hospitals, NAMES), hospitals, local=local)
    expected = literal_run(config_with(local=local), hospitals)
    assert_close(ran.model(), expected.model)
    if local["method"] != "scaffold":
        assert not (hospitals / "A/state/run/kept").exists()
        return
    # c is the mean of the c_i, and each c_i is with its hospital.
    config = config_with(local=local)
    c = RunFolder(ran.folder, config).models.read_state(3, ran.manifests[-1].state)
    assert c is not None
    assert_close({name.removeprefix(f"{CONTROL}image/"): torch.from_numpy(array) for name, array in c.items()},
                 expected.c)  # fmt: skip
    for site in NAMES:
        own = ran.memory(site).load(3)
        assert_close({name.removeprefix(f"{CONTROL}image/"): torch.from_numpy(array) for name, array in own.items()},
                     expected.c_of[site])  # fmt: skip


@pytest.mark.parametrize("method", ["plain", "fedprox", "scaffold"])
def test_batch_norms_stay_at_their_hospitals(hospitals: Path, tmp_path: Path, method: str) -> None:
    local = NORM | {"method": method}
    ran = run(tmp_path / "run", Sites(hospitals, NAMES), hospitals, local=local, **MY_MIL)
    config = config_with(local=local, **MY_MIL)
    norms = [name for name in initial_model(config).state_dict() if "reduce.1." in name]
    assert len(norms) == 4
    expected = literal_run(config, hospitals, norms)
    last = ran.model()
    assert_close({name: last[name] for name in expected.model}, expected.model)
    # The coordinator's file is whole, and says what in it nobody trained.
    initial = initial_model(config).state_dict()
    assert all(torch.equal(last[name], initial[name]) for name in norms)
    assert json.loads(load_model(ran.folder / "last.safetensors")[1]["personal"]) == ["norm"]
    for site in NAMES:
        kept = ran.memory(site).load(3)
        assert_close(
            {n.removeprefix(f"{PERSONAL}image/"): torch.from_numpy(a) for n, a in kept.items() if PERSONAL in n},
            expected.personal[site],
        )


# --- what a hospital keeps --------------------------------------------------------------------------------------------


def test_each_hospital_ends_with_the_best_model_and_its_own_layers(hospitals: Path, tmp_path: Path) -> None:
    training = CONFIG["training"] | {"rounds": 7, "learning_rate": 0.05}
    ran = run(tmp_path / "run", Sites(hospitals, NAMES), hospitals, local=NORM, training=training, **MY_MIL)
    best, best_round = ran.model("best"), ran.summary["best_round"]
    assert ran.summary["personal"] == ["norm"]
    for site in NAMES:
        model, metadata = ran.kept(site)
        assert (metadata["round"], json.loads(metadata["personal"])) == (str(best_round), ["norm"])
        own = {n.removeprefix(f"{PERSONAL}image/"): a for n, a in ran.memory(site).load(best_round).items()}
        for name, tensor in model.state_dict().items():
            wanted = torch.from_numpy(own[name]).to(tensor.dtype) if name in own else best[name]
            assert torch.equal(tensor, wanted)
        # The figures are of this model, and not of one without the hospital's layers.
        found = evaluate(model, examples_of(hospitals, site, "test"))
        assert ran.summary["test"][site]["loss"] == pytest.approx(found.loss, rel=1e-6)
        judged = [manifest for manifest in ran.manifests if manifest.round == best_round + 1]
        for manifest in judged:
            validation = manifest.sites[site].validation
            assert validation is not None
            assert validation.loss == pytest.approx(evaluate(model, examples_of(hospitals, site, "validation")).loss)


def test_the_layers_of_a_best_model_of_long_ago_are_still_there(hospitals: Path, tmp_path: Path) -> None:
    """The model of round 1 is the best: it is made so by what the sites say of later ones."""

    class Worse(Sites):
        def answer(self, site: str, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
            answer, sent = super().answer(site, order, arrays)
            if isinstance(answer, Update):
                auc = 1.0 if answer.round == 2 else 0.5
                answer = answer.model_copy(
                    update={"validation": answer.validation.model_copy(update={"auc": auc, "patients": 2})}
                )
            if isinstance(answer, Evaluation):
                answer = answer.model_copy(update={"metrics": answer.metrics.model_copy(update={"auc": 0.5})})
            return answer, sent

    training = CONFIG["training"] | {"rounds": 9}
    ran = run(tmp_path / "run", Worse(hospitals, NAMES), hospitals, local=NORM, training=training, **MY_MIL)
    assert ran.summary["best_round"] == 1
    kept = sorted(path.stem for path in (hospitals / "A/state/run/kept").iterdir())
    assert kept == ["0001", "0005", "0006", "0007", "0008", "0009"]
    own = ran.memory("A").load(1)
    state = ran.kept("A")[0].state_dict()
    for name, array in own.items():
        assert np.array_equal(state[name.removeprefix(f"{PERSONAL}image/")].numpy(), array)


# --- every combination ------------------------------------------------------------------------------------------------


LOCALS: dict[str, dict[str, Any]] = {
    "plain": {},
    "steps": {"steps": 3},
    "fedprox": {"method": "fedprox"},
    "scaffold": SCAFFOLD,
    "fedbn": NORM,
    "fedprox+fedbn+steps": NORM | {"method": "fedprox", "steps": 3},
    "scaffold+fedbn+steps": SCAFFOLD | NORM | {"steps": 3},
}


@pytest.mark.parametrize("local", LOCALS)
def test_each_way_to_train_runs_with_each_combination_and_with_each_optimizer(
    hospitals: Path, tmp_path: Path, local: str
) -> None:
    # Dealt so that any two of the three choices meet; all three in all ways: below.
    combines, optimizers = get_args(Combine), get_args(ServerOptimizer)
    turn = list(LOCALS).index(local)
    run_each(
        [(combine, optimizers[(turn + place) % len(optimizers)]) for place, combine in enumerate(combines)],
        hospitals, tmp_path, LOCALS[local],
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("local", LOCALS)
def test_all_three_choices_in_all_ways(hospitals: Path, tmp_path: Path, local: str) -> None:
    run_each(list(product(get_args(Combine), get_args(ServerOptimizer))), hospitals, tmp_path, LOCALS[local])


def run_each(pairs: list[tuple[str, str]], hospitals: Path, folder: Path, local: dict[str, Any]) -> None:
    sites = Sites(hospitals, NAMES)
    for combine, optimizer in pairs:
        sites.return_all(NAMES)
        name = f"{combine}-{optimizer}"
        ran = run(
            folder / name,
            sites,
            hospitals,
            name=name,
            local=local,
            aggregation={"combine": combine, "byzantine": 0},
            optimizer={"name": optimizer},
            training=CONFIG["training"] | {"rounds": 2},
            server=CONFIG["server"] | {"min_sites": 3},
            **MY_MIL,
        )
        assert [manifest.counted() for manifest in ran.manifests] == [list(NAMES)] * 2, name
        assert len({ran.manifests[0].base, ran.manifests[0].result, ran.manifests[1].result}) == 3, name
        for tensor in (*ran.model().values(), *ran.kept("B")[0].state_dict().values()):
            assert torch.isfinite(tensor).all(), name


@pytest.mark.parametrize(
    "local",
    [SCAFFOLD, {"method": "fedprox"}, SCAFFOLD | {"personal": ["prompt"]}, {"personal": ["clinical", "fusion"]}],
)
def test_a_hospital_without_clinical_data_leaves_those_groups_out(
    hospitals: Path, tmp_path: Path, local: dict[str, Any]
) -> None:
    ran = run(tmp_path / "run", Sites(hospitals, NAMES), hospitals, local=local, **BD)
    personal = set(local.get("personal", []))
    assert not personal & ran.summary["groups"].keys()
    wanted = {group: ["A", "B"] for group in ("clinical", "fusion", "multi_head")}
    wanted |= {group: list(NAMES) for group in ("image", "prompt", "single_head")}
    assert ran.summary["groups"] == {group: sites for group, sites in wanted.items() if group not in personal}
    if local.get("method") == "scaffold":
        of_c = {name.partition("/")[0] for name in ran.memory("C").load(3) if name.startswith(CONTROL)}
        assert of_c == {f"{CONTROL}{group}" for group in {"image", "prompt", "single_head"} - personal}
        # c of a group is the mean over the hospitals that can train it.
        config = config_with(local=local, **BD)
        c = RunFolder(ran.folder, config).models.read_state(3, ran.manifests[-1].state)
        assert c is not None
        for name, array in c.items():
            of = [ran.memory(site).load(3).get(name) for site in NAMES]
            held = [own for own in of if own is not None]
            mean = np.mean(held, axis=0) if held else np.zeros_like(array)
            np.testing.assert_allclose(array, mean, rtol=1e-4, atol=1e-6, err_msg=name)


class Rounds(Sites):
    """Which know the round of each order."""

    def __init__(self, folder: Path, names: Collection[str]) -> None:
        super().__init__(folder, sorted(names))
        self.rounds: dict[Asked, int] = {}
        self.newest = 0

    def post(self, orders: Mapping[str, Order], arrays: Arrays, ttl_s: float) -> list[Asked]:
        """As all do."""
        posted = super().post(orders, arrays, ttl_s)
        training = {asked: order.round for asked in posted if isinstance(order := orders[asked.site], Train)}
        self.rounds |= training
        self.newest = max([self.newest, *training.values()])
        return posted


class Slow(Rounds):
    """Of whom C answers two rounds later."""

    def next_reply(self, asked: Collection[Asked], timeout_s: float) -> Reply | None:
        """The answer of the first that has one."""
        ready = [one for one in asked if one.site != "C" or self.newest >= self.rounds.get(one, -2) + 2]
        return super().next_reply(ready, timeout_s) if ready else None


@pytest.mark.parametrize("local", [SCAFFOLD, SCAFFOLD | NORM, {"method": "fedprox"}])
def test_late_updates_in_buffers(hospitals: Path, tmp_path: Path, local: dict[str, Any]) -> None:
    ran = run(
        tmp_path / "run", Slow(hospitals, NAMES), hospitals, local=local, asynchronous={"buffer": 2},
        training=CONFIG["training"] | {"rounds": 6}, **MY_MIL,
    )  # fmt: skip
    late = [(m.round, part.of_round) for m in ran.manifests for part in m.sites.values() if part.of_round is not None]
    assert late
    assert all(torch.isfinite(tensor).all() for tensor in ran.model().values())


# --- kills ------------------------------------------------------------------------------------------------------------

CARRYING = {"local": SCAFFOLD | NORM, **MY_MIL}


class Forgetful(Sites):
    """Whose agents are killed after every order, and are started again."""

    def answer(self, site: str, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
        result = super().answer(site, order, arrays)
        self._workers.pop(site)
        return result


def test_agents_that_are_killed_all_the_time_change_no_bit(drawn: Path, tmp_path: Path) -> None:
    ends = []
    for kind in (Sites, Forgetful):
        own = shutil.copytree(drawn, tmp_path / kind.__name__)
        ends.append(run(tmp_path / f"run-{kind.__name__}", kind(own, NAMES), own, **CARRYING).bits())
    assert ends[0] == ends[1]


@pytest.mark.parametrize("moment", [(1, "B"), (2, "A"), (2, "C"), (3, "B"), (0, "A")])
def test_a_coordinator_that_is_killed_while_an_order_is_out_changes_no_bit(
    drawn: Path, tmp_path: Path, moment: tuple[int, str]
) -> None:
    """An order is carried out, and kept here, and its answer is lost; (0, A) is the goodbye."""

    class Dying(Sites):
        def answer(self, site: str, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
            answer = super().answer(site, order, arrays)
            if (getattr(order, "round", 0), site) == moment and isinstance(order, Train | Finish):
                raise Killed
            return answer

    own, others = (shutil.copytree(drawn, tmp_path / name) for name in ("own", "others"))
    whole = run(tmp_path / "whole", Sites(others, NAMES), others, **CARRYING)
    with pytest.raises(Killed):
        run(tmp_path / "run", Dying(own, NAMES), own, **CARRYING)
    again = run(tmp_path / "run", Sites(own, NAMES), own, **CARRYING)
    assert again.bits() == whole.bits()
    assert again.summary == whole.summary


def test_a_coordinator_that_is_killed_between_any_two_writes_changes_no_bit(drawn: Path, tmp_path: Path) -> None:
    own, others = (shutil.copytree(drawn, tmp_path / name) for name in ("own", "others"))
    training = {"training": CONFIG["training"] | {"rounds": 2}}
    whole = run(tmp_path / "whole", Sites(others, NAMES), others, **CARRYING, **training)
    rename, state = Path.replace, tmp_path / "coordinator"
    for number in range(2, 40, 3):
        shutil.rmtree(state, ignore_errors=True)
        done = 0

        def dying(path: Path, target: Path, at: int = number) -> Path:
            nonlocal done
            done += state in Path(target).parents
            if done == at:
                raise Killed
            return rename(path, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", dying)
            try:
                run(state, Sites(own, NAMES), own, **CARRYING, **training)
            except Killed:
                pass
            else:
                break
        assert run(state, Sites(own, NAMES), own, **CARRYING, **training).bits() == whole.bits()
    else:
        pytest.fail("the run has no end")
    assert number > 12


class Spoiling(Rounds):
    """Of whom B's update of round 2 does not count, for one reason or another."""

    def __init__(self, folder: Path, names: Collection[str], how: str) -> None:
        super().__init__(folder, names)
        self._how = how

    def answer(self, site: str, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
        if not (site == "B" and isinstance(order, Train) and order.round == 2):
            return super().answer(site, order, arrays)
        if self._how == "away":
            raise AssertionError("nobody asks a site that is away")
        answer, sent = super().answer(site, order, arrays)
        if self._how == "weights":
            sent = {name: np.full_like(array, np.nan) for name, array in sent.items()}
        if self._how == "control":
            sent |= {name: np.full_like(array, np.inf) for name, array in sent.items() if name.startswith(CONTROL)}
        return answer, sent

    def online(self) -> set[str]:
        round_1_is_over = {(site, "train") for site in NAMES} <= set(self.heard)
        away = self._how == "away" and round_1_is_over and self.newest < 3
        return super().online() - ({"B"} if away else set())


def test_an_update_that_does_not_count_leaves_no_trace(drawn: Path, tmp_path: Path) -> None:
    ends = {}
    for how in ("away", "weights", "control"):
        own = shutil.copytree(drawn, tmp_path / how)
        ran = run(tmp_path / f"run-{how}", Spoiling(own, NAMES, how), own, **CARRYING)
        outcome = ran.manifests[1].sites["B"].outcome
        assert outcome == ("lost" if how == "away" else "refused")
        assert ran.manifests[1].counted() == ["A", "C"]
        ends[how] = ran.bits()
    assert ends["weights"] == ends["control"] == ends["away"]


# --- what is refused before anybody waits -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"local": {"personal": ["nrom"]}}, "the model has no parameter group 'nrom'"),
        ({"local": {"personal": ["image"]}}, "nothing is left for the federation to train"),
        ({"local": {"personal": ["standard"]}, **BD}, "group 'standard' holds what the sites agree on"),
        (
            {"local": {"personal": ["prompt"]}, "stage": [{"kind": "train", "name": "first"}]},
            "stage 'first': local.personal: the model has no parameter group 'prompt'",
        ),
    ],
)
def test_personal_groups_that_are_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_models(config_with(**changes))


def test_arrays_that_travel_are_those_that_are_not_personal(hospitals: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, set[str]]] = []

    class Looking(Sites):
        def answer(self, site: str, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
            answer, sent = super().answer(site, order, arrays)
            seen.extend([(order.kind, set(arrays)), (answer.kind, set(sent))])
            return answer, sent

    run(tmp_path / "run", Looking(hospitals, NAMES), hospitals, **CARRYING)
    config = config_with(**CARRYING)
    travels = {name for name in to_arrays(initial_model(config)) if "reduce.1." not in name}
    control = {CONTROL + name for name in travels}
    holds = {"train": travels | control, "update": travels | control, "evaluate": travels, "finish": travels}
    assert {kind for kind, _ in seen} >= holds.keys()
    for kind, names in seen:
        assert names == holds.get(kind, set())
