"""The federation's own certificate authority (P-384), the server's certificate and the sites' node keys."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedpath.core.errors import ConfigError
from fedpath.core.files import replacing, write_bytes

_AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
# A hospital whose clock is behind then reads that its clock is wrong, not that the certificate is.
_BACKDATE = timedelta(days=1)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new P-384 private key."""
    return ec.generate_private_key(ec.SECP384R1())


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a private key as PEM, readable by its owner only."""
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with replacing(path, private=True) as temporary:
        temporary.write_bytes(content)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key.

    Raises:
        ConfigError: the file is missing or holds no elliptic-curve key.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: no readable private key: {error}", remedy="restore it from your backup") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: not an elliptic-curve key", remedy="restore it from your backup")
    return key


def write_public_key(path: Path, key: ec.EllipticCurvePublicKey) -> None:
    """Write a public key as PEM."""
    write_bytes(path, key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a public key.

    Raises:
        ConfigError: the file holds no elliptic-curve public key.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no readable public key: {error}", remedy="run `fedpath provision` again") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path}: not an elliptic-curve key", remedy="run `fedpath provision` again")
    return key


def make_authority(name: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Return a self-signed authority that can sign server certificates and nothing below them."""
    subject = _subject(f"{name} certificate authority")
    return (
        _builder(subject, subject, key.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def make_server_certificate(
    host: str, key: ec.EllipticCurvePublicKey, authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """Return a certificate for ``host`` (a name or an address), signed by the authority."""
    subject = _subject(host)
    try:
        name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        name = x509.DNSName(host)
    return (
        _builder(subject, authority.subject, key, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def signed(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Return whether ``authority`` signed ``certificate``."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def serves(certificate: x509.Certificate, host: str, *, days: int) -> bool:
    """Return whether ``certificate`` names ``host`` and is valid for at least ``days`` more."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    known = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return host in known and certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=days)


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate as colon-separated pairs, for two people to compare on the telephone."""
    return ":".join(f"{byte:02X}" for byte in certificate.fingerprint(hashes.SHA256()))


def _subject(name: str) -> x509.Name:
    """Return ``name`` as a common name, which ends at 64 characters; hosts are checked by the alternative name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
