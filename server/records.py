"""What is written down about each round: `rounds/0001.json`."""

import json
from itertools import pairwise
from pathlib import Path

from pydantic import Field

from fedpath.core.config.loading import Section
from fedpath.core.errors import DataError
from fedpath.core.exchange.messages import Metrics
from fedpath.core.files import write_json
from fedpath.server.kept import REMEDY

ROUNDS = "rounds"


class SiteRound(Section):
    """One site's part in one round."""

    outcome: str
    """answered, refused, lost or late."""
    reason: str = ""
    patients: dict[str, int] = Field(default_factory=dict)
    training_loss: float | None = None
    training_s: float | None = None
    validation: Metrics | None = None
    """Of the model the round started from."""
    sent_bytes: int = 0
    """From the coordinator to the site."""
    received_bytes: int = 0
    seconds: float = 0.0
    """From the order to the answer."""
    of_round: int | None = None
    """The round whose model it trained, where that is an earlier one: its update came late."""
    weight: float = 1.0
    """What its patients were multiplied by: below 1 for a late update."""
    norm: float | None = None
    """Euclidean norm of its change of the model."""
    sha256: str | None = None
    """Of its update, as it came."""


class RoundManifest(Section):
    """One round, as it is kept: no result names a site that did not contribute."""

    round: int
    base: str
    """Hash of the model the round started from."""
    result: str
    """Hash of the model it ended with."""
    sites: dict[str, SiteRound]
    patients: dict[str, int]
    """Patients counted for each parameter group."""
    validation_auc: float | None
    """Of the model the round started from: mean over the sites, weighted by patients."""
    validation_loss: float | None
    seconds: float
    aggregation_s: float
    state: str | None = None
    """Hash of what the coordinator's optimizer, and SCAFFOLD, carry on to the next round."""
    chosen: dict[str, list[str]] | None = None
    """The sites whose updates were chosen, by group; of an estimator that chooses."""
    deadline_s: float | None = None
    run: str | None = None
    """Whose round it is."""

    def counted(self) -> list[str]:
        """Return the sites whose updates were combined."""
        return [site for site, part in self.sites.items() if part.outcome == "answered"]

    def contributed(self) -> dict[str, list[str]]:
        """Return the sites whose updates are in the result, with the groups in which they are.

        An estimator may have chosen others, or left a group as it was.
        """
        groups = {
            site: [
                group
                for group in self.sites[site].patients
                if group in self.patients and (self.chosen is None or site in self.chosen.get(group, ()))
            ]
            for site in self.counted()
        }
        return {site: of_site for site, of_site in groups.items() if of_site}


def write_round(run_folder: Path, manifest: RoundManifest) -> None:
    """Keep one round's manifest."""
    write_json(manifest_path(run_folder, manifest.round), manifest.model_dump(mode="json"))


def manifest_path(run_folder: Path, round_: int) -> Path:
    """Return where the manifest of a round is kept."""
    return run_folder / ROUNDS / f"{round_:04d}.json"


def read_rounds(run_folder: Path) -> list[RoundManifest]:
    """Return the rounds of a run in order."""
    return [
        RoundManifest.model_validate(json.loads(path.read_text()))
        for path in sorted((run_folder / ROUNDS).glob("*.json"))
    ]


def damaged_newest(run_folder: Path) -> int | None:
    """Return the last round if its manifest cannot be read; None where it can."""
    newest = max((run_folder / ROUNDS).glob("*.json"), default=None)
    if newest is None or not newest.stem.isdigit() or _read(newest) is not None:
        return None
    return int(newest.stem)


def read_chain(run_folder: Path, run: str | None = None) -> list[RoundManifest]:
    """Return the rounds of a run that is to go on: each starts from the model that the one before ended with.

    Args:
        run_folder: of the run, or of a stage.
        run: its name; None to take the rounds of any.

    Raises:
        DataError: a manifest is missing, damaged or of another run.
    """
    manifests = []
    for path in sorted((run_folder / ROUNDS).glob("*.json")):
        if (manifest := _read(path)) is None:
            raise DataError(f"{path}: cannot be read", remedy=REMEDY)
        if run is not None and manifest.run not in (None, run):
            raise DataError(f"{path}: is a round of run {manifest.run}, in the folder of run {run}", remedy=REMEDY)
        manifests.append(manifest)
    for place, manifest in enumerate(manifests, 1):
        if manifest.round != place:
            raise DataError(f"{run_folder / ROUNDS}: round {place} is missing", remedy=REMEDY)
    for earlier, later in pairwise(manifests):
        if later.base != earlier.result:
            raise DataError(
                f"{run_folder / ROUNDS}: round {later.round} started from another model than round {earlier.round} "
                "ended with",
                remedy=REMEDY,
            )
    return manifests


def _read(path: Path) -> RoundManifest | None:
    try:
        return RoundManifest.model_validate_json(path.read_text())
    except (ValueError, OSError):
        return None
