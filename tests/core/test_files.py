"""Files are whole or absent."""

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from fedpath.core.files import replacing, sha256_file, write_bytes, write_json, write_text


class Interruption(Exception):  # noqa: N818 - stands for whatever ends a write
    pass


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def fail_in_the_middle(path: Path, before: bytes | None) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(b"half of the n")
        assert (path.read_bytes() if path.exists() else None) == before  # nobody sees it before it is whole
        raise Interruption


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_text(path, "old")
    write_text(path, "nëw")
    assert path.read_bytes() == "nëw".encode()
    assert names(path.parent) == ["file"]


def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(Interruption):
        fail_in_the_middle(path, b"old")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_failure_at_the_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Interruption):
        fail_in_the_middle(tmp_path / "file", None)
    assert names(tmp_path) == []


def test_the_temporary_file_is_on_the_same_disk_and_hidden(tmp_path: Path) -> None:
    with replacing(tmp_path / "file.h5") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix != ".h5"  # a folder's `*.h5` never finds a half one


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_document_is_as_readable_as_any_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "x")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") == 0o666 & ~umask


def test_a_secret_is_its_owners_from_the_first_byte_on(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("old, and readable by all")
    path.chmod(0o644)
    with replacing(path, private=True) as temporary:
        assert mode(temporary) == 0o600
        temporary.write_bytes(b"secret")
    assert mode(path) == 0o600


def test_json_that_others_could_not_read_is_never_written(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"auc": 0.5, "sites": ["A", "B"], "none": None})
    assert json.loads(path.read_text()) == {"auc": 0.5, "sites": ["A", "B"], "none": None}
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"auc": value})
    assert json.loads(path.read_text())["auc"] == 0.5


def test_the_hash_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()
