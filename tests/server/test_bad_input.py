"""Bad updates as a coordinator meets them: each is refused with site, round and reason, and the round goes on.

`tests/core/exchange/test_checks.py` has every reason of the checks themselves; this is what comes of them in a run.
"""

import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import Sites, settings

from fedpath.core.config import FederationConfig
from fedpath.core.errors import FederationError
from fedpath.core.events import Event, EventLog
from fedpath.core.exchange.messages import Answer, Evaluation, Metrics, Order, Update
from fedpath.core.exchange.wire import Arrays
from fedpath.core.models import load_model
from fedpath.core.training.alone import initial_model
from fedpath.server.folder import RunFolder
from fedpath.server.records import RoundManifest, read_rounds
from fedpath.server.rounds import FederatedRun
from fedpath.server.talk import Asked, Reply

pytestmark = pytest.mark.usefixtures("nobody_comes_back")

NAMES = ("A", "B", "C")
CONFIG = settings(NAMES, aggregation={"max_update_norm": 100.0}, deadline={"quorum_wait_s": 0.0})
Spoil = Callable[[Update, Arrays], tuple[Answer, Arrays]]


class Spoilt(Sites):
    """Sites of which B sends something else in round 2."""

    def __init__(self, folder: Path, spoil: Spoil) -> None:
        super().__init__(folder, NAMES)
        self._spoil = spoil

    def answer(self, site: str, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
        """As all do, but for what is spoilt."""
        answer, trained = super().answer(site, order, arrays)
        if isinstance(answer, Update) and (site, answer.round) == ("B", 2):
            return self._spoil(answer, trained)
        return answer, trained


def header(**changes: Any) -> Spoil:
    """Sends another header."""
    return lambda update, arrays: (update.model_copy(update=changes), arrays)


def arrays_with(change: Callable[[Arrays], Any]) -> Spoil:
    """Sends other arrays."""

    def spoil(update: Update, arrays: Arrays) -> tuple[Answer, Arrays]:
        changed = {name: array.copy() for name, array in arrays.items()}
        change(changed)
        return update, changed

    return spoil


def put(value: float) -> Spoil:
    """Sends an array with a number in it that should not be there."""
    return arrays_with(lambda arrays: arrays[first(arrays)].flat.__setitem__(0, value))


def first(arrays: Arrays) -> str:
    """An array's name."""
    return min(arrays)


TABLE: list[tuple[str, Spoil, str]] = [
    (
        "a missing tensor",
        arrays_with(lambda arrays: arrays.pop(first(arrays))),
        "parameters missing or unknown: image/",
    ),
    (
        "an extra tensor",
        arrays_with(lambda arrays: arrays.update({"image/extra": np.zeros(3, np.float32)})),
        "parameters missing or unknown: image/extra",
    ),
    (
        "an unknown group",
        arrays_with(lambda arrays: arrays.update({"else/extra": np.zeros(3, np.float32)})),
        "parameters missing or unknown: else/extra",
    ),
    (
        "a misshapen tensor",
        arrays_with(lambda arrays: arrays.update({first(arrays): np.zeros((5, 1, 7), np.float32)})),
        "is F32(5, 1, 7), should be F32(",
    ),
    (
        "another type",
        arrays_with(lambda arrays: arrays.update({first(arrays): arrays[first(arrays)].astype(np.float16)})),
        "is F16(",
    ),
    ("NaN", put(np.nan), "holds NaN or infinite values"),
    ("Inf", put(np.inf), "holds NaN or infinite values"),
    ("−Inf", put(-np.inf), "holds NaN or infinite values"),
    ("a huge norm", put(1e6), "its change has norm 1e+06, the limit is 100"),
    ("a number that is nearly too large for a float", put(3e38), "its change has norm 3e+38, the limit is 100"),
    ("another base model", header(base="f" * 64), "it started from model ffffffffffff…, not "),
    ("an older round", header(round=1), "it is of round 1"),
    ("a round to come", header(round=3), "it is of round 3"),
    ("a round before the first", header(round=-1), "it is of round -1"),
    ("zero patients", header(patients={"image": 0}), "group image was trained on 0 patients"),
    ("a negative count", header(patients={"image": -5}), "group image was trained on -5 patients"),
    ("more patients than there are", header(patients={"image": 9}), "group image was trained on 9 patients, it desc"),
    ("a count of another group", header(patients={"clinical": 8}), "it counts patients for ['clinical'] but sends"),
    ("no counts", header(patients={}), "it counts patients for [] but sends ['image']"),
    ("no arrays", lambda update, arrays: (update, {}), "but sends []"),
]


@pytest.mark.parametrize(("spoil", "reason"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_bad_update_is_refused_and_the_round_goes_on(
    hospitals: Path, tmp_path: Path, spoil: Spoil, reason: str
) -> None:
    events: list[Event] = []
    manifests = run(tmp_path, Spoilt(hospitals, spoil), events)
    part = manifests[1].sites["B"]
    assert part.outcome == "refused"
    assert part.reason.startswith("site B, round 2: update refused: ")
    assert reason in part.reason
    assert [manifest.counted() for manifest in manifests] == [["A", "B", "C"], ["A", "C"], ["A", "B", "C"]]
    assert manifests[1].patients == {"image": 16}
    (told,) = [event.values for event in events if event.kind == "site_refused"]
    assert (told["round"], told["site"], told["reason"]) == (2, "B", part.reason)
    # Nothing of it is in the result, nor on disk.
    last = load_model(tmp_path / "last.safetensors")[0].state_dict()
    assert all(np.isfinite(tensor.numpy()).all() for tensor in last.values())
    assert not list((tmp_path / "updates").glob("*/*"))


def test_an_answer_to_another_question_does_not_count(hospitals: Path, tmp_path: Path) -> None:
    def spoil(update: Update, arrays: Arrays) -> tuple[Answer, Arrays]:
        return Evaluation(round=2, base=update.base, metrics=Metrics()), {}

    manifests = run(tmp_path, Spoilt(hospitals, spoil))
    assert manifests[1].sites["B"].reason == "it answered with evaluation"
    assert manifests[1].counted() == ["A", "C"]


def test_where_it_is_needed_the_run_stops_and_says_what_to_do(hospitals: Path, tmp_path: Path) -> None:
    server = {"server": CONFIG["server"] | {"min_sites": 3}}
    with pytest.raises(FederationError) as caught:
        run(tmp_path, Spoilt(hospitals, put(np.nan)), **server)
    assert "round 2: 2 of 3 sites gave a usable update (B: site B, round 2: update refused: " in caught.value.message
    assert "mend what is said there, or lower server.min_sites; the model of round 1 is kept" in caught.value.remedy


class Twice(Sites):
    """Sites of which A's answers are there twice."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, NAMES)
        self.again: list[Reply] = []

    def next_reply(self, asked: Collection[Asked], timeout_s: float) -> Reply | None:
        """What came before, once more, before anything else."""
        if self.again and isinstance(self.again[0].answer, Update):
            reply = self.again.pop(0)
            # Given as the answer to whatever is open: the transport knows nothing of rounds.
            return replace(reply, asked=next(iter(asked)))
        reply = super().next_reply(asked, timeout_s)
        if reply is not None and isinstance(reply.answer, Update) and (reply.site, reply.answer.round) == ("A", 1):
            self.again.append(reply)
        return reply


def test_a_reply_that_comes_twice_counts_once(hospitals: Path, tmp_path: Path) -> None:
    """As the answer to the next order it is of an older round, or of another site's model: refused, like any such."""
    sites = Twice(hospitals)
    manifests = run(tmp_path, sites)
    assert sites.again == []
    for manifest in manifests:
        assert all(count <= 1 for count in map(manifest.counted().count, NAMES))
    counted = [site for manifest in manifests for site in manifest.counted()]
    assert counted.count("A") <= 3


def run(folder: Path, sites: Sites, events: list[Event] | None = None, **changes: Any) -> list[RoundManifest]:
    """A run."""
    config = FederationConfig.model_validate(CONFIG | changes)
    log = EventLog(None, (events if events is not None else []).append)
    FederatedRun(
        config, "run", initial_model(config), sites, RunFolder(folder, config), log, threading.Event()
    ).execute()
    return read_rounds(folder)
