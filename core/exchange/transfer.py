"""How a file of arrays crosses the network: requests of a site on the coordinator's one port, signed with its node key.

```
GET   /v1/tensors/<sha256>   the rest, from the offset on, of a file that an order to this site speaks of
HEAD  /v1/tensors/<sha256>   how much of an answer's file the coordinator has: header `OFFSET`
PATCH /v1/tensors/<sha256>   the rest of it, from the offset on
```

A file is named by the SHA-256 of its bytes, so both sides know when they have it, whoever was started again in between.
A signature is of all that a request says: the site, the method, the file, its size, the offset, and the time. Another
request cannot be made of it, and sending the same one again brings nothing that is not there.
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedpath.core.exchange.wire import Apart

FOLDER = "/v1/tensors/"
METHODS = frozenset({"GET", "HEAD", "PATCH"})
BLOCK = 1 << 20
"""Bytes that are handed on at a time."""

SITE, SIZE, OFFSET, TIME, SIGNATURE = (f"x-fedpath-{word}" for word in ("site", "size", "offset", "time", "signature"))
# As Flower has them for its own requests, so that a clock that is good enough for those is good enough here.
_AHEAD_S, _BEHIND_S = 5.0, 305.0
_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)


class UnsignedError(Exception):
    """A request is not from the site that it says, or is too old."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request about a file."""

    method: str
    site: str
    apart: Apart
    offset: int

    @property
    def path(self) -> str:
        """Return where it goes."""
        return FOLDER + self.apart.sha256

    def sign(self, key: ec.EllipticCurvePrivateKey, now: float) -> dict[str, str]:
        """Return the headers that say all this and prove it.

        Args:
            key: the site's node key.
            now: seconds since the epoch.
        """
        signature = key.sign(self._text(f"{now:.3f}"), ec.ECDSA(hashes.SHA256()))
        return {
            SITE: self.site,
            SIZE: str(self.apart.size),
            OFFSET: str(self.offset),
            TIME: f"{now:.3f}",
            SIGNATURE: b64encode(signature).decode(),
        }

    @classmethod
    def verified(
        cls,
        method: str,
        path: str,
        headers: Mapping[str, str],
        keys: Mapping[str, ec.EllipticCurvePublicKey],
        now: float,
    ) -> "Request":
        """Return what a request says.

        Args:
            method: of the request.
            path: one of `FOLDER`.
            headers: by name in lower case.
            keys: of the sites that may connect.
            now: seconds since the epoch.

        Raises:
            UnsignedError: it is not signed by a site that may connect, or not in time.
        """
        try:
            site, size, offset, time = (headers[name] for name in (SITE, SIZE, OFFSET, TIME))
            signature = b64decode(headers[SIGNATURE], validate=True)
            if not (_NUMBER.fullmatch(size) and _NUMBER.fullmatch(offset)):
                raise UnsignedError
            request = cls(method, site, Apart(path.removeprefix(FOLDER), int(size)), int(offset))
            keys[site].verify(signature, request._text(time), ec.ECDSA(hashes.SHA256()))
            if not -_AHEAD_S < now - float(time) < _BEHIND_S:
                raise UnsignedError
        except (KeyError, ValueError, InvalidSignature):
            raise UnsignedError from None
        return request

    def _text(self, time: str) -> bytes:
        """Return what is signed: nothing else that a node key signs begins like it."""
        said = (self.method, self.site, self.apart.sha256, self.apart.size, self.offset, time)
        return "\n".join(("fedpath tensors 1", *map(str, said))).encode()
