"""Files that are no readable TOML at all."""

import os
from pathlib import Path

import pytest

from fedpath.core.config import load_federation, load_site
from fedpath.core.errors import ConfigError


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for load in (load_federation, load_site):
        with pytest.raises(ConfigError, match=r"absent\.toml: no such file") as caught:
            load(tmp_path / "absent.toml")
        assert "--config" in caught.value.remedy


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder") as caught:
        load_federation(tmp_path)
    assert str(tmp_path) in caught.value.message


def test_a_file_taken_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("")
    with pytest.raises(ConfigError, match=r"site\.toml/site\.toml: cannot be read: Not a directory"):
        load_site(tmp_path / "site.toml" / "site.toml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text("")
    path.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_site(path)


def test_a_syntax_error_is_placed(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    path.write_text('[federation]\nname = "a\n')
    with pytest.raises(ConfigError, match=r"federation\.toml: not valid TOML: .*line 2") as caught:
        load_federation(path)
    assert caught.value.remedy == "correct the file at that place"


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    path.write_bytes(b'name = "\xff\xfe"')
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_federation(path)
