"""Who may see a page, over real HTTP: names, origins, tokens, cookies, ports."""

import re
import socket
import threading
from pathlib import Path
from urllib.parse import urlencode

import pytest
from browse import Visitor, served

from fedpath.cli.page import PORT, page_served
from fedpath.core.asgi import Receive, Scope, Send, body_of, respond
from fedpath.core.errors import ConfigError
from fedpath.core.events import Event, EventLog
from fedpath.core.page.guard import BODY_LIMIT
from fedpath.core.page.log import LogTail

TOKEN = "correct-horse-battery-staple"


class Echo:
    """The smallest page: says what it was asked."""

    def __init__(self) -> None:
        self.log = LogTail(lambda event: event.kind)
        self.over = threading.Event()
        self.asked: list[str] = []

    def app(self):  # type: ignore[no-untyped-def]
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            self.asked.append(f"{scope['method']} {scope['path']}")
            await respond(send, 200, b"said: " + (await body_of(receive, 1 << 21) or b""))

        return answer


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


def post(visitor: Visitor, path: str, headers: dict[str, str], body: bytes = b"{}") -> int:
    return visitor.ask("POST", path, headers, body)[0]


def test_without_a_token_only_this_machines_names_are_answered() -> None:
    page = Echo()
    with served(page, Echo.app) as visitor:
        for host in ("127.0.0.1", f"127.0.0.1:{visitor.port}", "localhost:9000", "LOCALHOST", "[::1]:8470"):
            assert visitor.ask("GET", "/", {"Host": host})[0] == 200, host
        for host in ("evil.example", f"evil.example:{visitor.port}", "127.0.0.1.evil.example", "0.0.0.0", "", "[::1"):
            status, _, said = visitor.ask("GET", "/", {"Host": host})
            assert status == 421, host
            assert b"--page-token-file" in said


def test_a_post_comes_from_the_page_itself() -> None:
    page = Echo()
    with served(page, Echo.app) as visitor:
        own = f"http://{visitor.host}"
        assert post(visitor, "/api", {"Origin": own}) == 200
        page.asked.clear()
        for origin in ("http://evil.example", "null", "", f"{own}.evil.example", f"http://localhost:{visitor.port}"):
            assert post(visitor, "/api", {"Origin": origin}) == 403, origin
        assert post(visitor, "/api", {}) == 403
        assert visitor.ask("PUT", "/api", {"Origin": own}, b"")[0] == 405
        assert visitor.ask("POST", "/api", {"Origin": own})[0] == 411
        assert post(visitor, "/api", {"Origin": own, "Content-Length": str(BODY_LIMIT + 1)}) == 413
        assert page.asked == []


def test_every_answer_forbids_what_is_not_the_pages_own() -> None:
    with served(Echo(), Echo.app) as visitor:
        for path, host in (("/", visitor.host), ("/", "evil.example")):
            _, headers, _ = visitor.ask("GET", path, {"Host": host})
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "*" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert "server" not in headers


def test_with_a_token_nothing_is_answered_without_it(token_file: Path) -> None:
    page = Echo()
    with served(page, Echo.app, token_file=token_file) as visitor:
        for headers in (
            {},
            {"Authorization": "Bearer wrong-horse-battery-staple"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": TOKEN},
            {"Cookie": f"fedpath_server={TOKEN}"},
            {"Cookie": "fedpath_server=99999999999.00"},
            {"Cookie": "fedpath_server="},
        ):
            assert visitor.ask("GET", "/", headers)[0] == 401, headers
            assert post(visitor, "/api", headers | {"Origin": f"http://{visitor.host}"}) == 401, headers
        status, headers, _ = visitor.ask("GET", "/", {"Accept": "text/html"})
        assert (status, headers["location"]) == (303, "/login")
        assert page.asked == []
        # In the header it opens everything, under any name: no browser sends that by itself.
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert visitor.ask("GET", "/", bearer | {"Host": "pages.hospital.example"})[0] == 200
        assert post(visitor, "/api", bearer) == 200


def test_the_login_form_sets_a_cookie_that_scripts_and_other_sites_cannot_use(token_file: Path) -> None:
    with served(Echo(), Echo.app, token_file=token_file) as visitor:
        own = {"Origin": f"http://{visitor.host}"}
        status, _, form = visitor.ask("GET", "/login")
        assert status == 200
        assert b'type="password"' in form
        assert visitor.ask("GET", "/assets/page.css")[0] == 200  # which the form needs
        right = urlencode({"token": TOKEN}).encode()
        assert post(visitor, "/login", {"Origin": "http://evil.example"}, right) == 403
        status, headers, said = visitor.ask("POST", "/login", own, urlencode({"token": "<script>"}).encode())
        assert (status, "set-cookie" in headers) == (401, False)
        assert b"That is not the token" in said
        assert b"<script>" not in said
        status, headers, _ = visitor.ask("POST", "/login", own, right)
        assert (status, headers["location"]) == (303, "/")
        cookie = headers["set-cookie"]
        assert TOKEN not in cookie
        for word in ("HttpOnly", "SameSite=Strict", "Path=/"):
            assert word in cookie
        session = {"Cookie": cookie.partition(";")[0]}
        assert visitor.ask("GET", "/", session)[0] == 200
        assert post(visitor, "/api", session) == 403  # from another site
        assert post(visitor, "/api", session | own) == 200
        # Of another time, it is not the token's any more.
        until = re.search(r"=(\d+)\.", cookie)
        assert until is not None
        later = {"Cookie": session["Cookie"].replace(until[1], str(int(until[1]) + 1))}
        assert visitor.ask("GET", "/", later)[0] == 401
        status, headers, _ = visitor.ask("POST", "/logout", session | own, b"")
        assert status == 303
        assert "Max-Age=0" in headers["set-cookie"]
        _, headers, _ = visitor.ask("POST", "/login", own | {"X-Forwarded-Proto": "https"}, right)
        assert "Secure" in headers["set-cookie"]


def test_others_than_this_machine_need_a_token(tmp_path: Path) -> None:
    def start(**options: object) -> None:
        with served(Echo(), Echo.app, **options):
            pass

    with pytest.raises(ConfigError, match=r"--page-host 0\.0\.0\.0.*without a token"):
        start(host="0.0.0.0")
    (short := tmp_path / "short").write_text("secret")
    with pytest.raises(ConfigError, match="can be guessed"):
        start(token_file=short)
    with pytest.raises(ConfigError, match="cannot be read"):
        start(token_file=tmp_path / "none")
    (letters := tmp_path / "letters").write_bytes("äöüäöüäöüäöüäöüäöü".encode("latin-1"))
    with pytest.raises(ConfigError, match="plain letters"):
        start(token_file=letters)


def test_a_port_that_is_taken_is_an_error_only_where_it_was_asked_for() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}"), served(Echo(), Echo.app, port=port):
            pass
    with served(Echo(), Echo.app, port=None) as first, served(Echo(), Echo.app, port=None) as second:
        assert first.port != second.port
        assert second.port != PORT
        assert first.ask("GET", "/")[0] == second.ask("GET", "/")[0] == 200


def test_without_a_page_nothing_listens() -> None:
    told: list[Event] = []
    before = threading.active_count()
    options = {"host": "0.0.0.0", "port": -1, "token_file": None}
    with page_served(Echo(), Echo.app, "client", EventLog(None, told.append), **options):  # type: ignore[arg-type]
        assert threading.active_count() == before
    assert told == []
