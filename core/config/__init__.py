"""The two configuration files: ``federation.toml`` (the coordinator's) and ``site.toml`` (a hospital's)."""

from fedpath.core.config.federation import FederationConfig, federation_of, load_federation
from fedpath.core.config.site import SiteConfig, load_site

__all__ = ["FederationConfig", "SiteConfig", "federation_of", "load_federation", "load_site"]
