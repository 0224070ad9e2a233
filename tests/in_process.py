"""A coordinator and its sites in one process: see `_in_process`, whose sites can come, leave and be overheard here."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from _in_process import InProcess
from federation import WIDTH, write_cohort

from fedpath.core.config import load_site
from fedpath.core.exchange.messages import Answer, Order, Refuse
from fedpath.core.exchange.wire import Arrays


class Killed(BaseException):
    """Ends the coordinator where it stands, as a signal would: nothing handles it."""


class Sites(InProcess):
    """The sites, as a coordinator hears them.

    Args:
        folder: every site has a folder below it, with site.toml.
        names: of the sites that are there.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        super().__init__(names, lambda site: load_site(folder / site / "site.toml"), "test")
        self.heard: list[tuple[str, str]] = []
        """Site and kind of every order, in order."""
        self.told: dict[str, str] = {}
        """What sites that were refused were told."""

    def come(self, site: str) -> None:
        """Let a site join; it is a fresh process, which knows nothing of earlier orders."""
        self._workers.pop(site, None)
        self._here.add(site)

    def return_all(self, sites: Iterable[str]) -> None:
        """Let sites that have left be there again: the same processes, which have their data in memory."""
        self._here |= set(sites)

    def leave(self, site: str) -> None:
        """Let a site go away."""
        self._here.discard(site)

    def answer(self, site: str, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
        """What a site's agent does with an order."""
        self.heard.append((site, order.kind))
        if isinstance(order, Refuse):
            self.told[site] = order.reason
        return super().answer(site, order, arrays)


def settings(names: Sequence[str], **sections: Any) -> dict[str, Any]:
    """federation.toml of such sites, as values: three rounds of a small ACMIL; sections replace those here."""
    return {
        "federation": {"name": "test", "sites": list(names)},
        "server": {"address": "localhost:1", "grace_s": 0.0, "min_sites": 2, "join_timeout_s": 1.0},
        "task": {"labels": ["normal", "tumour"]},
        "features": {"encoder": "noise", "width": WIDTH, "mpp": 0.5, "patch_px": 128},
        "model": {"name": "acmil", "options": {"inner": 4, "attention": 4}},
        "training": {"rounds": 3, "learning_rate": 0.01},
    } | sections


def federation_toml(rounds: int) -> str:
    """federation.toml of sites A and B, as a file: some rounds of that model."""
    return f"""
[federation]
name = "test"
sites = ["A", "B"]
[server]
address = "localhost:1"
[task]
labels = ["normal", "tumour"]
[features]
encoder = "noise"
width = {WIDTH}
mpp = 0.5
patch_px = 128
[model]
name = "acmil"
options = {{ inner = 4, attention = 4 }}
[training]
rounds = {rounds}
learning_rate = 0.01
"""


def write_sites(folder: Path, names: Iterable[str], patients: int = 12) -> None:
    """Write the cohorts and site.toml of some sites."""
    for index, site in enumerate(names):
        write_cohort(folder / site, site, seed=index, patients=patients)
        (folder / site / "site.toml").write_text(
            f'[site]\nname = "{site}"\n[data]\nmanifest = "manifest.csv"\nfeatures = "features"\n'
        )
