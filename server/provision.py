"""`fedpath provision`: the certificate authority, the server's folder, and a kit a hospital.

```
OUT/ca/        ca.key, ca.crt         stays with the operator, off the coordinator if possible
OUT/server/    server.key, server.crt, sites/<site>.pub      the coordinator's, `server.credentials`
OUT/kits/A/    kit.toml, ca.crt, node.key                    goes to hospital A, and to nobody else
```

Run again, it keeps what is there, adds kits for new sites and renews a server certificate that is about to end or names
another host.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpath.core.config import FederationConfig
from fedpath.core.config.kit import AUTHORITY_FILE, KIT_FILE, NODE_KEY_FILE
from fedpath.core.errors import ConfigError
from fedpath.core.files import write_bytes, write_text
from fedpath.server import certificates

_RENEW_DAYS = 30


@dataclass(frozen=True, slots=True)
class Provisioned:
    """What `provision` made or kept."""

    authority_fingerprint: str
    new_kits: list[Path]
    kept_kits: list[Path]
    server_renewed: bool


@dataclass(frozen=True, slots=True)
class ServerCredentials:
    """The coordinator's folder, loaded."""

    certificate: Path
    key: Path
    public_keys: Mapping[str, ec.EllipticCurvePublicKey]


def provision(config: FederationConfig, out: Path) -> Provisioned:
    """Make or complete the credentials of a federation below ``out``.

    Raises:
        ConfigError: what is there already cannot be read.
    """
    authority, authority_key = _authority(config.federation.name, out)
    renewed = _server(config, out / "server", authority, authority_key)
    new, kept = [], []
    for site in config.federation.sites:
        kit = out / "kits" / site
        key_file = kit / NODE_KEY_FILE
        if key_file.exists():
            kept.append(kit)
        else:
            certificates.write_key(key_file, certificates.new_key())
            new.append(kit)
        public = certificates.read_key(key_file).public_key()
        certificates.write_public_key(out / "server" / "sites" / f"{site}.pub", public)
        write_bytes(kit / AUTHORITY_FILE, _pem(authority))
        write_text(
            kit / KIT_FILE,
            f'federation = "{config.federation.name}"\nsite = "{site}"\naddress = "{config.server.address}"\n',
        )
    return Provisioned(certificates.fingerprint(authority), new, kept, renewed)


def load_server_credentials(folder: Path, sites: list[str]) -> ServerCredentials:
    """Load what `provision` wrote for the coordinator, for the sites that federation.toml names.

    Raises:
        ConfigError: the folder or a site's key is not there.
    """
    if not (folder / "server.crt").is_file() or not (folder / "server.key").is_file():
        raise ConfigError(
            f"{folder}: no server certificate there",
            remedy="run `fedpath provision --config federation.toml`, or correct server.credentials",
        )
    missing = [site for site in sites if not (folder / "sites" / f"{site}.pub").is_file()]
    if missing:
        raise ConfigError(
            f"{folder}/sites: no key of site {', '.join(missing)}",
            remedy="run `fedpath provision` again: it adds what is missing and keeps the rest",
        )
    keys = {site: certificates.read_public_key(folder / "sites" / f"{site}.pub") for site in sites}
    return ServerCredentials(folder / "server.crt", folder / "server.key", keys)


def _authority(name: str, out: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    folder = out / "ca"
    certificate_file, key_file = folder / "ca.crt", folder / "ca.key"
    if certificate_file.exists() and key_file.exists():
        return _read_certificate(certificate_file), certificates.read_key(key_file)
    if certificate_file.exists() != key_file.exists():
        raise ConfigError(
            f"{folder}: one of ca.key and ca.crt is missing",
            remedy="restore it from your backup, or name a new --out and send every hospital its new kit",
        )
    if (out / "server" / "server.crt").exists() or any((out / "kits").glob(f"*/{AUTHORITY_FILE}")):
        raise ConfigError(
            f"{folder}: the authority that signed what is in {out} is not there",
            remedy="restore it from where you keep it, or name a new --out and send every hospital its new kit",
        )
    key = certificates.new_key()
    authority = certificates.make_authority(name, key)
    certificates.write_key(key_file, key)
    write_bytes(certificate_file, _pem(authority))
    return authority, key


def _server(
    config: FederationConfig, folder: Path, authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey
) -> bool:
    """Make the server's key and certificate where there is none that will do; return whether it made one."""
    host = config.server.address.rpartition(":")[0]
    certificate_file, key_file = folder / "server.crt", folder / "server.key"
    if certificate_file.exists() and key_file.exists():
        present = _read_certificate(certificate_file)
        if (
            certificates.serves(present, host, days=_RENEW_DAYS)
            and certificates.signed(authority, present)
            and present.public_key() == certificates.read_key(key_file).public_key()
        ):
            return False
    key = certificates.new_key()
    certificate = certificates.make_server_certificate(host, key.public_key(), authority, authority_key)
    certificates.write_key(key_file, key)
    write_bytes(certificate_file, _pem(certificate))
    return True


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no readable certificate: {error}", remedy="restore it from your backup") from None


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
