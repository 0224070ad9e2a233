"""The ClientApp: an order in, an answer out, and messages that hold neither."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedpath.client.agent.app import build_client_app, order_in, reply_to
from fedpath.core.config.federation import FeaturesSection
from fedpath.core.config.model import ModelSection
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.messages import (
    Answer,
    Describe,
    Order,
    Receipt,
    RunFacts,
    decode_answer,
    encode,
)
from fedpath.core.exchange.parcel import LARGE, Parcel, map_arrays, write_parcel
from fedpath.core.exchange.wire import BLOB, Apart, Arrays, apart_from, hash_arrays

pytestmark = pytest.mark.usefixtures("flower_identity")

ORDER = Describe(
    facts=RunFacts(
        federation="lung",
        run="r1",
        seed=0,
        labels=["no", "yes"],
        features=FeaturesSection(encoder="e", width=4),
        model=ModelSection(),
    )
)


def message(content: bytes, kind: str = "query") -> Message:
    array = Array(dtype="uint8", shape=(len(content),), stype="safetensors", data=content)
    return Message(RecordDict({BLOB: ArrayRecord({BLOB: array})}), 1, kind)


@dataclass
class Shelf:
    """Carries files no further than to a folder."""

    answer_file: Path = Path("never written")
    files: dict[Apart, Path] = field(default_factory=dict)

    def fetch(self, apart: Apart) -> Arrays:
        return map_arrays(self.files[apart])

    def send(self, file: Path, apart: Apart) -> None:
        raise AssertionError("sending is not the app's business")


def never(*_: object) -> None:
    raise AssertionError("nothing may happen")


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_an_order_is_carried_out_and_its_answer_noted_before_it_leaves(kind: str) -> None:
    steps: list[object] = []

    def arrived(order: Order, size: int, fetches: bool) -> None:
        assert (order, size, fetches) == (ORDER, len(encode(ORDER)), False)
        steps.append("arrived")

    def carry_out(order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
        assert (order, arrays) == (ORDER, {})
        steps.append("work")
        return Receipt(), {}

    def leaving(parcel: Parcel, order: Order, answer: Answer, arrays: Arrays) -> None:
        assert (order, answer, arrays) == (ORDER, Receipt(), {})
        assert parcel == Parcel(parcel.content)
        steps.append(parcel.content)

    app = build_client_app(carry_out, arrived, leaving, Shelf())
    reply = app(message(encode(ORDER), kind), Context(1, 1, {}, RecordDict(), {}))
    sent = reply.content.array_records[BLOB][BLOB].data
    assert steps == ["arrived", "work", sent]  # what was noted is what leaves, to the byte
    assert decode_answer(sent) == (Receipt(), {})


def test_large_arrays_travel_apart_from_order_and_answer(tmp_path: Path) -> None:
    model: Arrays = {"image/w": np.arange(LARGE // 4, dtype=np.float32)}
    sent = write_parcel(ORDER, model, tmp_path / "model")
    assert (sent.file, len(sent.content) < 2000) == (tmp_path / "model", True)
    assert sent.apart is not None
    noted: list[Parcel] = []
    came: list[tuple[int, bool]] = []

    def arrived(order: Order, size: int, fetches: bool) -> None:
        came.append((size, fetches))

    def carry_out(order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
        assert (order, hash_arrays(arrays)) == (ORDER, hash_arrays(model))
        arrays["image/w"] += 1  # memory of its own: the file may be fetched from again
        return Receipt(), arrays

    def leaving(parcel: Parcel, order: Order, answer: Answer, arrays: Arrays) -> None:
        noted.append(parcel)

    shelf = Shelf(tmp_path / "state" / "answer", {sent.apart: tmp_path / "model"})
    app = build_client_app(carry_out, arrived, leaving, shelf)
    reply = app(message(sent.content), Context(1, 1, {}, RecordDict(), {}))
    content = reply.content.array_records[BLOB][BLOB].data
    assert decode_answer(content) == (Receipt(), {})
    assert came == [(len(sent.content) + sent.apart.size, True)]
    assert noted == [Parcel(content, shelf.answer_file, apart_from(content))]
    np.testing.assert_array_equal(map_arrays(shelf.answer_file)["image/w"], model["image/w"] + 1)
    np.testing.assert_array_equal(map_arrays(tmp_path / "model")["image/w"], model["image/w"])


def test_what_cannot_be_noted_does_not_leave() -> None:
    def leaving(*_: object) -> None:
        raise OSError("the disk is full")

    app = build_client_app(lambda order, arrays: (Receipt(), {}), lambda *_: None, leaving, Shelf())
    with pytest.raises(OSError, match="disk is full"):
        app(message(encode(ORDER)), Context(1, 1, {}, RecordDict(), {}))


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"other": ArrayRecord()}),
        RecordDict({BLOB: ArrayRecord()}),
        RecordDict({BLOB: ConfigRecord({BLOB: b"x"})}),
    ],
)
def test_a_message_without_an_order_is_refused(content: RecordDict) -> None:
    with pytest.raises(RefusedError, match="a message without an order came"):
        order_in(Message(content, 1, "train"))
    app = build_client_app(never, never, never, Shelf())  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="a message without an order came"):
        app(Message(content, 1, "train"), Context(1, 1, {}, RecordDict(), {}))


@pytest.mark.parametrize("content", [b"", b"import os", encode(Receipt())])
def test_bytes_that_are_no_order_are_refused_before_anything_is_done(content: bytes) -> None:
    app = build_client_app(never, never, never, Shelf())  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="message"):
        app(message(content), Context(1, 1, {}, RecordDict(), {}))


def test_a_reply_answers_its_message() -> None:
    asked = message(encode(ORDER))
    reply = reply_to(asked, b"abc")
    assert reply.metadata.reply_to_message_id == asked.metadata.message_id
    assert reply.content.array_records[BLOB][BLOB].data == b"abc"
