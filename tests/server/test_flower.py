"""What a site's answer holds, when it holds something else than it should."""

from collections.abc import Iterator

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from fedpath.server.flower import Lost, _blob


@pytest.fixture(scope="module", autouse=True)
def identity() -> Iterator[None]:
    """Flower's messages can only be made by somebody."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 2, 3
    yield
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = None, None, None


def pieces(content: RecordDict) -> tuple[str, dict[str, bytes]]:
    """A message as it lies in the store: its id, and the pieces by their ids."""
    message = Message(content, 1, "train")
    return message.object_id, {name: piece.deflate() for name, piece in get_all_nested_objects(message).items()}


def record(data: bytes = b"abc") -> RecordDict:
    array = Array(dtype="uint8", shape=(len(data),), stype="safetensors", data=data)
    return RecordDict({"fedpath": ArrayRecord({"fedpath": array})})


def test_the_bytes_are_taken_out() -> None:
    assert _blob(*pieces(record(b"abc"))) == b"abc"


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"other": ArrayRecord()}),
        RecordDict({"fedpath": ArrayRecord()}),
        RecordDict({"fedpath": ConfigRecord({"fedpath": b"abc"})}),
    ],
)
def test_an_answer_without_bytes_loses_that_site_and_not_the_round(content: RecordDict) -> None:
    assert _blob(*pieces(content)) == Lost("its answer holds no message of fedpath (KeyError)")


def test_no_damage_to_an_answer_stops_the_coordinator() -> None:
    message_id, whole = pieces(record())
    for name in whole:
        for damaged in (
            b"",
            b"\0",
            b"Message 0 0\0",
            whole[name][:-1],
            whole[name][: len(whole[name]) // 2],
            b"\xff" * 50,
        ):
            # Other bytes are for `fedpath.core.exchange` to refuse; the same ones would mean nothing was noticed.
            assert _blob(message_id, whole | {name: damaged}) != b"abc"
        assert isinstance(_blob(message_id, {other: whole[other] for other in whole if other != name}), Lost)


def test_a_piece_that_is_no_message_is_no_answer() -> None:
    _, whole = pieces(record())
    array_id = next(name for name, piece in whole.items() if piece.startswith(b"Array "))
    assert _blob(array_id, dict(whole)) == Lost("its answer is no Flower message")


def test_a_piece_that_contains_itself_ends() -> None:
    message_id, whole = pieces(record())
    loop = f"Message {message_id} 0\0".encode()
    assert isinstance(_blob(message_id, whole | {message_id: loop}), Lost)
