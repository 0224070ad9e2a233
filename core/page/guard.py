"""Who may see a page and press its buttons: a filter that both roles' pages stand behind.

- Without a token a page answers only to names of the machine itself (``localhost``, ``127.0.0.1``, ``::1``; any port,
  so that an ssh tunnel may have its own). A web site whose name is made to lead here (DNS rebinding) has another name.
- With a token nothing is answered without it: in an ``Authorization: Bearer`` header, or by a cookie that the login
  form sets. The cookie holds a time and its HMAC under the token, never the token; scripts cannot read it, and it does
  not travel with requests that other sites cause.
- What changes something is a POST, and comes from the page itself: its ``Origin`` is the host that was asked. Only a
  request that carries the token in its header, which no browser adds by itself, needs none.
- Every answer forbids scripts, styles, fonts and frames from anywhere else, and scripts within the page.
"""

import asyncio
import hmac
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fedpath.core.asgi import HTML, App, Receive, Scope, Send, body_of, respond
from fedpath.core.errors import ConfigError
from fedpath.core.page.assets import ASSETS, shared

BODY_LIMIT = 1 << 20
SHORTEST_TOKEN = 16
_OWN_NAMES = {"localhost", "127.0.0.1", "::1"}
_SESSION_S = 12 * 3600
_PAUSE_S = 0.5
"""After a wrong token, for everybody who gives a wrong one."""
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
]
_STAYS = (b"cache-control", b"no-store")


def read_token(path: Path) -> str:
    """Read the token of a page.

    Raises:
        ConfigError: the file is not there, cannot be read or holds too little to be a secret.
    """
    remedy = f"write one: openssl rand -hex 32 > {path}"
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "holds more than plain letters"
        raise ConfigError(f"{path}: the page's token cannot be read: {said}", remedy=remedy) from None
    if len(token) < SHORTEST_TOKEN:
        raise ConfigError(f"{path}: a token of {len(token)} characters can be guessed", remedy=remedy)
    return token


class Guard:
    """The filter.

    Args:
        app: the page.
        role: "server" or "client": two pages on one machine keep cookies of their own.
        token: what a visitor has to know; None for a page that only this machine can reach.
    """

    def __init__(self, app: App, role: str, token: str | None = None) -> None:
        self._app, self._token = app, None if token is None else token.encode()
        self._cookie = f"fedpath_{role}"
        self._wrong = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer it here."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return None
        headers: dict[bytes, bytes] = dict(scope["headers"])
        guarded = _adding_headers(send)
        if (said := self._wrong_request(scope, headers)) is not None:
            status, why = said
            return await respond(guarded, status, why.encode() + b"\n")
        by_header, known = self._bearer(headers), self._knows_cookie(headers)
        if self._token is not None and not by_header:
            if scope["path"] == "/login":
                return await self._log_in(scope, headers, receive, guarded)
            if not known and not (scope["path"].startswith(ASSETS) and scope["method"] in ("GET", "HEAD")):
                return await self._send_away(headers, guarded)
        if scope["method"] == "POST":
            if not by_header and not _is_own(headers):
                return await respond(guarded, 403, b"this request does not come from the page itself\n")
            if scope["path"] == "/logout":
                return await respond(guarded, 303, headers=[(b"location", b"/login"), self._set("", 0, headers)])
        return await self._app(scope, receive, guarded)

    def _wrong_request(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Return why a request is not looked at, whoever sends it."""
        host = headers.get(b"host", b"").decode("latin-1")
        if self._token is None and _name_of(host) not in _OWN_NAMES:
            return 421, "this page answers to localhost only; with a token (--page-token-file) also to other names"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "not here"
        if scope["method"] == "POST":
            length = headers.get(b"content-length", b"")
            if b"transfer-encoding" in headers or not length.isdigit():
                return 411, "the length of the body is missing"
            if int(length) > BODY_LIMIT:
                return 413, f"more than {BODY_LIMIT} bytes"
        return None

    def _bearer(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        return self._token is not None and kind.lower() == b"bearer" and self._is_token(given.strip())

    def _is_token(self, given: bytes) -> bool:
        return self._token is not None and hmac.compare_digest(given, self._token)

    def _signed(self, until: int) -> str:
        assert self._token is not None
        return f"{until}.{hmac.digest(self._token, f'{self._cookie} {until}'.encode(), 'sha256').hex()}"

    def _knows_cookie(self, headers: dict[bytes, bytes]) -> bool:
        if self._token is None:
            return False
        for pair in headers.get(b"cookie", b"").decode("latin-1").split(";"):
            name, _, value = pair.strip().partition("=")
            until = value.partition(".")[0]
            if name == self._cookie and until.isascii() and until.isdigit() and len(until) < 12:
                fits = hmac.compare_digest(value.encode(), self._signed(int(until)).encode())
                return fits and int(until) > time.time()
        return False

    def _set(self, value: str, lasts_s: int, headers: dict[bytes, bytes]) -> tuple[bytes, bytes]:
        # A proxy that speaks TLS says so; a lie makes the cookie stricter, no more.
        secure = "; Secure" if headers.get(b"x-forwarded-proto") == b"https" else ""
        cookie = f"{self._cookie}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={lasts_s}{secure}"
        return b"set-cookie", cookie.encode()

    async def _log_in(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        form = shared("login.html")
        if scope["method"] != "POST":
            return await respond(send, 200, form.replace(b"{{said}}", b""), HTML)
        if not _is_own(headers):
            return await respond(send, 403, b"this request does not come from the page itself\n")
        body = await body_of(receive, BODY_LIMIT)
        given = parse_qs((body or b"").decode("latin-1")).get("token", [""])[0].strip()
        if self._is_token(given.encode()):
            value = self._signed(int(time.time()) + _SESSION_S)
            return await respond(send, 303, headers=[(b"location", b"/"), self._set(value, _SESSION_S, headers)])
        async with self._wrong:
            await asyncio.sleep(_PAUSE_S)
        return await respond(send, 401, form.replace(b"{{said}}", b"That is not the token."), HTML)

    async def _send_away(self, headers: dict[bytes, bytes], send: Send) -> None:
        if b"text/html" in headers.get(b"accept", b""):
            return await respond(send, 303, headers=[(b"location", b"/login")])
        return await respond(send, 401, b"the token is missing\n", headers=[(b"www-authenticate", b"Bearer")])


def _is_own(headers: dict[bytes, bytes]) -> bool:
    """Return whether a browser says that a request was caused by a page of the same host."""
    origin = urlsplit(headers.get(b"origin", b"").decode("latin-1"))
    host = headers.get(b"host", b"").decode("latin-1")
    return bool(host) and origin.scheme in ("http", "https") and origin.netloc.lower() == host.lower()


def _name_of(host: str) -> str:
    """Return the name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets that do not close
        return ""


def _adding_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            there = {name for name, _ in message["headers"]}
            more = _HEADERS if b"cache-control" in there else [*_HEADERS, _STAYS]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending
