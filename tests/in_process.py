"""A coordinator and its sites in one process: see `_in_process`, whose sites can come, leave and be overheard here."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from _in_process import InProcess
from federation import write_cohort

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


def write_sites(folder: Path, names: Iterable[str], patients: int = 12) -> None:
    """Write the cohorts and site.toml of some sites."""
    for index, site in enumerate(names):
        write_cohort(folder / site, site, seed=index, patients=patients)
        (folder / site / "site.toml").write_text(
            f'[site]\nname = "{site}"\n[data]\nmanifest = "manifest.csv"\nfeatures = "features"\n'
        )
