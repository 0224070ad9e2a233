"""Arrays in files: what is written comes back, and of damaged files none is read."""

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file as load_as_torch

from fedpath.core.errors import RefusedError
from fedpath.core.exchange.stored import CHANGES, SCALES, ArrayFile, WireArrays, as_bytes, write_arrays
from fedpath.core.exchange.wire import header_of, pack

LENGTH = struct.Struct("<Q")
FLOATS = {"F32", "F16", "BF16", "I8"}


def some() -> WireArrays:
    random = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {
        "g/float32": random.normal(size=(3, 4)).astype(np.float32),
        "g/float16": random.normal(size=7).astype(np.float16),
        "g/bfloat16": np.array([0x3F80, 0xC000, 0x0001, 0x7F7F], np.uint16),
        "g/int8": np.array([[-127, 0], [1, 127]], np.int8),
        "g/number": np.array(2.5, np.float32),
        "g/none": np.zeros((0, 5), np.float32),
    }
    return WireArrays(arrays, {CHANGES: "true", SCALES: json.dumps({"g/int8": 0.25})})


def content() -> bytes:
    arrays = some()
    return as_bytes(arrays, arrays.metadata)


def read(folder: Path, content: bytes) -> dict[str, NDArray[np.float32]]:
    path = folder / "file.safetensors"
    path.write_bytes(content)
    with ArrayFile(path) as file:
        return {name: file.array(name).copy() for name in sorted(file.names)}


def refused(folder: Path, content: bytes) -> str:
    """Why a file is not read."""
    with pytest.raises(RefusedError, match=r"^its arrays are not readable: ") as caught:
        read(folder, content)
    assert caught.value.remedy == "run the same version of fedpath on both sides"
    return caught.value.message


def with_header(change: Callable[[dict[str, Any]], object], *, data: bytes | None = None, spaces: int = 0) -> bytes:
    """The file with another header."""
    whole = content()
    (length,) = LENGTH.unpack_from(whole)
    header = json.loads(whole[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + spaces)
    return LENGTH.pack(len(text)) + text + (whole[8 + length :] if data is None else data)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    arrays = some()
    came = read(tmp_path, content())
    assert came.keys() == arrays.keys()
    assert np.array_equal(came["g/float32"], arrays["g/float32"])
    assert np.array_equal(came["g/float16"], arrays["g/float16"].astype(np.float32))
    assert came["g/bfloat16"].tolist() == [1.0, -2.0, 2.0**-133, (2 - 2.0**-7) * 2.0**127]
    assert came["g/int8"].tolist() == [[-31.75, 0], [0.25, 31.75]]
    assert (came["g/number"].shape, came["g/none"].shape) == ((), (0, 5))


def test_metadata_belong_to_the_arrays_in_files_and_messages(tmp_path: Path) -> None:
    arrays = some()
    path = tmp_path / "file.safetensors"
    with path.open("wb") as file:
        write_arrays(file, arrays)
    assert path.read_bytes() == content()
    with ArrayFile(path) as stored:
        assert stored.changes
        assert stored.metadata == arrays.metadata
    message = pack('{"kind": "update"}', arrays)
    assert header_of(message) == '{"kind": "update"}'
    other = tmp_path / "message.safetensors"
    other.write_bytes(message)
    with ArrayFile(other) as stored:
        assert stored.metadata == arrays.metadata | {"fedpath": '{"kind": "update"}'}
        for name, array in read(tmp_path, content()).items():
            assert np.array_equal(stored.array(name), array)


def test_other_readers_read_the_same(tmp_path: Path) -> None:
    """safetensors' own reader for torch, which knows bfloat16."""
    path = tmp_path / "file.safetensors"
    path.write_bytes(content())
    came = read(tmp_path, content())
    for name, tensor in load_as_torch(path).items():
        factor = 0.25 if name == "g/int8" else 1.0
        assert np.array_equal(tensor.float().numpy() * factor, came[name])


def test_views_are_written_by_their_values(tmp_path: Path) -> None:
    grid: NDArray[np.float32] = np.arange(12, dtype=np.float32).reshape(3, 4)
    views = {"g/transposed": grid.T, "g/stepped": grid[:, ::2], "g/reversed": grid[::-1], "g/big": grid.astype(">f4")}
    for name, array in read(tmp_path, as_bytes(views, {})).items():
        assert np.array_equal(array, views[name])


def test_data_that_lie_at_an_odd_place_are_read(tmp_path: Path) -> None:
    for spaces in range(4):
        came = read(tmp_path, with_header(lambda header: None, spaces=spaces))
        assert all(np.array_equal(array, came[name]) for name, array in read(tmp_path, content()).items())


def test_no_arrays_are_a_file_too(tmp_path: Path) -> None:
    assert read(tmp_path, as_bytes({}, {})) == {}


@pytest.mark.parametrize(
    ("scales", "reason"),
    [
        (None, "array 'g/int8' has no scale"),
        ("{}", "array 'g/int8' has no scale"),
        ('{"g/int8": 1, "g/float32": 1}', "array 'g/float32' is not int8 and has a scale"),
        ('{"g/int8": 1, "g/other": 1}', "array 'g/other' is not int8 and has a scale"),
        ("[]", "the scales are list"),
        ("3", "the scales are int"),
        ("null", "the scales are NoneType"),
        ('"g/int8"', "the scales are str"),
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "recursion"),
        *(
            (f'{{"g/int8": {scale}}}', "the scale of array 'g/int8' is ")
            for scale in (
                *("NaN", "Infinity", "-Infinity", "0", "-1", "-0.0", "1e39", "1e-60", "1e400", '"1"', "null", "true"),
                *("[1]", "{}", "1" + "0" * 400, "3e36"),
            )
        ),
        ('{"g/int8": 1' + "0" * 5000 + "}", "digits"),
    ],
)
def test_scales_that_are_none_are_refused(scales: str | None, reason: str, tmp_path: Path) -> None:
    metadata = {CHANGES: "true"} | ({} if scales is None else {SCALES: scales})
    assert reason in refused(tmp_path, as_bytes(some(), metadata))


def set_(name: str, key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[name].__setitem__(key, value)


@pytest.mark.parametrize(
    "change",
    [
        *(
            set_("g/float32", "dtype", dtype)
            for dtype in ("F64", "I64", "U16", "BOOL", "F8_E4M3", "float32", "", 3, None)
        ),
        *(
            set_("g/float32", "data_offsets", offsets)
            for offsets in (
                *([0, 48.0], [0, 47], [0, 49], [48, 0], [-48, 0], [0, 10**30], [0], [], None, "0", [4, 52]),
                *([2**63, 2**63 + 48], [2**64 - 1, 47]),
            )
        ),
        *(
            set_("g/float32", "shape", shape)
            for shape in (
                [12, 2],
                [3, 4, 0],
                [-3, -4],
                [2**32, 2**32],
                [2**63, 2],
                [3.0, 4],
                ["3", 4],
                None,
                12,
                [1] * 3,
            )
        ),
        lambda header: header.update(more={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),
        lambda header: header["g/float32"].update(header["g/float16"]),
        lambda header: header.pop("g/float32"),
        lambda header: header.pop("g/int8"),
        lambda header: header["g/float32"].pop("dtype"),
        lambda header: header.update(__metadata__=[1]),
        lambda header: header.update(__metadata__={"changes": 1}),
        lambda header: header.update(__metadata__={"scales": {"g/int8": 0.25}}),
        lambda header: header.clear(),
    ],
)
def test_headers_that_do_not_fit_are_refused(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    refused(tmp_path, with_header(change))


@pytest.mark.parametrize("shape", [[0, 2**62], [2**63, 0], [0] * 1000, [2**64 - 1, 0]])
def test_shapes_of_nothing_are_no_trap(shape: list[int], tmp_path: Path) -> None:
    """A shape beyond what an index can be, of an array without numbers, is read as stated or refused."""
    changed = with_header(set_("g/none", "shape", shape))
    path = tmp_path / "file.safetensors"
    path.write_bytes(changed)
    with suppress(RefusedError), ArrayFile(path) as file:
        assert file.shape("g/none") == tuple(shape)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        b"\0" * 64,
        b"\xff" * 64,
        LENGTH.pack(2) + b"{}" + b"more",
        LENGTH.pack(2**63) + b"{}",
        LENGTH.pack(2**64 - 1) + b"{}",
        LENGTH.pack(10**9) + b"{}",
        LENGTH.pack(4) + b"null",
        LENGTH.pack(5000) + b"[" * 5000,
        LENGTH.pack(5000) + b'{"a":' * 1000,
        LENGTH.pack(3) + b"\xff\xfe\xfd",
    ],
)
def test_what_is_no_such_file_is_refused(damaged: bytes, tmp_path: Path) -> None:
    refused(tmp_path, damaged)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    whole = content()
    for length in range(0, len(whole), 3):
        refused(tmp_path, whole[:length])
    refused(tmp_path, whole + b"\0")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="not readable"):
        ArrayFile(tmp_path / "nowhere.safetensors")


def test_whatever_is_flipped_is_read_or_refused(tmp_path: Path) -> None:
    """Bytes of header and length changed at random: an array of the types above, of its size, or a refusal."""
    whole, random = content(), np.random.default_rng(7)
    (length,) = LENGTH.unpack_from(whole)
    read_, refused_ = 0, 0
    for _ in range(3000):
        changed = bytearray(whole)
        for place in random.integers(0, 8 + length, size=random.integers(1, 4)):
            changed[place] = random.choice([random.integers(256), ord('"'), ord("0"), ord("9"), ord(",")])
        path = tmp_path / "file.safetensors"
        path.write_bytes(changed)
        try:
            with ArrayFile(path) as file:
                for name in file.names:
                    assert file.dtype(name) in FLOATS
                    assert file.array(name).shape == file.shape(name)
            read_ += 1
        except RefusedError:
            refused_ += 1
    assert read_ > 20
    assert refused_ > 1000


@pytest.mark.parametrize("cut", [8, 1000])
def test_a_large_file_that_is_cut_while_it_is_read_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with path.open("wb") as opened:
        write_arrays(opened, {"g/w": np.ones((1100, 1000), np.float32)})
    with ArrayFile(path) as file:
        with path.open("r+b") as opened:
            opened.truncate(cut)
        with pytest.raises(RefusedError, match="the file was cut while it was read"):
            file.array("g/w")
