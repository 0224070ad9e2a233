"""The ClientApp: an order in, an answer out, and messages that hold neither."""

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
from fedpath.core.exchange.wire import BLOB, Arrays

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


def never(*_: object) -> None:
    raise AssertionError("nothing may happen")


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_an_order_is_carried_out_and_its_answer_noted_before_it_leaves(kind: str) -> None:
    steps: list[object] = []

    def carry_out(order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
        assert (order, arrays) == (ORDER, {})
        steps.append("work")
        return Receipt(), {}

    def leaving(content: bytes, order: Order, answer: Answer, arrays: Arrays) -> None:
        assert (order, answer, arrays) == (ORDER, Receipt(), {})
        steps.append(content)

    reply = build_client_app(carry_out, leaving)(message(encode(ORDER), kind), Context(1, 1, {}, RecordDict(), {}))
    sent = reply.content.array_records[BLOB][BLOB].data
    assert steps == ["work", sent]  # what was noted is what leaves, to the byte
    assert decode_answer(sent) == (Receipt(), {})


def test_what_cannot_be_noted_does_not_leave() -> None:
    def leaving(*_: object) -> None:
        raise OSError("the disk is full")

    app = build_client_app(lambda order, arrays: (Receipt(), {}), leaving)
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
    app = build_client_app(never, never)  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="a message without an order came"):
        app(Message(content, 1, "train"), Context(1, 1, {}, RecordDict(), {}))


@pytest.mark.parametrize("content", [b"", b"import os", encode(Receipt())])
def test_bytes_that_are_no_order_are_refused_before_anything_is_done(content: bytes) -> None:
    app = build_client_app(never, never)  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="message"):
        app(message(content), Context(1, 1, {}, RecordDict(), {}))


def test_a_reply_answers_its_message() -> None:
    asked = message(encode(ORDER))
    reply = reply_to(asked, b"abc")
    assert reply.metadata.reply_to_message_id == asked.metadata.message_id
    assert reply.content.array_records[BLOB][BLOB].data == b"abc"
