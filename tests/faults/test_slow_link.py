"""A model of 300 MB over a slow link that drops packets and is cut, for a moment and for longer: the update arrives.

The link lies between two network namespaces and is slowed by a token bucket whose queue is short, so that packets are
dropped all the time; this kernel family need not have netem.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import Federation, wait_until
from slow_link import SlowLink, why_no_links

from fedpath.core.events import EventReader
from fedpath.server.records import read_rounds

pytestmark = pytest.mark.faults

SIZE = 300_000_000
MODEL = '[model]\nname = "abmil"\noptions = { inner = 8192, attention = 4577 }'
"""75 million numbers."""
DEADLINE_S = 900.0


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """A hospital beside the coordinator, and one far away."""
    with Federation(tmp_path, ["A", "B"]) as running:
        running.configure(rounds=1, model=MODEL, training="accumulate_bags = 64")
        yield running


@pytest.mark.skipif(why_no_links() is not None, reason=str(why_no_links()))
def test_a_large_update_arrives_over_a_slow_link_that_drops(federation: Federation) -> None:
    with SlowLink("40mbit", "160mbit") as link:
        federation.readdress(link.here)
        server = ["server", "start", "--config", federation.toml, "--dir", federation.state]
        federation.start("server", server, before=link.on_this_side)
        federation.start("A", federation.join_arguments("A"), before=link.on_this_side)
        federation.start("B", federation.join_arguments("B"), before=link.on_the_far_side)
        moved = _Moved(federation)
        wait_until(lambda: moved.sent() > SIZE // 5, "a fifth of the update is over", DEADLINE_S)
        assert link.arrived() > SIZE // 5
        link.cut()
        link.mend()
        wait_until(lambda: moved.sent() > SIZE // 2, "half of it is over", DEADLINE_S)
        link.cut()
        # Long enough for the coordinator to take the hospital for gone. Back again, it is asked again, carries the
        # order out again, and the bytes that are there are not sent again.
        federation.wait_for_output("server", "site B: it is not connected")
        link.mend()
        assert [federation.wait(name, DEADLINE_S) for name in ("server", "A", "B")] == [0, 0, 0]
        assert link.dropped() > 0
        # Headers and what was sent twice by TCP are in this; twice the update would be 600 MB.
        assert link.arrived() < 1.5 * SIZE
    (manifest,) = read_rounds(federation.run_folder())
    assert manifest.counted() == ["A", "B"]
    assert manifest.sites["B"].received_bytes > 0.99 * SIZE


class _Moved:
    """How much of a file the far hospital has sent."""

    def __init__(self, federation: Federation) -> None:
        self._reader = EventReader(federation.site("B") / "state" / "events.jsonl")
        self._sent = 0

    def sent(self) -> int:
        for event in self._reader.new():
            if event.kind == "moving" and event.values["way"] == "sending":
                self._sent = event.values["done"]
        return self._sent
