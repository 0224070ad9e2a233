"""A certificate that is renewed while the coordinator serves: new connections are shown the new one, open ones stay.

cert-manager, or an operator with `fedpath provision`, replaces the files; nobody has to restart the coordinator for it.
Certificate and key are two files, and for a moment one may be new and the other old: such a pair is passed over.
"""

import ssl
import threading
from pathlib import Path

_LOOK_S = 2.0


def context_of(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a server's context with a certificate and its key.

    Raises:
        OSError, ssl.SSLError: they cannot be read, or do not fit.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


class Renewal:
    """Looks at the files now and then, in a thread of its own.

    Args:
        certificate: PEM chain of the server.
        key: PEM private key of the server.
        context: of the server. It is not changed, for between a new certificate and its key handshakes would fail: each
            connection is led to the newest context instead.
    """

    def __init__(self, certificate: Path, key: Path, context: ssl.SSLContext) -> None:
        self._certificate, self._key = certificate, key
        self._known, self._newest = self._content(), context
        context.sni_callback = self._lead  # called for every handshake, also where no name was sent
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="certificate-renewal", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    def _lead(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str, _context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            content = self._content()
            if content is None or content == self._known:
                continue
            try:
                self._newest = context_of(self._certificate, self._key)
            except (OSError, ssl.SSLError):
                continue  # being replaced: the next look finds them whole, until then the old one serves
            self._known = content

    def _content(self) -> tuple[bytes, bytes] | None:
        try:
            return self._certificate.read_bytes(), self._key.read_bytes()
        except OSError:
            return None
