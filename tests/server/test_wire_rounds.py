"""Whole rounds with each encoding of the updates: equal to a literal repetition, and what does not fit is refused."""

import json
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import literal_wire
import numpy as np
import pytest
from in_process import Sites, settings

from fedpath.client.agent.worker import Worker, _seed
from fedpath.core.config import FederationConfig, load_site
from fedpath.core.config.federated import ExchangeSection
from fedpath.core.events import EventLog
from fedpath.core.exchange.encoding import _generator
from fedpath.core.exchange.messages import Answer, Order, Train, Update
from fedpath.core.exchange.stored import CHANGES, SCALES, ArrayFile, WireArrays, as_bytes
from fedpath.core.exchange.wire import Arrays
from fedpath.core.models import load_model
from fedpath.core.training.alone import initial_model
from fedpath.server.folder import RunFolder
from fedpath.server.records import RoundManifest, read_rounds
from fedpath.server.rounds import FederatedRun

pytestmark = pytest.mark.usefixtures("nobody_comes_back")

NAMES = ("A", "B", "C")
CONFIG = settings(
    NAMES,
    model={"name": "acmil", "options": {"inner": 12, "attention": 12}},
    deadline={"factor": 1.0, "floor_s": 30.0, "quorum_wait_s": 30.0},
)
CHOICES: list[dict[str, Any]] = [
    {"changes_only": True},
    {"encoding": "float16"},
    {"encoding": "float16", "changes_only": True},
    {"encoding": "bfloat16"},
    {"encoding": "bfloat16", "changes_only": True},
    {"encoding": "int8"},
]


Spoil = Callable[[str, Update, Arrays], Arrays]


class Watched(Sites):
    """Sites whose training orders and updates are kept.

    Args:
        spoil: what a site sends instead of its update.
    """

    def __init__(
        self, folder: Path, names: Collection[str], spoil: Spoil = lambda site, update, arrays: arrays
    ) -> None:
        super().__init__(folder, sorted(names))
        self._spoil = spoil
        self.orders: list[tuple[str, Train, Arrays, bytes]] = []
        """Site, order, the model that came, and the update as a file."""

    def answer(self, site: str, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
        """As all do, but for what is spoilt."""
        answer, trained = super().answer(site, order, arrays)
        if isinstance(order, Train):
            assert isinstance(answer, Update)
            assert isinstance(trained, WireArrays)
            trained = self._spoil(site, answer, trained)
            self.orders.append((site, order, arrays, as_bytes(trained, getattr(trained, "metadata", {}))))
        return answer, trained


def run(folder: Path, sites: Sites, exchange: Mapping[str, Any], **changes: Any) -> list[RoundManifest]:
    config = FederationConfig.model_validate(CONFIG | {"exchange": dict(exchange)} | changes)
    events, stop = EventLog(), threading.Event()
    FederatedRun(config, "run", initial_model(config), sites, RunFolder(folder, config), events, stop).execute()
    return read_rounds(folder)


def trained_alone(hospitals: Path, state: Path, site: str, order: Train, model: Arrays) -> Arrays:
    """What the site has trained, before it is written for the wire; it remembers nothing."""
    config = load_site(hospitals / site / "site.toml").model_copy(update={"state": state / site})
    plain = order.model_copy(update={"exchange": ExchangeSection(), "counted": 0})
    _, arrays = Worker(config, federation="test", events=EventLog()).carry_out(plain, model)
    return dict(arrays)


def literal_encoding(values: Arrays, exchange: ExchangeSection, seed: int) -> Arrays:
    """What arrives of arrays, by the definitions."""
    came: Arrays = {}
    for name, array in values.items():
        if exchange.encoding == "float32" or array.ndim < 2 or array.size <= 64:
            came[name] = array
        elif exchange.encoding == "int8":
            steps, scale = literal_wire.int8(array, _generator(seed, name).random(array.size).tolist())
            came[name] = (np.array(steps, np.float32) * scale).reshape(array.shape)
        else:
            rounded = [getattr(literal_wire, exchange.encoding)(float(number)) for number in array.reshape(-1)]
            came[name] = np.array(rounded, np.float32).reshape(array.shape)
    return came


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_a_run_is_its_literal_repetition(hospitals: Path, tmp_path: Path, choice: dict[str, Any]) -> None:
    sites = Watched(hospitals, NAMES)
    manifests = run(tmp_path / "run", sites, choice)
    assert [manifest.counted() for manifest in manifests] == [list(NAMES)] * 3
    residuals: dict[str, Arrays] = {site: {} for site in NAMES}
    exchange = ExchangeSection(**choice)
    changes = exchange.changes_only or exchange.encoding == "int8"
    for round_ in (1, 2, 3):
        sums: dict[str, Any] = {}
        for site, order, model, content in (one for one in sites.orders if one[1].round == round_):
            trained = trained_alone(hospitals, tmp_path / "alone", site, order, model)
            true = {name: array - model[name] if changes else array for name, array in trained.items()}
            carried = {name: array + residuals[site].get(name, np.float32(0)) for name, array in true.items()}
            came = literal_encoding(carried, exchange, _seed(order.facts, site, round_))
            path = tmp_path / "sent.safetensors"
            path.write_bytes(content)
            with ArrayFile(path) as file:
                for name, array in came.items():
                    assert np.array_equal(file.array(name), array), (site, round_, name)
            residuals[site] = {name: carried[name] - array for name, array in came.items()}
            for name, array in came.items():  # each site has eight training patients
                weights = array.astype(np.float64) + (model[name] if changes else 0)
                sums[name] = sums.get(name, 0) + weights / 3
        result = next((model for _, order, model, _ in sites.orders if order.round == round_ + 1), None)
        if result is None:
            last, _ = load_model(tmp_path / "run/last.safetensors")
            result = {f"image/{name}": tensor.numpy() for name, tensor in last.state_dict().items()}
        for name, array in result.items():
            np.testing.assert_allclose(array, sums[name], rtol=0, atol=3e-7)
    left = max(float(np.abs(array).max()) for residual in residuals.values() for array in residual.values())
    assert (left > 0) == (exchange.encoding != "float32")


def test_a_refused_update_leaves_no_trace_at_the_site(hospitals: Path, tmp_path: Path) -> None:
    """B's update of round 2 is spoilt on its way: in round 3 B goes on from what it left out of round 1."""

    def spoil(site: str, update: Update, arrays: Arrays) -> Arrays:
        if (site, update.round) == ("B", 2):
            arrays[min(arrays)].flat[0] = np.nan
        return arrays

    sites = Watched(hospitals, NAMES, spoil)
    manifests = run(tmp_path / "run", sites, {"encoding": "int8"})
    assert [manifest.counted() for manifest in manifests] == [list(NAMES), ["A", "C"], list(NAMES)]
    assert [(order.round, order.counted) for site, order, _, _ in sites.orders if site == "B"] == [
        (1, 0),
        (2, 1),
        (3, 1),
    ]
    # A hospital that was never asked in round 2 sends the same.
    config = load_site(hospitals / "B/site.toml").model_copy(update={"state": tmp_path / "B"})
    for _, order, model, content in (one for one in sites.orders if one[0] == "B" and one[1].round != 2):
        _, arrays = Worker(config, federation="test", events=EventLog()).carry_out(order, model)
        assert isinstance(arrays, WireArrays)
        assert as_bytes(arrays, arrays.metadata) == content


def test_buffers_of_changes(hospitals: Path, tmp_path: Path) -> None:
    for buffer in (1, 2):
        sites = Watched(hospitals, NAMES)
        manifests = run(tmp_path / str(buffer), sites, {"encoding": "int8"}, asynchronous={"buffer": buffer})
        assert [len(manifest.counted()) for manifest in manifests] == [buffer] * 3


def recast(encoding: str, metadata: Mapping[str, str] | None = None) -> Callable[[WireArrays], Arrays]:
    """The update in other types, with other metadata."""

    def change(arrays: WireArrays) -> Arrays:
        types = {np.dtype(np.int8): np.dtype(encoding)}
        recast = {name: array.astype(types.get(array.dtype, array.dtype)) for name, array in arrays.items()}
        return WireArrays(recast, arrays.metadata if metadata is None else metadata)

    return change


def rescale(change: Callable[[dict[str, Any]], object]) -> Callable[[WireArrays], Arrays]:
    """The update with other scales."""

    def changed(arrays: WireArrays) -> Arrays:
        scales = json.loads(arrays.metadata[SCALES])
        change(scales)
        return WireArrays(arrays, arrays.metadata | {SCALES: json.dumps(scales)})

    return changed


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (recast("float16", {CHANGES: "true"}), "image/branch_weight_KCL is F16(5, 2, 12), should be I8(5, 2, 12)"),
        (recast("uint16", {CHANGES: "true"}), "image/branch_weight_KCL is BF16(5, 2, 12), should be I8(5, 2, 12)"),
        (recast("float32", {}), "it holds weights, not changes"),
        (recast("int8", {CHANGES: "true"}), "not readable: array 'image/branch_weight_KCL' has no scale"),
        (rescale(lambda scales: scales.popitem()), "has no scale"),
        (rescale(lambda scales: scales.update(other=1.0)), "array 'other' is not int8 and has a scale"),
        (rescale(lambda scales: scales.update(dict.fromkeys(scales, float("nan")))), "is nan, not a positive float32"),
        (rescale(lambda scales: scales.update(dict.fromkeys(scales, float("inf")))), "is inf, not a positive float32"),
        (rescale(lambda scales: scales.update(dict.fromkeys(scales, -1.0))), "is -1.0, not a positive float32"),
        (rescale(lambda scales: scales.update(dict.fromkeys(scales, "1"))), "is 1, not a positive float32"),
        (rescale(lambda scales: scales.update(dict.fromkeys(scales, 2e36))), "its change has norm"),
        (lambda arrays: WireArrays(arrays, {CHANGES: "true", SCALES: "[1]"}), "the scales are list, not an object"),
        (lambda arrays: WireArrays(arrays, {CHANGES: "true", SCALES: "{"}), "its arrays are not readable"),
    ],
)
def test_what_is_not_written_as_ordered_is_refused_by_name(
    hospitals: Path, tmp_path: Path, change: Callable[[WireArrays], Arrays], reason: str
) -> None:
    def spoil(site: str, update: Update, arrays: Arrays) -> Arrays:
        assert isinstance(arrays, WireArrays)
        return change(arrays) if (site, update.round) == ("B", 2) else arrays

    limit = {"aggregation": {"max_update_norm": 100.0}, "training": {"rounds": 2, "learning_rate": 0.01}}
    manifests = run(tmp_path, Watched(hospitals, NAMES, spoil), {"encoding": "int8"}, **limit)
    assert [manifest.counted() for manifest in manifests] == [list(NAMES), ["A", "C"]]
    part = manifests[1].sites["B"]
    assert part.outcome == "refused"
    assert part.reason.startswith("site B, round 2: update refused: ")
    assert reason in part.reason


@pytest.mark.parametrize("ordered", [{}, {"encoding": "float16"}, {"encoding": "bfloat16"}])
def test_int8_that_nobody_ordered_is_refused_by_name(hospitals: Path, tmp_path: Path, ordered: dict[str, Any]) -> None:
    class Other(Watched):
        """B writes int8, whatever it was asked for."""

        def answer(self, site: str, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
            """As all do, but for B."""
            if isinstance(order, Train) and site == "B":
                order = order.model_copy(update={"exchange": ExchangeSection(encoding="int8")})
            return super().answer(site, order, arrays)

    training = {"training": {"rounds": 1, "learning_rate": 0.01}}
    (manifest,) = run(tmp_path, Other(hospitals, NAMES), ordered, **training)
    assert manifest.counted() == ["A", "C"]
    assert manifest.sites["B"].reason == "site B, round 1: update refused: it holds changes, not weights"


def test_an_update_that_is_cut_is_refused_and_not_asked_for_again(hospitals: Path, tmp_path: Path) -> None:
    class Cut(Watched):
        """The end of B's answer is missing."""

        def next_reply(self, asked: Any, timeout_s: float) -> Any:
            """As all do, but for B."""
            reply = super().next_reply(asked, timeout_s)
            if reply is not None and reply.site == "B" and isinstance(reply.answer, Update):
                object.__setattr__(reply, "content", reply.content[:-5])
            return reply

    sites = Cut(hospitals, NAMES)
    (manifest,) = run(tmp_path, sites, {"encoding": "bfloat16"}, training={"rounds": 1, "learning_rate": 0.01})
    assert manifest.sites["B"].reason.startswith("site B, round 1: update refused: its arrays are not readable: ")
    assert sites.heard.count(("B", "train")) == 1
