"""A message as bytes."""

import hashlib
import json
import pickle
import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from fedpath.core.errors import RefusedError
from fedpath.core.exchange.wire import Arrays, hash_arrays, header_of, pack, unpack


def some_arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "image/weight": rng.normal(size=(3, 4)).astype(np.float32),
        "image/bias": rng.normal(size=4).astype(np.float16),
        "norm/scale": rng.normal(size=(2, 1, 2)),
        "norm/count": np.array(7, dtype=np.int64),
        "empty/rows": np.zeros((0, 5), dtype=np.float32),
        "mask/bits": np.array([True, False]),
        "bytes/raw": np.arange(5, dtype=np.uint8),
    }


def test_what_is_packed_comes_back() -> None:
    arrays = some_arrays()
    header, back = unpack(pack('{"kind": "ünïcode"}', arrays))
    assert header == '{"kind": "ünïcode"}'
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert np.array_equal(back[name], array)


def test_views_are_packed_by_their_values() -> None:
    grid: NDArray[np.float32] = np.arange(12, dtype=np.float32).reshape(3, 4)
    _, back = unpack(pack("{}", {"g/transposed": grid.T, "g/stepped": grid[:, ::2], "g/reversed": grid[::-1]}))
    assert np.array_equal(back["g/transposed"], grid.T)
    assert np.array_equal(back["g/stepped"], grid[:, ::2])
    assert np.array_equal(back["g/reversed"], grid[::-1])


def test_a_header_alone() -> None:
    assert unpack(pack("{}")) == ("{}", {})
    assert unpack(pack("{}", {})) == ("{}", {})


def test_arrays_that_came_can_be_written_to() -> None:
    _, back = unpack(pack("{}", {"g/a": np.ones(3, dtype=np.float32)}))
    back["g/a"] *= 2  # torch warns about memory it may not write
    assert back["g/a"].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"hello, coordinator",
        b"\xff" * 64,
        pickle.dumps({"kind": "train"}),
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 20) + b'{"__metadata__":null}'[:20],
        struct.pack("<Q", 5000) + b"[" * 5000,
        save({}),
        save({"a": np.ones(2)}),
        save({"a": np.ones(2)}, metadata={"other": "{}"}),
    ],
)
def test_bytes_that_are_no_message_are_refused(content: bytes) -> None:
    with pytest.raises(RefusedError, match=f"message of {len(content)} bytes is not readable") as caught:
        unpack(content)
    assert caught.value.remedy == "run the same version of fedpath on both sides"


def test_every_truncation_is_noticed() -> None:
    content = pack("{}", {"g/a": np.arange(3, dtype=np.float32)})
    for length in range(len(content)):
        with pytest.raises(RefusedError):
            unpack(content[:length])
    with pytest.raises(RefusedError):
        unpack(content + b"\0")


def test_a_header_that_claims_more_than_came_is_refused() -> None:
    header = {
        "__metadata__": {"fedpath": "{}"},
        "a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]},
    }
    text = json.dumps(header).encode()
    with pytest.raises(RefusedError):
        unpack(struct.pack("<Q", len(text)) + text)


def test_a_header_that_is_not_text_is_refused() -> None:
    for value in ("3", "null", '{"kind": "train"}', '["x"]'):
        text = b'{"__metadata__":{"fedpath":' + value.encode() + b"}}"
        with pytest.raises(RefusedError):
            unpack(struct.pack("<Q", len(text)) + text)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 4) + b"[{}]",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 21) + b'{"__metadata__": null}',
        save({"a": np.ones(2)}, metadata={"other": "{}"}),
        b'\x1d\0\0\0\0\0\0\0{"__metadata__":{"fedpath":3}}',
    ],
)
def test_bytes_without_a_header_are_refused_without_looking_at_arrays(content: bytes) -> None:
    with pytest.raises(RefusedError):
        header_of(content)


def test_a_header_is_read_whatever_the_arrays_are() -> None:
    content = pack('{"kind": "ünïcode"}', some_arrays())
    for whole in (content, content[:-1], content.replace(b'"F32"', b'"F8" ')):
        assert header_of(whole) == '{"kind": "ünïcode"}'


def literal_hash(arrays: Arrays) -> str:
    """The definition in words: of every array by name, name NUL dtype NUL shape NUL bytes, row by row."""
    text = b""
    for name, array in sorted(arrays.items()):
        text += name.encode() + b"\0" + array.dtype.str.encode() + b"\0" + str(array.shape).encode() + b"\0"
        text += array.tobytes(order="C")
    return hashlib.sha256(text).hexdigest()


def test_the_hash_is_its_literal_definition() -> None:
    arrays = some_arrays()
    assert hash_arrays(arrays) == literal_hash(arrays)
    assert hash_arrays({}) == hashlib.sha256().hexdigest()
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert hash_arrays({"a": grid.T}) == literal_hash({"a": grid.T}) == hash_arrays({"a": np.ascontiguousarray(grid.T)})


def test_the_order_of_the_dictionary_does_not_matter() -> None:
    arrays = some_arrays()
    assert hash_arrays(dict(reversed(arrays.items()))) == hash_arrays(arrays)


def test_the_hash_survives_the_wire() -> None:
    arrays = some_arrays()
    assert hash_arrays(unpack(pack("{}", arrays))[1]) == hash_arrays(arrays)


def test_everything_about_a_model_changes_its_hash() -> None:
    base = {"g/a": np.arange(4, dtype=np.float32), "g/b": np.zeros(1, dtype=np.float32)}
    variants: list[Arrays] = [
        base,
        {"g/c": base["g/a"], "g/b": base["g/b"]},
        {"g/a": base["g/b"], "g/b": base["g/a"]},
        {"g/a": base["g/a"]},
        base | {"g/a": base["g/a"].astype(np.float64)},
        base | {"g/a": base["g/a"].view(np.int32)},
        base | {"g/a": base["g/a"].astype(">f4")},
        base | {"g/a": base["g/a"].reshape(2, 2)},
        base | {"g/a": base["g/a"].reshape(4, 1)},
        base | {"g/a": base["g/a"][::-1]},
        base | {"g/a": np.nextafter(base["g/a"], np.float32(9))},
        base | {"g/b": np.array(0, dtype=np.float32)},
        base | {"g/b": np.array([-0.0], dtype=np.float32)},
    ]
    assert len({hash_arrays(variant) for variant in variants}) == len(variants)
