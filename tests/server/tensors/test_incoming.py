"""What a site's file becomes: whole, hashed, gone on with, and never more than was asked for."""

import hashlib
from pathlib import Path

import pytest

from fedpath.core.exchange.wire import Apart
from fedpath.server.tensors.incoming import (
    DamagedError,
    Incoming,
    NotWantedError,
    SupersededError,
    TooLargeError,
)

CONTENT = bytes(range(256)) * 40
APART = Apart(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


@pytest.fixture
def incoming(tmp_path: Path) -> Incoming:
    """Sites A and B, of which A has an order."""
    incoming = Incoming(tmp_path, ["A", "B"])
    incoming.expect("A", 1, len(CONTENT))
    return incoming


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))


def test_a_file_arrives_in_pieces_and_is_claimed_once(incoming: Incoming, tmp_path: Path) -> None:
    upload = incoming.begin("A", APART)
    upload.append([CONTENT[:100], CONTENT[100:101]])
    assert incoming.claim("A", APART) is None
    upload.append([CONTENT[101:]])
    assert incoming.claim("B", APART) is None
    path = incoming.claim("A", APART)
    assert path is not None
    assert path.read_bytes() == CONTENT
    assert incoming.claim("A", APART) is None
    assert files(tmp_path) == ["A/answer.safetensors"]


def test_another_connection_goes_on_and_the_earlier_one_counts_no_more(incoming: Incoming) -> None:
    first = incoming.begin("A", APART)
    first.append([CONTENT[:100]])
    second = incoming.begin("A", APART)
    assert second.offset == 100
    with pytest.raises(SupersededError):
        first.append([CONTENT[100:200]])
    second.append([CONTENT[100:]])
    assert incoming.claim("A", APART) is not None


@pytest.mark.parametrize("there", [0, 1, 5000, len(CONTENT)])
def test_a_coordinator_that_was_killed_goes_on_with_what_is_on_disk(
    incoming: Incoming, tmp_path: Path, there: int
) -> None:
    incoming.begin("A", APART).append([CONTENT[:there]])
    again = Incoming(tmp_path, ["A", "B"])
    again.expect("A", 2, len(CONTENT))
    upload = again.begin("A", APART)
    assert upload.offset == there
    if there < len(CONTENT):
        upload.append([CONTENT[there:]])
    path = again.claim("A", APART)
    assert path is not None
    assert path.read_bytes() == CONTENT


def test_what_belongs_to_nobody_is_removed(incoming: Incoming, tmp_path: Path) -> None:
    incoming.begin("A", APART).append([CONTENT[:10]])
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / f"{'0' * 64}.part").write_bytes(b"x")
    (tmp_path / "B").mkdir()
    (tmp_path / "B" / "answer.safetensors").write_bytes(b"x")
    again = Incoming(tmp_path, ["A", "B"])
    assert files(tmp_path) == [f"A/{APART.sha256}.part"]
    again.clear()
    assert files(tmp_path) == []


def test_a_site_has_one_file_at_most(incoming: Incoming, tmp_path: Path) -> None:
    first = incoming.begin("A", APART)
    first.append([CONTENT[:10]])
    other = Apart("1" * 64, 5)
    incoming.begin("A", other)
    assert files(tmp_path) == [f"A/{other.sha256}.part"]
    with pytest.raises(SupersededError):
        first.append([CONTENT[10:]])


def test_other_bytes_than_were_said_are_gone_at_the_last_one(incoming: Incoming) -> None:
    upload = incoming.begin("A", Apart("2" * 64, 3))
    upload.append([b"ab"])
    with pytest.raises(DamagedError):
        upload.append([b"c"])
    assert incoming.claim("A", Apart("2" * 64, 3)) is None
    assert incoming.begin("A", Apart("2" * 64, 3)).offset == 0


def test_damage_on_disk_while_the_coordinator_was_down_is_found(incoming: Incoming, tmp_path: Path) -> None:
    incoming.begin("A", APART).append([CONTENT])
    (path,) = tmp_path.glob("A/*.part")
    path.write_bytes(b"x" * len(CONTENT))
    again = Incoming(tmp_path, ["A"])
    again.expect("A", 1, len(CONTENT))
    assert again.begin("A", APART).offset == 0


def test_only_what_an_open_order_can_ask_for_is_taken(incoming: Incoming) -> None:
    with pytest.raises(NotWantedError):
        incoming.begin("B", APART)
    with pytest.raises(TooLargeError):
        incoming.begin("A", Apart(APART.sha256, len(CONTENT) + 1))
    upload = incoming.begin("A", APART)
    incoming.expect_no_more("A", 1)
    with pytest.raises(NotWantedError):
        upload.append([CONTENT])
    with pytest.raises(NotWantedError):
        incoming.begin("A", APART)
