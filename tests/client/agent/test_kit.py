"""The kit folder, whole and broken."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from fedpath.client.agent.kit import load_kit
from fedpath.core.config import FederationConfig
from fedpath.core.errors import ConfigError
from fedpath.server import certificates
from fedpath.server.provision import provision


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """What `fedpath provision` makes for hospital A."""
    config = FederationConfig.model_validate(
        {
            "federation": {"name": "lung", "sites": ["A"]},
            "server": {"address": "localhost:8443"},
            "task": {"labels": ["no", "yes"]},
            "features": {"encoder": "e", "width": 4},
        }
    )
    return provision(config, tmp_path).new_kits[0]


def fault(kit: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_kit(kit)
    assert str(kit) in caught.value.message
    return caught.value


def test_a_kit_is_loaded(kit: Path) -> None:
    loaded = load_kit(kit)
    assert (loaded.federation, loaded.site, loaded.address) == ("lung", "A", "localhost:8443")
    assert loaded.authority == kit / "ca.crt"
    assert loaded.node_key.private_numbers() == certificates.read_key(kit / "node.key").private_numbers()


def test_no_folder(tmp_path: Path) -> None:
    assert "no such kit folder" in fault(tmp_path / "absent").message
    (tmp_path / "file").write_text("")
    assert "no such kit folder" in fault(tmp_path / "file").message


@pytest.mark.parametrize("name", ["kit.toml", "ca.crt", "node.key"])
def test_a_missing_file_is_named(kit: Path, name: str) -> None:
    (kit / name).unlink()
    error = fault(kit)
    assert error.message.endswith(f"the kit lacks {name}")
    assert "fedpath provision" in error.remedy


def test_a_broken_kit_toml(kit: Path) -> None:
    (kit / "kit.toml").write_text('federation = "lung"\naddress = "localhost:8443"\n')
    assert fault(kit).message.endswith("kit.toml: key 'site' is missing")
    (kit / "kit.toml").write_text("=")
    assert "not valid TOML" in fault(kit).message


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_broken_key(kit: Path, content: bytes) -> None:
    (kit / "node.key").write_bytes(content)
    error = fault(kit)
    assert "node.key: no readable private key" in error.message
    assert "operator" in error.remedy


def test_keys_of_another_kind(kit: Path) -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    (kit / "node.key").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert "node.key: not an elliptic-curve key" in fault(kit).message
    locked = certificates.new_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pw"))
    (kit / "node.key").write_bytes(locked)
    assert "node.key: no readable private key" in fault(kit).message
    public = certificates.new_key().public_key()
    certificates.write_public_key(kit / "node.key", public)
    assert "node.key: no readable private key" in fault(kit).message
