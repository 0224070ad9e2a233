"""Names that travel between sites and become file names: short, plain, safe."""

from typing import Annotated

from pydantic import Field

_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_\-]{0,62}$"

SiteName = Annotated[str, Field(pattern=_PATTERN)]
FederationName = Annotated[str, Field(pattern=_PATTERN)]
