"""Certificate authority, server certificate and kits, judged by OpenSSL."""

import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from fedpath.core.config import FederationConfig
from fedpath.core.config.kit import KitConfig
from fedpath.core.config.loading import load_toml
from fedpath.core.errors import ConfigError
from fedpath.core.files import write_bytes
from fedpath.server import certificates
from fedpath.server.provision import load_server_credentials, provision

# Longer than the 64 characters of a certificate's common name, as load balancers' names are.
LONG = "internal-coordinator-of-the-lung-federation-1234567890.eu-central-1.elb.example.com"


def federation(*sites: str, host: str = "localhost", name: str = "lung") -> FederationConfig:
    return FederationConfig.model_validate(
        {
            "federation": {"name": name, "sites": list(sites)},
            "server": {"address": f"{host}:8443"},
            "task": {"labels": ["no", "yes"]},
            "features": {"encoder": "e", "width": 4},
        }
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def verify(folder: Path, *options: str) -> None:
    """OpenSSL's strictest check of the server's certificate against the authority."""
    ca, certificate = folder / "kits/A/ca.crt", folder / "server/server.crt"
    assert "OK" in openssl("verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", ca, *options, certificate)


def certificate_of(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_every_role_gets_its_files_and_no_other_roles_secret(tmp_path: Path) -> None:
    made = provision(federation("A", "B"), tmp_path)
    assert set(contents(tmp_path)) == {
        "ca/ca.key",
        "ca/ca.crt",
        "server/server.key",
        "server/server.crt",
        "server/sites/A.pub",
        "server/sites/B.pub",
        *(f"kits/{site}/{name}" for site in "AB" for name in ("kit.toml", "ca.crt", "node.key")),
    }
    keys = list(tmp_path.rglob("*.key"))
    assert len({path.read_bytes() for path in keys}) == 4  # every key is another
    for path in keys:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for path in (*tmp_path.rglob("*.crt"), *tmp_path.rglob("*.pub"), *tmp_path.rglob("*.toml")):
        assert b"PRIVATE" not in path.read_bytes()
    assert (made.new_kits, made.kept_kits, made.server_renewed) == (
        [tmp_path / "kits/A", tmp_path / "kits/B"],
        [],
        True,
    )


def test_a_kit_says_whose_it_is(tmp_path: Path) -> None:
    provision(federation("A", "B", host="10.0.0.1"), tmp_path)
    kit = load_toml(tmp_path / "kits/B/kit.toml", KitConfig)
    assert (kit.federation, kit.site, kit.address) == ("lung", "B", "10.0.0.1:8443")
    node_key = load_pem_private_key((tmp_path / "kits/B/node.key").read_bytes(), None)
    assert isinstance(node_key, ec.EllipticCurvePrivateKey)
    public = node_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert (tmp_path / "server/sites/B.pub").read_bytes() == public


@pytest.mark.parametrize(
    ("host", "options", "wrong"),
    [
        (
            "coordinator.example.org",
            ["-verify_hostname", "coordinator.example.org"],
            ["-verify_hostname", "example.org"],
        ),
        ("localhost", ["-verify_hostname", "localhost"], ["-verify_ip", "127.0.0.1"]),
        ("127.0.0.1", ["-verify_ip", "127.0.0.1"], ["-verify_ip", "127.0.0.2"]),
        (LONG, ["-verify_hostname", LONG], ["-verify_hostname", LONG[1:]]),
    ],
)
def test_openssl_accepts_the_chain_for_that_host_only(
    tmp_path: Path, host: str, options: list[str], wrong: list[str]
) -> None:
    provision(federation("A", host=host), tmp_path)
    verify(tmp_path, *options)
    with pytest.raises(AssertionError, match="mismatch"):
        verify(tmp_path, *wrong)


def test_the_longest_names_that_the_configuration_allows(tmp_path: Path) -> None:
    site = "s" * 63
    provision(federation("A", site, name="f" * 63), tmp_path)
    verify(tmp_path)
    assert load_toml(tmp_path / "kits" / site / "kit.toml", KitConfig).federation == "f" * 63


def test_the_authority_of_another_federation_does_not_vouch(tmp_path: Path) -> None:
    provision(federation("A"), tmp_path / "one")
    provision(federation("A"), tmp_path / "two")
    (tmp_path / "one/kits/A/ca.crt").write_bytes((tmp_path / "two/kits/A/ca.crt").read_bytes())
    with pytest.raises(AssertionError, match=r"verification failed|signature failure|unable to get"):
        verify(tmp_path / "one")


def test_the_server_cannot_sign_and_the_authority_cannot_serve(tmp_path: Path) -> None:
    provision(federation("A"), tmp_path)
    server, authority = certificate_of(tmp_path / "server/server.crt"), certificate_of(tmp_path / "ca/ca.crt")
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert not authority.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    for certificate, days in ((server, 365), (authority, 3650)):
        now = datetime.now(UTC)
        assert certificate.not_valid_before_utc < now
        assert certificate.not_valid_after_utc - now < timedelta(days=days, minutes=1)


def test_the_fingerprint_is_the_one_openssl_shows(tmp_path: Path) -> None:
    made = provision(federation("A"), tmp_path)
    shown = openssl("x509", "-noout", "-fingerprint", "-sha256", "-in", tmp_path / "kits/A/ca.crt")
    assert shown.strip().endswith("=" + made.authority_fingerprint)


def test_again_changes_nothing(tmp_path: Path) -> None:
    provision(federation("A", "B"), tmp_path)
    before = contents(tmp_path)
    made = provision(federation("A", "B"), tmp_path)
    assert contents(tmp_path) == before
    assert (made.new_kits, made.kept_kits, made.server_renewed) == (
        [],
        [tmp_path / "kits/A", tmp_path / "kits/B"],
        False,
    )


def test_a_new_site_gets_a_kit_and_the_others_keep_theirs(tmp_path: Path) -> None:
    provision(federation("A", "B"), tmp_path)
    before = contents(tmp_path)
    made = provision(federation("A", "B", "C"), tmp_path)
    after = contents(tmp_path)
    assert made.new_kits == [tmp_path / "kits/C"]
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "server/sites/C.pub",
        "kits/C/kit.toml",
        "kits/C/ca.crt",
        "kits/C/node.key",
    }


def test_another_host_renews_the_certificate_and_tells_the_kits(tmp_path: Path) -> None:
    provision(federation("A", host="old.example.org"), tmp_path)
    before = contents(tmp_path)
    assert provision(federation("A", host="new.example.org"), tmp_path).server_renewed
    after = contents(tmp_path)
    verify(tmp_path, "-verify_hostname", "new.example.org")
    assert b"new.example.org:8443" in after["kits/A/kit.toml"]
    for name in ("ca/ca.key", "ca/ca.crt", "kits/A/node.key", "kits/A/ca.crt"):
        assert after[name] == before[name]


def test_a_certificate_about_to_end_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "SERVER_DAYS", 29)
        provision(federation("A"), tmp_path)
    assert provision(federation("A"), tmp_path).server_renewed
    assert not provision(federation("A"), tmp_path).server_renewed
    verify(tmp_path)


def test_a_run_cut_off_between_key_and_certificate_is_mended(tmp_path: Path) -> None:
    provision(federation("A"), tmp_path)
    certificates.write_key(tmp_path / "server/server.key", certificates.new_key())
    assert provision(federation("A"), tmp_path).server_renewed
    key = certificates.read_key(tmp_path / "server/server.key").public_key()
    assert certificate_of(tmp_path / "server/server.crt").public_key() == key


def test_a_key_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.key"
    path.write_text("")
    path.chmod(0o644)
    certificates.write_key(path, certificates.new_key())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert isinstance(certificates.read_key(path), ec.EllipticCurvePrivateKey)
    assert [path.name for path in tmp_path.iterdir()] == ["x.key"]


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_half_an_authority_is_not_replaced(tmp_path: Path, name: str) -> None:
    provision(federation("A"), tmp_path)
    (tmp_path / "ca" / name).unlink()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"one of ca\.key and ca\.crt is missing") as caught:
        provision(federation("A", "B"), tmp_path)
    assert "restore it from your backup" in caught.value.remedy
    assert contents(tmp_path) == before


def test_an_authority_that_was_put_away_is_not_replaced_behind_the_hospitals_backs(tmp_path: Path) -> None:
    # "keep ca.key off the coordinator": somebody moves the folder away, and later adds a site.
    provision(federation("A"), tmp_path)
    (tmp_path / "ca").rename(tmp_path / "safe")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="the authority that signed what is in") as caught:
        provision(federation("A", "B"), tmp_path)
    assert "restore" in caught.value.remedy
    assert contents(tmp_path) == before


def test_a_server_certificate_of_another_authority_is_renewed(tmp_path: Path) -> None:
    provision(federation("A"), tmp_path / "one")
    provision(federation("A"), tmp_path / "two")
    for name in ("server.key", "server.crt"):
        write_bytes(tmp_path / "one/server" / name, (tmp_path / "two/server" / name).read_bytes())
    assert provision(federation("A"), tmp_path / "one").server_renewed
    verify(tmp_path / "one")


@pytest.mark.parametrize("name", ["ca/ca.key", "ca/ca.crt", "server/server.crt", "kits/A/node.key"])
def test_what_cannot_be_read_is_named_and_kept(tmp_path: Path, name: str) -> None:
    provision(federation("A"), tmp_path)
    (tmp_path / name).write_text("not PEM")
    with pytest.raises(ConfigError, match="no readable") as caught:
        provision(federation("A"), tmp_path)
    assert str(tmp_path / name) in caught.value.message
    assert (tmp_path / name).read_text() == "not PEM"


def test_a_key_of_another_kind_is_named(tmp_path: Path) -> None:
    provision(federation("A"), tmp_path)
    key = rsa.generate_private_key(65537, 1024)
    (tmp_path / "kits/A/node.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match=r"node\.key: not an elliptic-curve key"):
        provision(federation("A"), tmp_path)
    (tmp_path / "server/sites/A.pub").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(ConfigError, match=r"A\.pub: not an elliptic-curve key"):
        load_server_credentials(tmp_path / "server", ["A"])


def test_the_server_loads_the_keys_of_the_sites_it_is_told_of(tmp_path: Path) -> None:
    provision(federation("A", "B", "C"), tmp_path)
    credentials = load_server_credentials(tmp_path / "server", ["C", "A"])
    assert list(credentials.public_keys) == ["C", "A"]
    for site, key in credentials.public_keys.items():
        assert key == certificates.read_key(tmp_path / "kits" / site / "node.key").public_key()
    assert credentials.certificate == tmp_path / "server/server.crt"
    assert credentials.key == tmp_path / "server/server.key"


def test_credentials_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no server certificate there") as caught:
        load_server_credentials(tmp_path / "server", ["A"])
    assert "fedpath provision" in caught.value.remedy
    provision(federation("A"), tmp_path)
    with pytest.raises(ConfigError, match=r"server/sites: no key of site B, C") as caught:
        load_server_credentials(tmp_path / "server", ["A", "B", "C"])
    assert "fedpath provision" in caught.value.remedy
    (tmp_path / "server/sites/A.pub").write_text("nothing")
    with pytest.raises(ConfigError, match=r"A\.pub: no readable public key"):
        load_server_credentials(tmp_path / "server", ["A"])
    (tmp_path / "server/server.key").unlink()
    with pytest.raises(ConfigError, match="no server certificate there"):
        load_server_credentials(tmp_path / "server", ["A"])
