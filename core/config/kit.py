"""A site's kit: the folder `fedpath provision` makes for a hospital and `fedpath client join` reads.

``kit.toml`` says which federation, site and coordinator it is for; ``ca.crt`` is the only authority the site trusts for
the coordinator's certificate; ``node.key`` is the site's identity and stays readable by its owner only.
"""

from typing import Annotated

from pydantic import Field

from fedpath.core.config.loading import Section
from fedpath.core.config.names import FederationName, SiteName

KIT_FILE = "kit.toml"
AUTHORITY_FILE = "ca.crt"
NODE_KEY_FILE = "node.key"


class KitConfig(Section):
    """The whole of ``kit.toml``."""

    federation: FederationName
    site: SiteName
    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-]+:\d{1,5}$")]
    """host:port of the coordinator."""
