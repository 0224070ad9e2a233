"""The pages in a real Chromium: they follow a running federation, a run is submitted, an agent is stopped."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browse import browser, served
from federation import Federation, free_port
from page_checks import assert_keyboard_reaches_all, assert_narrow, assert_readable
from playwright.sync_api import Browser, expect
from playwright.sync_api import Page as Tab

from fedpath.client.audit import AUDIT_FILE, AuditLog
from fedpath.client.page import Page as ClientPage
from fedpath.client.page.app import build as build_client
from fedpath.core.config import load_federation, load_site
from fedpath.core.events import EventLog
from fedpath.server.page import Page as ServerPage
from fedpath.server.page.app import build as build_server

pytestmark = pytest.mark.system

TOKEN = "a-token-that-nobody-guesses"
HOSTILE = '</script><img src="/x" onerror="document.title=1"><b>bold</b> {{7*7}}'
PATIENCE_MS = 60_000
expect.set_options(PATIENCE_MS)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@contextmanager
def tab(chromium: Browser, port: int) -> Iterator[Tab]:
    """A tab that looks at a page; it fails where the page asks for what is not its own, or its script complains."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: (
            complaints.append(said.text)
            if said.type == "error" and "ERR_" not in said.text and "401" not in said.text and "400" not in said.text
            else None
        ),
    )
    page.on(
        "request",
        lambda asked: (
            None if asked.url.startswith(f"http://127.0.0.1:{port}/") else complaints.append(f"asked for {asked.url}")
        ),
    )
    page.goto(f"http://127.0.0.1:{port}/")
    yield page
    assert complaints == []
    context.close()


def test_the_page_follows_a_federation_and_takes_a_run(federation: Federation, chromium: Browser) -> None:
    port, of_a, token = free_port(), free_port(), federation.folder / "token"
    token.write_text(TOKEN)
    federation.configure(rounds=3, min_sites=2, server="grace_s = 1")

    def serve(name: str) -> None:
        page = ["--page-port", str(port), "--page-token-file", token]
        federation.start(name, ["server", "serve", "--config", federation.toml, "--dir", federation.state, *page])
        federation.wait_for_output(name, f"page: http://127.0.0.1:{port}/")

    serve("server")
    for site in federation.sites:
        more = ["--page-port", str(of_a)] if site == "A" else []
        federation.start(site, [*federation.join_arguments(site), "--stay", *more])
    with tab(chromium, port) as page:
        page.get_by_label("Token of this page").fill(TOKEN)
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("#link")).to_have_text("Live")
        expect(page.locator("#headline")).to_have_text("No run yet. Submit the first one below.")
        expect(page.locator("#sites .card .pill").filter(has_text="connected")).to_have_count(3)

        # What is wrong in the form is said beside it; what is right is in the queue.
        toml = page.get_by_label("federation.toml of the run")
        expect(toml).to_have_value(federation.toml.read_text())
        text = toml.input_value()
        toml.fill(text.replace("rounds = 3", "rounnds = 3"))
        page.get_by_role("button", name="Check").click()
        expect(page.locator("#form-said")).to_contain_text("did you mean 'rounds'?")
        toml.fill(text.replace("rounds = 3", "rounds = 200"))
        page.get_by_label("Name").fill(HOSTILE)
        page.locator("#form").get_by_role("button", name="Submit").click()
        expect(page.locator("#form-said")).to_contain_text("Submitted as run")
        row = page.locator("#runs-list tbody tr")
        expect(row).to_have_count(1)
        expect(row.get_by_role("link")).to_have_text(HOSTILE)
        expect(row.locator(".pill")).to_have_text("running")

        # Round after round comes in; the open one is drawn.
        expect(page.locator("#headline")).to_contain_text("of 3 hospitals have answered")
        expect(page.get_by_role("img", name="Round")).to_be_visible()
        counted = page.get_by_role("region", name="Rounds, the latest first").locator("tbody tr")
        expect(counted.last).to_contain_text("A 8 patients")
        expect(counted.nth(2)).to_be_visible()
        expect(page.get_by_role("img", name="Training loss")).to_be_visible()
        expect(page.locator("#log-lines")).to_contain_text("round 2: counted A, B, C")
        with page.expect_download() as begun:
            page.get_by_role("link", name="best model").click()
        assert Path(begun.value.path()).stat().st_size > 1000

        # Another coordinator in its place: the page is there again, and knows it all.
        federation.signal("server", signal.SIGKILL)
        federation.wait("server")
        expect(page.locator("#link")).to_have_text("Not connected, trying again")
        serve("again")
        expect(page.locator("#link")).to_have_text("Live")
        federation.wait_for_output("again", "counted A, B, C")
        expect(row.locator(".pill")).to_have_text("running")
        expect(page.locator("#sites")).to_contain_text("8 training")
        assert page.locator("#log-lines").inner_text().count("round 2: counted A, B, C") == 1

        # A hospital leaves by its own page.
        with tab(chromium, of_a) as hospital:
            expect(hospital.locator("#left-sums")).to_contain_text("The log's chain is whole.")
            expect(hospital.locator("#left-lines")).to_contain_text("update: ")
            hospital.get_by_role("button", name="Stop this agent").click()
            hospital.get_by_role("dialog").get_by_role("button", name="Cancel").click()
            assert federation.ended("A") is None
            hospital.get_by_role("button", name="Stop this agent").click()
            hospital.get_by_role("dialog").get_by_role("button", name="Stop it").click()
            assert federation.wait("A") == 130
            expect(hospital.locator("#headline")).to_have_text("The agent has ended.")
        assert "asked to stop on the page" in federation.output("A")
        expect(page.locator("#sites .card").first).to_contain_text("has gone")

        page.get_by_role("button", name="Stop this run").click()
        page.get_by_role("dialog").get_by_role("button", name="Stop it").click()
        expect(row.locator(".pill")).to_have_text("stopped")
        expect(page.get_by_role("button", name="Resume this run")).to_be_visible()
    for name in ("server", "again", *federation.sites):
        assert "Traceback" not in federation.output(name)


def words(event) -> str | None:  # type: ignore[no-untyped-def]
    return event.values.get("reason")


def test_everybody_can_use_the_coordinators_page(federation: Federation, chromium: Browser) -> None:
    """And nothing that a hospital says is more than text."""
    page = ServerPage(load_federation(federation.toml), federation.toml, federation.state, "start", words)
    events = EventLog(None, page)
    federation.state.mkdir()
    with served(page, build_server) as visitor, tab(chromium, visitor.port) as shown:
        events.emit("listening", address="a:1", run="r", sites=["A", "B", "C"], goes_on=False)
        expect(shown.get_by_label("federation.toml of the run")).not_to_have_value("")
        for recipe in ("acmil", "bd"):
            choice = shown.get_by_label("Begin with")
            choice.select_option(recipe)
            assert f'address = "{federation.host}:{federation.port}"' in shown.locator("#toml").input_value()
        expect(shown.locator("#submit-note")).to_contain_text("waits until fedpath server serve is started")
        shown.locator("#form").get_by_role("button", name="Submit").click()
        expect(shown.locator("#form-said")).to_contain_text("waits for")
        (run,) = (path.name for path in (federation.state / "runs").iterdir())
        events.emit("round_started", run=run, round=1, rounds=2, sites=["A", "B", "C"], deadline_s=30.0)
        part = {"round": 1, "of_round": None, "sent_bytes": 1, "received_bytes": 1, "validation_auc": None}
        events.emit("site_refused", run=run, site="B", reason=HOSTILE, training_loss=float("nan"), **part)
        events.emit("site_answered", run=run, site="A", reason="", training_loss=0.5, **part)
        expect(shown.locator("#sites")).to_contain_text(HOSTILE)
        expect(shown.locator("#log-lines")).to_contain_text(HOSTILE)
        expect(shown.locator("#open-round")).to_contain_text(HOSTILE)
        assert shown.locator("main img, main b").count() == 0
        assert shown.title() == "test · fedpath coordinator"
        assert_readable(shown)
        assert_narrow(shown)
        events.emit("round_finished", run=run, round=1, seconds=1.0)  # what is open is drawn anew each second
        expect(shown.locator("#open-round")).to_contain_text("No round is over yet")
        assert_keyboard_reaches_all(shown)


def test_everybody_can_use_the_hospitals_page(federation: Federation, chromium: Browser) -> None:
    config = load_site(federation.site("A") / "site.toml")
    audit = AuditLog(config.state / AUDIT_FILE)
    audit.record(b"x" * 99, to="a:1", run="r", kind="refusal", round_=1, holds=HOSTILE)
    stop = threading.Event()
    page = ClientPage(config, stop, stop.set, words)
    events = EventLog(None, page)
    with served(page, build_client) as visitor, tab(chromium, visitor.port) as shown:
        events.emit("joined", federation="test", address="a:1")
        for round_ in range(1, 4):
            events.emit("validated", round=round_ - 1, auc=0.6, loss=0.5)
            events.emit("trained", round=round_, loss=0.5 / round_, seconds=1.0)
        events.emit("step", round=4, done=3, total=10, loss=0.2)
        events.emit("order_failed", error=HOSTILE, remedy="", reason=HOSTILE)
        events.emit("step", round=4, done=3, total=10, loss=0.2)
        expect(shown.locator("#left-lines")).to_contain_text(HOSTILE)
        expect(shown.locator("#log-lines")).to_contain_text(HOSTILE)
        expect(shown.get_by_role("progressbar")).to_be_visible()
        assert shown.locator("main img, main b").count() == 0
        assert_readable(shown)
        assert_narrow(shown)
        assert_keyboard_reaches_all(shown)
    assert not stop.is_set()
