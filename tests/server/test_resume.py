"""A coordinator that is killed between any two writes and started again ends with the weights of an undisturbed run."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from in_process import Killed, Sites, settings, write_sites

from fedpath.core.config import FederationConfig
from fedpath.core.errors import ConfigError, DataError, FederationError
from fedpath.core.events import Event, EventLog
from fedpath.core.exchange.groups import to_arrays
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.core.models import load_model
from fedpath.core.training.alone import initial_model
from fedpath.server.folder import RunFolder
from fedpath.server.pipeline import Pipeline
from fedpath.server.records import read_rounds
from fedpath.server.rounds import FederatedRun
from fedpath.server.runs import OpenRun, open_run

pytestmark = pytest.mark.usefixtures("nobody_comes_back")

NAMES = ("A", "B", "C")
# Writes: settings twice, the initial model; then in each round three updates, the model, its manifest, best and last.
AFTER_ROUND_1 = 3 + 6 + 1
AFTER_ROUND_2 = 3 + 6 + 7 + 1
CONFIG = settings(NAMES, deadline={"quorum_wait_s": 0.0})
TWO_STAGES = [
    {"kind": "train", "name": "first", "training": {"rounds": 1}, "model": {"name": "mean-pool"}},
    {"kind": "train", "name": "second", "training": {"rounds": 2}},
]
INT8: dict[str, Any] = {"exchange": {"encoding": "int8"}, "training": {"rounds": 3, "learning_rate": 0.01}}
"""Hospitals carry what an update leaves out to the next one."""
BD: dict[str, Any] = {
    "model": {"name": "bd", "options": {"hidden": 8, "prompt": 4, "dropout": 0.1}},
    "clinical": {
        "fields": {
            "age": {"type": "number", "unit": "years", "minimum": 18.0, "maximum": 110.0, "outcome_derived": False}
        }
    },
}


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hospitals; A and B have clinical tables."""
    folder = tmp_path_factory.mktemp("hospitals")
    write_sites(folder, NAMES)
    for site in "AB":
        rows = [f"patient-{site}-{number:02d},{40 + 3 * number}" for number in range(12)]
        (folder / site / "clinical.csv").write_text("\n".join(["patient_id,Age", *rows]) + "\n")
        with (folder / site / "site.toml").open("a") as file:
            file.write('[clinical]\ntable = "clinical.csv"\n[clinical.columns]\nage = "Age"\n')
    return folder


def config_with(**changes: Any) -> FederationConfig:
    return FederationConfig.model_validate(CONFIG | changes)


def serve(
    config: FederationConfig, state: Path, sites: Sites, *, new: bool = False, events: list[Event] | None = None
) -> tuple[OpenRun, dict[str, Any]]:
    """What `start` does, without a network."""
    run, stop = open_run(config, state, new=new), threading.Event()
    log = EventLog(None, (events if events is not None else []).append)
    if config.stage:
        return run, Pipeline(config, run.name, sites, run.folder, EventLog(), stop).execute()
    folder = RunFolder(run.folder, config)
    federated = FederatedRun(config, run.name, initial_model(config), sites, folder, log, stop)
    return run, federated.execute().summary


@contextmanager
def before_each_write(hook: Callable[[int, Path], None]) -> Iterator[None]:
    """Call ``hook`` before each rename of a file at the coordinator: with its number from 1 on, and its new name."""
    rename, numbers = Path.replace, count(1)

    def hooked(self: Path, target: Path) -> Path:
        if "coordinator" in str(target):
            hook(next(numbers), target)
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", hooked)
        yield


def killed_before_write(number: int) -> AbstractContextManager[None]:
    """End the process before the given rename."""

    def kill(at: int, _target: Path) -> None:
        if at == number:
            raise Killed

    return before_each_write(kill)


def weights(folder: Path) -> dict[str, dict[str, bytes]]:
    """Every kept model's bytes by tensor."""
    return {
        str(path.relative_to(folder)): {
            name: tensor.numpy().tobytes() for name, tensor in load_model(path)[0].state_dict().items()
        }
        for path in sorted((*folder.rglob("best.safetensors"), *folder.rglob("last.safetensors")))
    }


@pytest.mark.parametrize("changes", [{}, {"stage": TWO_STAGES}, BD | {"training": {"rounds": 2}}, INT8])
def test_a_kill_between_any_two_writes_changes_no_bit(hospitals: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config, state, sites = config_with(**changes), tmp_path / "coordinator", Sites(hospitals, NAMES)
    moments: dict[int, tuple[str, set[str]]] = {}

    def keep(number: int, target: Path) -> None:
        """Keep what a kill at this moment would leave: the coordinator's files, and the sites that are still there."""
        shutil.copytree(state, tmp_path / str(number))
        moments[number] = target.name, sites.online()

    with before_each_write(keep):
        whole, expected = serve(config, state, sites)
    kept = weights(whole.folder)
    assert len(kept) == (4 if config.stage else 2)
    assert len(moments) > 12
    # The first write is that of the new run's settings: before it there is nothing to go on with.
    for number, (name, online) in list(moments.items())[1:]:
        back = Sites(hospitals, sorted(online))
        again, summary = serve(config, tmp_path / str(number), back)
        assert again.name == whole.name
        assert weights(again.folder) == kept, name
        assert summary == expected, name
        assert back.online() == set()


def test_only_what_is_left_is_asked(hospitals: Path, tmp_path: Path) -> None:
    sites, state = Sites(hospitals, NAMES), tmp_path / "coordinator"
    with killed_before_write(AFTER_ROUND_1), pytest.raises(Killed):
        serve(config_with(), state, sites)
    done = len(read_rounds(next((state / "runs").iterdir())))
    before = len(sites.heard)
    serve(config_with(), state, sites)
    rest = [kind for site, kind in sites.heard[before:] if site == "A"]
    assert rest == ["train"] * (3 - done) + ["evaluate", "evaluate", "finish"]


def test_a_site_that_came_late_is_still_in(hospitals: Path, tmp_path: Path) -> None:
    """What was agreed on about clinical data stays that of the founders, whoever is there when the run goes on."""
    config, state = config_with(**BD | {"training": {"rounds": 3}}), tmp_path / "coordinator"
    sites = Sites(hospitals, ["A", "C"])
    with killed_before_write(AFTER_ROUND_1), pytest.raises(Killed):
        serve(config, state, sites)
    sites.come("B")
    _, summary = serve(config, state, sites)
    assert summary["clinical"]["sites"] == {"A": 8}
    assert summary["rounds_counted"]["A"] == [1, 2, 3]
    assert "B" in summary["rounds_counted"]


def test_a_run_that_ended_early_goes_on(hospitals: Path, tmp_path: Path) -> None:
    config, state = config_with(), tmp_path / "coordinator"
    whole, _ = serve(config, tmp_path / "coordinator-whole", Sites(hospitals, NAMES))

    class Leaving(Sites):
        def post(self, orders: Any, *rest: Any) -> Any:
            if any(order.kind == "train" and order.round == 3 for order in orders.values()):
                for site in "BC":
                    self.leave(site)
            return super().post(orders, *rest)

    sites = Leaving(hospitals, NAMES)
    with pytest.raises(FederationError, match=r"round 3: 1 of 2 sites") as caught:
        serve(config, state, sites)
    assert "the same command goes on" in caught.value.remedy
    assert sites.told["A"].startswith("the run has ended early: round 3")
    back = Sites(hospitals, NAMES)
    again, _ = serve(config, state, back)
    assert weights(again.folder) == weights(whole.folder)


def begun(hospitals: Path, state: Path) -> None:
    with killed_before_write(AFTER_ROUND_1), pytest.raises(Killed):
        serve(config_with(), state, Sites(hospitals, NAMES))


def test_other_settings_do_not_go_on_with_a_run(hospitals: Path, tmp_path: Path) -> None:
    state = tmp_path / "coordinator"
    begun(hospitals, state)
    changed = config_with(training={"rounds": 4, "learning_rate": 0.01}, stage=TWO_STAGES)
    with pytest.raises(ConfigError) as caught:
        open_run(changed, state, new=False)
    assert "federation.toml has changed since it began: training.rounds was 3, is 4; " in caught.value.message
    assert "stage 1.kind was None, is 'train'" in caught.value.message
    assert "--new" in caught.value.remedy
    assert not open_run(changed, state, new=True).begun


def test_how_long_it_waits_for_how_many_may_change(hospitals: Path, tmp_path: Path) -> None:
    state = tmp_path / "coordinator"
    begun(hospitals, state)
    server = {"address": "localhost:2", "min_sites": 1, "round_timeout_s": 5.0}
    assert open_run(config_with(server=server), state, new=False).begun


def test_a_run_in_which_nothing_is_done_is_in_nobodys_way(tmp_path: Path) -> None:
    first = open_run(config_with(), tmp_path, new=False)
    assert open_run(config_with(), tmp_path, new=False) == first
    other = open_run(config_with(training={"rounds": 9}), tmp_path, new=False)
    assert other.folder != first.folder


def test_a_finished_run_is_finished(hospitals: Path, tmp_path: Path) -> None:
    state = tmp_path / "coordinator"
    run, _ = serve(config_with(), state, Sites(hospitals, NAMES))
    assert open_run(config_with(), state, new=False).name != run.name


def test_a_run_of_another_version_is_not_guessed_at(hospitals: Path, tmp_path: Path) -> None:
    state = tmp_path / "coordinator"
    begun(hospitals, state)
    (path,) = (state / "runs").glob("*/run.json")
    content = json.loads(path.read_text())
    content["config"]["training"]["new_in_2030"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="another version of fedpath"):
        open_run(config_with(), state, new=False)


def after_two_rounds(hospitals: Path, state: Path) -> tuple[RunFolder, Arrays]:
    """A run of which two rounds are done; the first one's model is the best so far."""
    config = config_with()
    with killed_before_write(AFTER_ROUND_2), pytest.raises(Killed):
        serve(config, state, Sites(hospitals, NAMES))
    folder, initial = RunFolder(next((state / "runs").iterdir()), config), to_arrays(initial_model(config))
    standing = folder.standing(initial)
    assert (standing.round, standing.best.round) == (2, 1)
    return folder, initial


def overwrite(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")


def swap(path: Path, old: str, new: str) -> None:
    """Write something else into a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def flip(path: Path) -> None:
    """Let one bit of a file be another."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 16
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Let a file end early."""
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    """Let nothing be in a file."""
    path.write_bytes(b"")


# Each optimizer that carries something on, and SCAFFOLD's control variates when there are any, lie beside the model.
MOMENTS = {"optimizer": {"name": "fedadam"}}
NEWEST, STATE, RECORD = "models/0002.safetensors", "models/0002.state.safetensors", "rounds/0002.json"


@pytest.mark.parametrize("spoil", [flip, cut, empty, Path.unlink])
@pytest.mark.parametrize("name", [NEWEST, STATE, RECORD])
def test_whatever_is_damaged_of_the_newest_round_it_is_done_again_to_the_same_bits(
    hospitals: Path, tmp_path: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    config = config_with(**MOMENTS)
    whole, _ = serve(config, tmp_path / "coordinator-whole", Sites(hospitals, NAMES))
    # The optimizer's state is one more write a round.
    state = tmp_path / "coordinator"
    with killed_before_write(AFTER_ROUND_2 + 2), pytest.raises(Killed):
        serve(config, state, Sites(hospitals, NAMES))
    (folder,) = (state / "runs").iterdir()
    assert len(read_rounds(folder)) == 2
    if (name, spoil) == (RECORD, flip):
        swap(folder / RECORD, '"round": 2', '"round": 2.5')  # a bit more or less may leave a record that can be read
    else:
        spoil(folder / name)
    events: list[Event] = []
    again, _ = serve(config, state, Sites(hospitals, NAMES), events=events)
    assert weights(again.folder) == weights(whole.folder)
    assert [manifest.result for manifest in read_rounds(folder)] == [m.result for m in read_rounds(whole.folder)]
    told = [event.values for event in events if event.kind == "checkpoint_damaged"]
    what = "record" if name == RECORD else "model"
    # A record that is not there is that of a round that was not done.
    gone = (name, spoil) == (RECORD, Path.unlink)
    assert told == ([] if gone else [{"run": again.name, "round": 2, "back_to": 1, "what": what}])


def test_if_all_models_are_damaged_the_run_begins_with_round_1_again(hospitals: Path, tmp_path: Path) -> None:
    whole, _ = serve(config_with(), tmp_path / "coordinator-whole", Sites(hospitals, NAMES))
    folder, _ = after_two_rounds(hospitals, tmp_path / "coordinator")
    for path in folder.path.rglob("*.safetensors"):
        overwrite(path.parent, path.name)
    events: list[Event] = []
    again, _ = serve(config_with(), tmp_path / "coordinator", Sites(hospitals, NAMES), events=events)
    assert again.folder == folder.path
    assert weights(again.folder) == weights(whole.folder)
    (told,) = [event.values for event in events if event.kind == "checkpoint_damaged"]
    assert (told["round"], told["back_to"]) == (2, 0)


@pytest.mark.parametrize("spoil", [flip, empty, lambda path: path.write_bytes(b"[]\n" + path.read_bytes())])
def test_the_round_of_a_damaged_journal_is_asked_again(
    hospitals: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    whole, _ = serve(config_with(), tmp_path / "coordinator-whole", Sites(hospitals, NAMES))
    state = tmp_path / "coordinator"
    with killed_before_write(3 + 6 + 3), pytest.raises(Killed):  # two updates of round 2 are there
        serve(config_with(), state, Sites(hospitals, NAMES))
    (folder,) = (state / "runs").iterdir()
    journal = folder / "rounds/0002.journal.jsonl"
    assert journal.read_text().count('"state": "answered"') == 2
    spoil(journal)
    events, sites = list[Event](), Sites(hospitals, NAMES)
    again, _ = serve(config_with(), state, sites, events=events)
    assert weights(again.folder) == weights(whole.folder)
    assert [kind for site, kind in sites.heard if site == "A"].count("train") == 2
    told = [event.values for event in events if event.kind == "journal_damaged"]
    assert told == ([] if spoil is empty else [{"round": 2}])


def test_what_cut_off_writes_left_is_removed(hospitals: Path, tmp_path: Path) -> None:
    begun(hospitals, tmp_path / "coordinator")
    (folder,) = (tmp_path / "coordinator/runs").iterdir()
    for name in ("run.json", "rounds/0002.json", "models/0002.safetensors", "closing.json", "summary.json"):
        path = folder / name
        path.with_name(f".{path.name}.x.tmp").write_bytes(b"{")
    serve(config_with(), tmp_path / "coordinator", Sites(hospitals, NAMES))
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("change", "error", "says", "remedy"),
    [
        (lambda path: cut(path), DataError, "run.json: cannot be read", "put the folder back"),
        (lambda path: empty(path), DataError, "run.json: cannot be read", "put the folder back"),
        (lambda path: path.write_text("[]"), DataError, "run.json: cannot be read", "begin a new run with --new"),
        (
            lambda path: swap(path, '"format": 1', '"format": 2'),
            DataError,
            "run.json: the run was begun by another version of fedpath (format 2, here 1)",
            "with that version, or begin a new run with --new",
        ),
        (
            lambda path: path.parent.rename(path.parent.with_name("20991231-000000")),
            DataError,
            "20991231-000000/run.json: the folder holds run 20",
            "give it that name again",
        ),
        (
            lambda path: swap(path, '"name": "test"', '"name": "lung"'),
            ConfigError,
            "is of federation 'lung', federation.toml of 'test'",
            "name the folder of this federation with --dir",
        ),
    ],
    ids=["cut off", "empty", "something else", "another version", "a copy", "another federation"],
)
def test_a_folder_that_is_not_this_runs_is_refused_with_the_remedy(
    hospitals: Path, tmp_path: Path, change: Any, error: type[Exception], says: str, remedy: str
) -> None:
    state = tmp_path / "coordinator"
    begun(hospitals, state)
    (path,) = (state / "runs").glob("*/run.json")
    change(path)
    with pytest.raises(error) as caught:
        open_run(config_with(), state, new=False)
    assert says in caught.value.message  # type: ignore[attr-defined]
    assert remedy in caught.value.remedy  # type: ignore[attr-defined]
    assert open_run(config_with(), state, new=True).begun is False


@pytest.mark.parametrize(
    ("damage", "back_to"),
    [
        (lambda folder: (folder / "last.safetensors").unlink(), None),
        (lambda folder: (folder / "best.safetensors").unlink(), None),
        (lambda folder: (folder / "models/0000.safetensors").unlink(missing_ok=True), None),
        (lambda folder: (folder / "models/0002.safetensors").unlink(), 1),
        (lambda folder: overwrite(folder, "last.safetensors"), 1),
        (lambda folder: shutil.copy(folder / "models/0001.safetensors", folder / "models/0002.safetensors"), 1),
    ],
)
def test_a_damaged_model_is_replaced(hospitals: Path, tmp_path: Path, damage: Any, back_to: int | None) -> None:
    folder, initial = after_two_rounds(hospitals, tmp_path / "coordinator")
    best = weights(folder.path)["best.safetensors"]
    damage(folder.path)
    told: list[tuple[int, int]] = []
    standing = folder.standing(initial, lambda damaged, to, _: told.append((damaged, to)))
    assert standing.round == (2 if back_to is None else back_to)
    assert told == ([] if back_to is None else [(2, back_to)])
    assert hash_arrays(standing.model) == read_rounds(folder.path)[-1].result
    if back_to is None:
        assert weights(folder.path)["best.safetensors"] == best
        assert folder.models.read_named("last", standing.model, hash_arrays(standing.model)) is not None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: [overwrite(folder, f"models/000{at}.safetensors") for at in (1, 2)], "none of the models"),
        (lambda folder: (folder / "rounds/0001.json").unlink(), "round 1 is missing"),
        (lambda folder: (folder / "rounds/0001.json").write_text("{"), "rounds/0001.json: cannot be read"),
        (lambda folder: swap(folder / "rounds/0001.json", '"run": "', '"run": "other-'), "is a round of run other-"),
    ],
)
def test_a_damaged_folder_is_named(hospitals: Path, tmp_path: Path, damage: Any, message: str) -> None:
    folder, initial = after_two_rounds(hospitals, tmp_path / "coordinator")
    damage(folder.path)
    with pytest.raises(DataError) as caught:
        folder.standing({name: array + 1 for name, array in initial.items()}, run=folder.path.name)
    assert message in caught.value.message
    assert str(folder.path) in caught.value.message
    assert "--new" in caught.value.remedy
