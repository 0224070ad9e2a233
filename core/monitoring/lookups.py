"""What is looked up when somebody scrapes and is the same for both roles: certificates and disks."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from fedpath.core.monitoring.metrics import CERTIFICATE, Series


def certificate(path: Path, role: str) -> Iterator[Series]:
    """Give when the first certificate of a PEM file ends; nothing where it cannot be read now."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):  # it is just being replaced, or gone: the series is absent, which an alert can see
        return
    names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    subject = str(names[0].value) if names else ""
    yield CERTIFICATE.name, {"role": role, "subject": subject}, found.not_valid_after_utc.timestamp()


def free_bytes(name: str, folders: Mapping[str, Path]) -> Iterator[Series]:
    """Give the free bytes of the disks that folders are on.

    Args:
        name: of the metric.
        folders: by the word that stands for them; a path is never told.
    """
    for word, folder in folders.items():
        try:
            free = shutil.disk_usage(folder).free
        except OSError:  # not there (yet)
            continue
        yield name, {"folder": word}, float(free)
