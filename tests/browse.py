"""A page over real HTTP, asked by plain requests; and the browser that Debian brings."""

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from fedpath.cli.page import P, page_served
from fedpath.core.asgi import App
from fedpath.core.events import Event, EventLog

CHROMIUM = "/usr/bin/chromium"
_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


class Visitor:
    """Asks a page without being a browser."""

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request as it is written: the path is not made plain, no header is added but Host."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            sent = {"Host": self.host} | dict(headers or {})
            if body is not None:
                sent.setdefault("Content-Length", str(len(body)))
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """What a JSON address holds."""
        status, _, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, content: Any) -> tuple[int, Any]:
        """Send JSON as the page's own script does."""
        headers = {"Origin": f"http://{self.host}", "Content-Type": "application/json"}
        status, _, body = self.ask("POST", path, headers, json.dumps(content).encode())
        return status, json.loads(body)

    def sections(self, wanted: str) -> Any:
        """Read the live data until a section comes; its value."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", "/events")
            answer = connection.getresponse()
            assert answer.getheader("content-type", "").startswith("text/event-stream")
            kind = ""
            while line := answer.readline().decode().strip("\n"):
                kind = line.removeprefix("event: ") if line.startswith("event: ") else kind
                if line.startswith("data: ") and kind == wanted:
                    return json.loads(line.removeprefix("data: "))
                if line.startswith(("data: ", "retry: ")):
                    answer.readline()  # the empty line between two
            raise AssertionError(f"the stream ended without {wanted}")
        finally:
            connection.close()


@contextmanager
def served(page: P, build: Callable[[P], App], **options: Any) -> Iterator[Visitor]:
    """Serve a page on a free port of its own."""
    told: list[Event] = []
    values = {"host": "127.0.0.1", "port": 0, "token_file": None} | options
    with page_served(page, build, "server", EventLog(None, told.append), **values):
        (address,) = (event.values["address"] for event in told if event.kind == "page")
        yield Visitor(int(address.rstrip("/").rpartition(":")[2]))


@contextmanager
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    assert Path(CHROMIUM).exists(), "apt-get install chromium"
    with sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        try:
            yield started
        finally:
            started.close()
