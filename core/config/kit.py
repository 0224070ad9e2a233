"""A site's kit: the folder `fedpath provision` makes for a hospital and `fedpath client join` reads.

``kit.toml`` says which federation, site and coordinator it is for; ``ca.crt`` is the only authority the site trusts for
the coordinator's certificate; ``node.key`` is the site's identity and stays readable by its owner only.
"""

from fedpath.core.config.loading import Section
from fedpath.core.config.names import Address, FederationName, SiteName

KIT_FILE = "kit.toml"
AUTHORITY_FILE = "ca.crt"
NODE_KEY_FILE = "node.key"


class KitConfig(Section):
    """The whole of ``kit.toml``."""

    federation: FederationName
    site: SiteName
    address: Address
    """host:port of the coordinator."""
