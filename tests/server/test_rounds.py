"""Rounds with sites that are late, go away, come back, or send what does not count."""

import json
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from in_process import Sites, settings
from safetensors import safe_open

from fedpath.core.config import FederationConfig
from fedpath.core.config.federated import Combine, ServerOptimizer
from fedpath.core.errors import ConfigError, FederationError
from fedpath.core.events import Event, EventLog
from fedpath.core.exchange.messages import Answer, Describe, Order, Refusal, Train, Update
from fedpath.core.exchange.wire import Arrays
from fedpath.core.models import load_model
from fedpath.core.training.alone import initial_model
from fedpath.server.folder import RunFolder
from fedpath.server.records import RoundManifest, read_rounds
from fedpath.server.rounds import FederatedRun
from fedpath.server.talk import Asked, Reply

pytestmark = pytest.mark.usefixtures("nobody_comes_back")

NAMES = ("A", "B", "C")
CONFIG = settings(NAMES, deadline={"factor": 1.0, "floor_s": 0.3, "quorum_wait_s": 30.0})
ALL = {"server": CONFIG["server"] | {"min_sites": 3}}
SHORT = CONFIG["deadline"] | {"quorum_wait_s": 0.5}


class Unruly(Sites):
    """Sites of which some do not answer an order, or answer it later.

    Args:
        before: called before an order is carried out, with site and order; a site for which it returns False has not
            answered yet.
        spoil: called with a site, its update and its arrays: what is sent instead.
    """

    def __init__(
        self,
        folder: Path,
        names: Collection[str],
        before: Callable[["Unruly", str, Order], bool] = lambda sites, site, order: True,
        spoil: Callable[[str, Update, Arrays], tuple[Answer, Arrays]] = lambda site, update, arrays: (update, arrays),
    ) -> None:
        super().__init__(folder, sorted(names))
        self._before, self._spoil, self._orders = before, spoil, dict[Asked, Order]()

    def post(self, orders: Mapping[str, Order], arrays: Arrays, ttl_s: float) -> list[Asked]:
        """As all do."""
        posted = super().post(orders, arrays, ttl_s)
        self._orders |= {asked: orders[asked.site] for asked in posted}
        return posted

    def next_reply(self, asked: Collection[Asked], timeout_s: float) -> Reply | None:
        """The answer of the first site that has one."""
        one = next((one for one in asked if self._before(self, one.site, self._orders[one])), None)
        return None if one is None else super().next_reply([one], timeout_s)

    def answer(self, site: str, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
        """As all do, but for what is spoilt."""
        answer, trained = super().answer(site, order, arrays)
        return self._spoil(site, answer, trained) if isinstance(answer, Update) else (answer, trained)


def run(
    folder: Path, sites: Sites, events: list[Event] | None = None, *, name: str = "run", **changes: Any
) -> list[RoundManifest]:
    config = FederationConfig.model_validate(CONFIG | changes)
    log = EventLog(None, (events if events is not None else []).append)
    FederatedRun(
        config, name, initial_model(config), sites, RunFolder(folder, config), log, threading.Event()
    ).execute()
    return read_rounds(folder)


def outcomes(manifest: RoundManifest) -> dict[str, str]:
    return {site: part.outcome for site, part in manifest.sites.items()}


def is_train(order: Order, round_: int) -> bool:
    return isinstance(order, Train) and order.round == round_


def weights(folder: Path, name: str = "last") -> dict[str, bytes]:
    state = load_model(folder / f"{name}.safetensors")[0].state_dict()
    return {key: tensor.numpy().tobytes() for key, tensor in state.items()}


def test_a_site_that_goes_away_is_asked_again_when_it_is_back(hospitals: Path, tmp_path: Path) -> None:
    went: list[str] = []

    def leaves_once(sites: Unruly, site: str, order: Order) -> bool:
        if site == "B" and is_train(order, 2) and not went:
            went.append(site)
            sites.leave("B")
            threading.Timer(0.2, sites.come, ["B"]).start()
        return True

    manifests = run(tmp_path / "run", Unruly(hospitals, NAMES, leaves_once), **ALL)
    assert went == ["B"]
    assert [manifest.counted() for manifest in manifests] == [list(NAMES)] * 3
    journal = (tmp_path / "run/rounds/0002.journal.jsonl").read_text().splitlines()
    states = [(line["state"], line.get("site") or line.get("sites")) for line in map(json.loads, journal)]
    assert states[:4] == [("asked", list(NAMES)), ("answered", "A"), ("lost", "B"), ("answered", "C")]
    assert states[4:6] == [("asked", ["B"]), ("answered", "B")]
    assert [state for state, _ in states[6:]] == ["aggregated", "evaluated", "published"]
    run(tmp_path / "whole", Sites(hospitals, NAMES), **ALL)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_site_that_goes_away_when_it_is_asked_what_it_has_is_asked_again(hospitals: Path, tmp_path: Path) -> None:
    went: list[str] = []

    def leaves_once(sites: Unruly, site: str, order: Order) -> bool:
        if site == "B" and isinstance(order, Describe) and not went:
            went.append(site)
            sites.leave("B")
            threading.Timer(0.2, sites.come, ["B"]).start()
        return True

    server = {"server": CONFIG["server"] | {"min_sites": 3, "join_timeout_s": 30.0}}
    manifests = run(tmp_path / "run", Unruly(hospitals, NAMES, leaves_once), **server)
    assert went == ["B"]
    assert [manifest.counted() for manifest in manifests] == [list(NAMES)] * 3
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["refused"] == {}


def test_a_round_without_quorum_waits_says_who_is_missing_and_stops_with_all_kept(
    hospitals: Path, tmp_path: Path
) -> None:
    def leave(sites: Unruly, site: str, order: Order) -> bool:
        if site != "A" and is_train(order, 2):
            sites.leave(site)
        return True

    events: list[Event] = []
    sites = Unruly(hospitals, NAMES, leave)
    short = {"deadline": CONFIG["deadline"] | {"quorum_wait_s": 0.5}}
    with pytest.raises(
        FederationError, match=r"round 2: 1 of 2 sites gave a usable update \(B: it is not conn"
    ) as caught:
        run(tmp_path, sites, events, **short)
    assert "the model of round 1 is kept, and so are the updates that came" in caught.value.remedy
    (missing,) = [event.values for event in events if event.kind == "quorum_missing"]
    assert missing == {"round": 2, "counted": 1, "needed": 2, "missing": ["B", "C"]}
    assert (tmp_path / "updates/0002/A.safetensors").is_file()
    back = Sites(hospitals, NAMES)
    manifests = run(tmp_path, back, **short)
    assert [kind for site, kind in back.heard if site == "A"].count("train") == 1  # its update of round 2 was kept
    assert [kind for site, kind in back.heard if site == "B"].count("train") == 2
    assert manifests[1].counted() == list(NAMES)
    assert not (tmp_path / "updates/0002").exists()


def slow_in_round_2(rounds_late: int) -> Callable[[Unruly, str, Order], bool]:
    """C answers the order of round 2 only when the others have been asked for so many rounds more."""

    def before(sites: Unruly, site: str, order: Order) -> bool:
        if site != "C" or not is_train(order, 2):
            return True
        return sum(1 for name, kind in sites.heard if name == "A" and kind == "train") > 1 + rounds_late

    return before


def test_a_late_site_is_dropped_and_asked_again(hospitals: Path, tmp_path: Path) -> None:
    manifests = run(tmp_path, Unruly(hospitals, NAMES, slow_in_round_2(1)))
    assert [outcomes(manifest)["C"] for manifest in manifests] == ["answered", "late", "answered"]
    assert "no answer within" in manifests[1].sites["C"].reason
    assert all(part.of_round is None for manifest in manifests for part in manifest.sites.values())


def test_a_late_update_is_carried_into_the_next_round(hospitals: Path, tmp_path: Path) -> None:
    sites = Unruly(hospitals, NAMES, slow_in_round_2(1))
    training = {"training": CONFIG["training"] | {"rounds": 4}}
    manifests = run(tmp_path, sites, late={"rule": "carry"}, **training)
    assert [outcomes(manifest)["C"] for manifest in manifests] == ["answered", "late", "answered", "answered"]
    part = manifests[2].sites["C"]
    assert (part.of_round, part.weight, part.validation) == (2, 2**-0.5, None)
    assert manifests[2].patients["image"] == round(8 + 8 + 8 * 2**-0.5)
    assert manifests[3].sites["C"].of_round is None
    assert [kind for site, kind in sites.heard if site == "C"].count("train") == 3


def test_a_late_update_counts_as_a_change_of_the_model_it_started_from(hospitals: Path, tmp_path: Path) -> None:
    """The literal mean: reference + Σ n·w·(update − base) / Σ n·w."""
    sent: dict[tuple[str, int], Arrays] = {}

    def keep(site: str, update: Update, arrays: Arrays) -> tuple[Answer, Arrays]:
        sent[site, update.round] = {name: array.copy() for name, array in arrays.items()}
        return update, arrays

    late = {"rule": "carry", "staleness_exponent": 1.0}
    training = {"training": CONFIG["training"] | {"rounds": 3}}
    run(tmp_path, Unruly(hospitals, NAMES, slow_in_round_2(1), keep), late=late, **training)
    models = {
        at: {
            f"image/{name}": tensor.numpy().astype(np.float64)
            for name, tensor in load_model(path)[0].state_dict().items()
        }
        for at, path in ((at, tmp_path / f"models/{at:04d}.safetensors") for at in (1, 2, 3))
    }
    for name, result in models[3].items():
        change = sent["C", 2][name] - models[1][name]
        total = 8.0 * sent["A", 3][name] + 8.0 * sent["B", 3][name] + 4.0 * (models[2][name] + change)
        np.testing.assert_allclose(result, total / 20, rtol=0, atol=1e-6)


def test_an_update_that_is_too_old_is_dropped(hospitals: Path, tmp_path: Path) -> None:
    late = {"rule": "carry", "most_rounds": 1}
    training = {"training": CONFIG["training"] | {"rounds": 5}}
    manifests = run(tmp_path, Unruly(hospitals, NAMES, slow_in_round_2(2)), late=late, **training)
    assert [outcomes(manifest)["C"] for manifest in manifests] == ["answered", "late", "late", "answered", "answered"]
    assert "no answer within" in manifests[2].sites["C"].reason


def test_buffers_of_updates_instead_of_rounds(hospitals: Path, tmp_path: Path) -> None:
    training = {"training": CONFIG["training"] | {"rounds": 5}}
    manifests = run(tmp_path, Unruly(hospitals, NAMES, slow_in_round_2(2)), asynchronous={"buffer": 2}, **training)
    assert [len(manifest.counted()) for manifest in manifests] == [2] * 5
    stale = [part for manifest in manifests for part in manifest.sites.values() if part.of_round is not None]
    assert stale
    assert all(part.weight < 1 for part in stale)
    assert "C" in {site for manifest in manifests for site in manifest.counted()}


def test_a_buffer_may_be_filled_by_fewer_sites_than_train(hospitals: Path, tmp_path: Path) -> None:
    sites = Sites(hospitals, NAMES)
    manifests = run(tmp_path, sites, asynchronous={"buffer": 1, "concurrency": 1})
    assert [len(manifest.counted()) for manifest in manifests] == [1] * 3
    assert [kind for _, kind in sites.heard].count("train") == 3


@pytest.mark.parametrize("times", [2, 3])
def test_a_site_that_could_not_and_is_needed_is_asked_again(
    hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """But not for ever: each order that is sent again begins the round's patience anew."""
    monkeypatch.setattr("fedpath.server.round._AGAIN_AFTER_S", 0.3)
    tries: list[int] = []

    def could_not(site: str, update: Update, arrays: Arrays) -> tuple[Answer, Arrays]:
        if (site, update.round) == ("B", 2) and len(tries) < times:
            tries.append(update.round)
            return Refusal(reason="the process that trains was killed"), {}
        return update, arrays

    sites = Unruly(hospitals, NAMES, spoil=could_not)
    short = {"deadline": CONFIG["deadline"] | {"quorum_wait_s": 1.0}}
    if times == 2:
        manifests = run(tmp_path / "run", sites, **short, **ALL)
        assert [manifest.counted() for manifest in manifests] == [list(NAMES)] * 3
        run(tmp_path / "whole", Sites(hospitals, NAMES), **ALL)
        assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    else:
        with pytest.raises(FederationError, match=r"round 2: 2 of 3 .*B: the process that trains was killed"):
            run(tmp_path / "run", sites, **short, **ALL)
    # The others were asked once.
    assert [kind for site, kind in sites.heard if site == "A"].count("train") == (3 if times == 2 else 2)


def test_a_site_that_could_not_and_is_not_needed_is_asked_in_the_next_round(hospitals: Path, tmp_path: Path) -> None:
    def could_not(site: str, update: Update, arrays: Arrays) -> tuple[Answer, Arrays]:
        return (Refusal(reason="no"), {}) if (site, update.round) == ("B", 2) else (update, arrays)

    sites = Unruly(hospitals, NAMES, spoil=could_not)
    manifests = run(tmp_path, sites)
    assert [manifest.counted() for manifest in manifests] == [list(NAMES), ["A", "C"], list(NAMES)]
    assert [kind for site, kind in sites.heard if site == "B"].count("train") == 3


def with_nan(site: str, update: Update, arrays: Arrays) -> tuple[Answer, Arrays]:
    if site == "B" and update.round == 2:
        next(iter(arrays.values())).flat[0] = np.nan
    return update, arrays


def test_a_bad_update_is_refused_by_name_and_the_round_goes_on(hospitals: Path, tmp_path: Path) -> None:
    manifests = run(tmp_path, Unruly(hospitals, NAMES, spoil=with_nan))
    assert [manifest.counted() for manifest in manifests] == [list(NAMES), ["A", "C"], list(NAMES)]
    part = manifests[1].sites["B"]
    assert part.outcome == "refused"
    assert part.reason.startswith("site B, round 2: update refused: ")
    assert "NaN or infinite" in part.reason
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rounds_counted"]["B"] == [1, 3]


def test_an_update_of_an_older_round_is_refused(hospitals: Path, tmp_path: Path) -> None:
    def replay(site: str, update: Update, arrays: Arrays) -> tuple[Answer, Arrays]:
        return (
            (update.model_copy(update={"round": 1}), arrays) if (site, update.round) == ("B", 2) else (update, arrays)
        )

    manifests = run(tmp_path, Unruly(hospitals, NAMES, spoil=replay))
    assert manifests[1].sites["B"].reason == "site B, round 2: update refused: it is of round 1"


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(hospitals: Path, tmp_path: Path) -> None:
    run(tmp_path / "whole", Sites(hospitals, NAMES), **ALL)

    class EndedError(Exception):
        """Ends the run as the last round begins."""

    def end(sites: Unruly, site: str, order: Order) -> bool:
        if is_train(order, 3):
            raise EndedError
        return True

    with pytest.raises(EndedError):
        run(tmp_path / "run", Unruly(hospitals, NAMES, end), **ALL)
    last = tmp_path / "run/last.safetensors"
    content = bytearray(last.read_bytes())
    content[-5] ^= 1
    last.write_bytes(content)  # one file under two names
    events: list[Event] = []
    run(tmp_path / "run", Sites(hospitals, NAMES), events, **ALL)
    (damaged,) = [event.values for event in events if event.kind == "checkpoint_damaged"]
    assert damaged == {"run": "run", "round": 2, "back_to": 1, "what": "model"}
    assert (tmp_path / "run/rounds/0002.json.lost").is_file()
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert weights(tmp_path / "run", "best") == weights(tmp_path / "whole", "best")


@pytest.mark.parametrize("combine", [combine for combine in get_args(Combine) if combine != "mean"])
def test_each_estimator_runs_with_clipping_and_each_optimizer(hospitals: Path, tmp_path: Path, combine: str) -> None:
    sites = Sites(hospitals, NAMES)
    for clip_norm, optimizer in [*product((None,), get_args(ServerOptimizer)), (0.5, "fedavg")]:
        sites.return_all(NAMES)
        name = f"{'all' if clip_norm is None else 'clipped'}-{optimizer}"
        manifests = run(
            tmp_path / name,
            sites,
            name=name,
            aggregation={"combine": combine, "clip_norm": clip_norm, "byzantine": 0},
            optimizer={"name": optimizer},
            training=CONFIG["training"] | {"rounds": 2},
            **ALL,
        )
        assert [manifest.counted() for manifest in manifests] == [list(NAMES)] * 2, name
        assert len({manifests[0].base, manifests[0].result, manifests[1].result}) == 3, name
        assert all(np.isfinite(np.frombuffer(value, np.float32)).all() for value in weights(tmp_path / name).values())


def test_who_is_not_chosen_is_in_no_result(hospitals: Path, tmp_path: Path) -> None:
    def turn(site: str, update: Update, arrays: Arrays) -> tuple[Answer, Arrays]:
        """C lies: a hundred times what it learned."""
        return update, {name: array * np.float32(100 if site == "C" else 1) for name, array in arrays.items()}

    events: list[Event] = []
    estimator = {"combine": "multi-krum", "byzantine": 0, "keep": 2}
    manifests = run(tmp_path, Unruly(hospitals, NAMES, spoil=turn), events, aggregation=estimator, **ALL)
    for manifest in manifests:
        assert manifest.counted() == list(NAMES)
        assert manifest.chosen == {"image": ["A", "B"]}
        assert manifest.contributed() == {"A": ["image"], "B": ["image"]}
        assert manifest.patients == {"image": 16}
    assert [event.values["contributed"] for event in events if event.kind == "round_finished"] == [["A", "B"]] * 3
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["sites"] == ["A", "B"]
    assert summary["groups"] == {"image": ["A", "B"]}
    with safe_open(tmp_path / "last.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["contributions"]) == {"A": [1, 2, 3], "B": [1, 2, 3]}


@pytest.mark.parametrize("combine", ["median", "trimmed-mean", "geometric-median", "krum"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_estimator_sees_what_is_not_a_number(hospitals: Path, tmp_path: Path, combine: str, value: float) -> None:
    """C's update is refused when it comes; the result is that of A and B alone, as if C had not been asked."""

    def spoil(site: str, update: Update, arrays: Arrays) -> tuple[Answer, Arrays]:
        if site == "C":
            name = min(arrays)
            arrays = arrays | {name: arrays[name].copy()}
            arrays[name].flat[0] = value
        return update, arrays

    estimator = {"aggregation": {"combine": combine, "byzantine": 0}, "training": CONFIG["training"] | {"rounds": 1}}
    if combine == "krum":  # of three
        with pytest.raises(FederationError, match="C, round 1: update refused"):
            run(tmp_path, Unruly(hospitals, NAMES, spoil=spoil), deadline=SHORT, **estimator, **ALL)
        return
    (manifest,) = run(tmp_path / "spoilt", Unruly(hospitals, NAMES, spoil=spoil), **estimator)
    assert outcomes(manifest) == {"A": "answered", "B": "answered", "C": "refused"}
    assert "holds NaN or infinite values" in manifest.sites["C"].reason
    run(tmp_path / "without", Sites(hospitals, NAMES[:2]), **estimator)
    assert weights(tmp_path / "spoilt") == weights(tmp_path / "without")


def test_an_engine_that_is_not_installed_is_missed_at_start(
    hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"^aggregation\.engine = 'ray' needs Ray, which is not installed") as caught:
        run(tmp_path, Sites(hospitals, NAMES), aggregation={"engine": "ray"})
    assert caught.value.remedy.startswith("pip install 'fedpath[ray]'")


def test_an_estimator_that_is_not_installed_is_missed_at_start(
    hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ConfigError, match=r"^aggregation\.combine = 'median' needs numba, which is not i") as caught:
        run(tmp_path, Sites(hospitals, NAMES), aggregation={"combine": "median"})
    assert caught.value.remedy == "pip install 'fedpath[server]'"


@pytest.mark.parametrize("order", ["sites", "arrival"])
def test_each_choice_runs_with_each_other(hospitals: Path, tmp_path: Path, order: str) -> None:
    sites = Sites(hospitals, NAMES)
    for clip_norm, optimizer in product((None, 0.5), get_args(ServerOptimizer)):
        sites.return_all(NAMES)
        name = f"{order}-{'all' if clip_norm is None else 'clipped'}-{optimizer}"
        manifests = run(
            tmp_path / name,
            sites,
            name=name,
            aggregation={"order": order, "clip_norm": clip_norm},
            optimizer={"name": optimizer},
            training=CONFIG["training"] | {"rounds": 2},
        )
        assert [manifest.counted() for manifest in manifests] == [list(NAMES)] * 2, name
        assert len({manifests[0].base, manifests[0].result, manifests[1].result}) == 3, name
        assert all(np.isfinite(np.frombuffer(value, np.float32)).all() for value in weights(tmp_path / name).values())
