"""What a run leaves in the coordinator's folder.

```
STATE/flower.db, flower.log     Flower's state, and what it complains about
STATE/events.jsonl              what happened, as it happened
STATE/runs/<run>/run.json       the settings and the sites that were accepted or refused, with reasons
STATE/runs/<run>/rounds/0001.json   who was asked, answered, was refused, and what counted
STATE/runs/<run>/last.safetensors, best.safetensors
STATE/runs/<run>/summary.json   the result
```
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from fedpath.core.config import FederationConfig
from fedpath.core.config.loading import Section
from fedpath.core.exchange.messages import Description, Metrics
from fedpath.core.exchange.wire import Arrays
from fedpath.core.files import write_json
from fedpath.core.models.checkpoint import model_metadata, save_model


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


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Writes the records of one run."""

    path: Path
    config: FederationConfig

    def start(
        self,
        run: str,
        accepted: dict[str, Description],
        refused: dict[str, str],
        clinical: dict[str, Any] | None = None,
    ) -> None:
        """Keep the settings, who takes part and what was agreed on about clinical data; again when that changes."""
        write_json(
            self.path / "run.json",
            {
                "run": run,
                "config": self.config.model_dump(mode="json", exclude={"server": {"credentials"}}),
                "sites": {site: description.model_dump(mode="json") for site, description in accepted.items()},
                "refused": refused,
                "clinical": clinical,
            },
        )

    def keep_round(self, manifest: RoundManifest) -> None:
        """Keep one round's manifest."""
        write_json(self.path / "rounds" / f"{manifest.round:04d}.json", manifest.model_dump(mode="json"))

    def keep_model(self, name: str, arrays: Arrays, *, round_: int) -> Path:
        """Keep a global model as `<name>.safetensors`."""
        config = self.config
        metadata = model_metadata(
            config.federation.name, config.model, config.features, config.task.labels, config.clinical
        )
        # On disk a model has its own names; the group is a matter of the exchange.
        state = {key.partition("/")[2]: torch.from_numpy(array) for key, array in arrays.items()}
        path = self.path / f"{name}.safetensors"
        save_model(path, state, metadata | {"round": str(round_)})
        return path

    def keep_summary(self, summary: dict[str, Any]) -> None:
        """Keep the result."""
        write_json(self.path / "summary.json", summary)


def read_rounds(run_folder: Path) -> list[RoundManifest]:
    """Return the rounds of a run in order."""
    return [
        RoundManifest.model_validate(json.loads(path.read_text()))
        for path in sorted((run_folder / "rounds").glob("*.json"))
    ]
