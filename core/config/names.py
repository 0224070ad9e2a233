"""Names and addresses: names travel between sites and become file names, so they are short, plain, safe."""

from typing import Annotated

from pydantic import AfterValidator, Field

_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_\-]{0,62}$"

SiteName = Annotated[str, Field(pattern=_PATTERN)]
FederationName = Annotated[str, Field(pattern=_PATTERN)]
StageName = Annotated[str, Field(pattern=_PATTERN)]


def _port_exists(address: str) -> str:
    if not 0 <= int(address.rpartition(":")[2]) <= 65535:
        raise ValueError("ports end at 65535")
    return address


def _port_is_stated(address: str) -> str:
    if int(address.rpartition(":")[2]) == 0:
        raise ValueError("port 0 cannot be connected to")
    return address


_LABEL = r"[A-Za-z0-9\-]{1,63}"
BindAddress = Annotated[
    str, Field(pattern=rf"^{_LABEL}(\.{_LABEL})*:[0-9]{{1,5}}$", max_length=259), AfterValidator(_port_exists)
]
"""host:port to listen on; port 0 lets the system choose."""
Address = Annotated[BindAddress, AfterValidator(_port_is_stated)]
"""host:port to connect to."""
