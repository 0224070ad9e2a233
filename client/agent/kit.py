"""Load the kit folder that the coordinator's operator gave this hospital."""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedpath.core.config.kit import AUTHORITY_FILE, KIT_FILE, NODE_KEY_FILE, KitConfig
from fedpath.core.config.loading import load_toml
from fedpath.core.errors import ConfigError

_REMEDY = "ask the coordinator's operator for the kit of this site (`fedpath provision` makes it)"


@dataclass(frozen=True, slots=True)
class Kit:
    """Where the coordinator is, whom to trust, and this site's identity."""

    federation: str
    site: str
    address: str
    authority: Path
    """PEM certificate of the only authority trusted for the coordinator."""
    node_key: ec.EllipticCurvePrivateKey


def load_kit(folder: Path) -> Kit:
    """Load a kit.

    Raises:
        ConfigError: a file of it is missing or broken.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such kit folder", remedy=_REMEDY)
    for name in (KIT_FILE, AUTHORITY_FILE, NODE_KEY_FILE):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder}: the kit lacks {name}", remedy=_REMEDY)
    config = load_toml(folder / KIT_FILE, KitConfig)
    key_file = folder / NODE_KEY_FILE
    try:
        key = load_pem_private_key(key_file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{key_file}: no readable private key: {error}", remedy=_REMEDY) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{key_file}: not an elliptic-curve key", remedy=_REMEDY)
    return Kit(config.federation, config.site, config.address, folder / AUTHORITY_FILE, key)
