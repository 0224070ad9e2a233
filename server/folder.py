"""What a run leaves in the coordinator's folder, and how a coordinator that was killed finds its way back into it.

```
STATE/flower.db, flower.log     Flower's state, and what it complains about
STATE/events.jsonl              what happened, as it happened
STATE/runs/<run>/run.json       the settings and the sites that were accepted or refused, with reasons
STATE/runs/<run>/rounds/0001.json   who was asked, answered, was refused, and what counted
STATE/runs/<run>/last.safetensors, best.safetensors
STATE/runs/<run>/closing.json   what the sites said of the last and of the best model
STATE/runs/<run>/summary.json   the result; written last: a run without it is not finished
```

Of a pipeline (`fedpath.server.pipeline`) each stage has such a folder.

A round ends with these writes, each whole or not at all, in this order:

1. `next.safetensors`: the model that the round ended with;
2. the round's manifest: from here on the round is done;
3. `last` is renamed to `best`, if it is the best so far: the round has validated it;
4. `next` is renamed to `last`.

So at any moment the files hold the model of the last manifest and the best one. Which file is which tell the hashes in
the manifests; after a kill the names may lag behind, and `standing` brings them up to date.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedpath.core.config import FederationConfig
from fedpath.core.config.loading import Section
from fedpath.core.errors import DataError
from fedpath.core.exchange.groups import to_arrays
from fedpath.core.exchange.messages import Description, Metrics
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.core.files import write_json
from fedpath.core.models.checkpoint import model_metadata, save_model
from fedpath.core.models.protocol import BagModel
from fedpath.server.kept import REMEDY, read_kept
from fedpath.server.records import RoundManifest, read_chain, write_round
from fedpath.server.standing import Standing, weighted

RUN_FILE, CLOSING_FILE, SUMMARY_FILE = "run.json", "closing.json", "summary.json"


class Members(Section):
    """Who takes part in a run, as run.json keeps it."""

    sites: dict[str, Description] = Field(default_factory=dict)
    """What each site that was accepted described."""
    refused: dict[str, str] = Field(default_factory=dict)
    founders: list[str] | None = None
    """The sites that were there when the run began: what is agreed on about clinical data is theirs."""


class Closing(Section):
    """What the sites said after the last round."""

    validation: dict[str, Metrics]
    """Of the last model."""
    test: dict[str, Metrics] | None = None
    """Of the best model; None while nobody was asked."""


def settings_of_run(config: FederationConfig) -> dict[str, Any]:
    """Return the settings that a run keeps, as JSON: all but the paths of the coordinator's machine."""
    return config.model_dump(mode="json", exclude={"server": {"credentials"}, "encoder": True})


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Writes and reads the records of one run, or of one stage of a pipeline."""

    path: Path
    config: FederationConfig

    def start(
        self,
        run: str,
        accepted: dict[str, Description],
        refused: dict[str, str],
        clinical: dict[str, Any] | None = None,
        founders: Collection[str] | None = None,
    ) -> None:
        """Keep the settings, who takes part and what was agreed on about clinical data; again when that changes."""
        write_json(
            self.path / RUN_FILE,
            {
                "run": run,
                "config": settings_of_run(self.config),
                "sites": {site: description.model_dump(mode="json") for site, description in accepted.items()},
                "refused": refused,
                "founders": None if founders is None else sorted(founders),
                "clinical": clinical,
            },
        )

    def members(self) -> Members:
        """Return who takes part in the run that is in this folder; nobody in a new one."""
        return read_kept(self.path / RUN_FILE, _members_in) or Members()

    def keep_round(self, manifest: RoundManifest, result: Arrays, *, better: bool) -> None:
        """Keep a round that is done, as the module says.

        Args:
            manifest: of the round.
            result: the model it ended with.
            better: the model it started from, the last one, is the best so far.
        """
        self.keep_model("next", result, round_=manifest.round)
        write_round(self.path, manifest)
        if better:
            self._rename("last", "best")
        self._rename("next", "last")

    def standing(self, model: BagModel) -> Standing:
        """Return where the run in this folder stands, after putting right what a kill left half done.

        Args:
            model: as it is before round 1.

        Raises:
            DataError: the folder does not hold the models that its manifests name.
        """
        standing = Standing.at_the_start(to_arrays(model))
        manifests, closing = read_chain(self.path), self.closing()
        for manifest in manifests:
            standing.advance(manifest, {})
        if not manifests:
            self._file("next").unlink(missing_ok=True)
            return standing
        done = standing.round
        if closing is not None:
            standing.judge(done, {}, weighted(closing.validation, "auc"), weighted(closing.validation, "loss"))
        files = {name: self._read(name, model) for name in ("next", "last", "best")}
        best = manifests[standing.best.round - 1] if 0 < standing.best.round < done else None
        if best is not None and not _is(files["best"], best.result):
            self._expect(files["last"], best)
            self._rename("last", "best")
            files["best"], files["last"] = files["last"], None
        if not _is(files["last"], manifests[-1].result):
            self._expect(files["next"], manifests[-1])
            self._rename("next", "last")
            files["last"] = files["next"]
        self._file("next").unlink(missing_ok=True)
        standing.model = files["last"] or {}
        if best is not None:
            standing.best.arrays = files["best"] or {}
        elif standing.best.round == done:
            standing.best.arrays = standing.model
            self.keep_model("best", standing.model, round_=done)
        else:
            standing.best.arrays = to_arrays(model)
        return standing

    def keep_model(self, name: str, arrays: Arrays, *, round_: int) -> Path:
        """Keep a global model as `<name>.safetensors`."""
        config = self.config
        metadata = model_metadata(
            config.federation.name, config.model, config.features, config.task.labels, config.clinical
        )
        # On disk a model has its own names; the group is a matter of the exchange.
        state = {_own_name(key): torch.from_numpy(array) for key, array in arrays.items()}
        save_model(self._file(name), state, metadata | {"round": str(round_)})
        return self._file(name)

    def keep_closing(self, closing: Closing) -> None:
        """Keep what the sites said after the last round, so that they are not asked again."""
        write_json(self.path / CLOSING_FILE, closing.model_dump(mode="json"))

    def closing(self) -> Closing | None:
        """Return what the sites said after the last round; None while they were not asked."""
        return read_kept(self.path / CLOSING_FILE, Closing.model_validate_json)

    def keep_summary(self, summary: dict[str, Any]) -> None:
        """Keep the result."""
        write_json(self.path / SUMMARY_FILE, summary)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    def _rename(self, name: str, to: str) -> None:
        self._file(name).replace(self._file(to))

    def _read(self, name: str, model: BagModel) -> Arrays | None:
        """Return the arrays of a kept model; None for one that is not there or is not this model's."""
        try:
            state = load_file(self._file(name))
        except (FileNotFoundError, SafetensorError):
            return None
        names = {_own_name(key): key for key in to_arrays(model)}
        if names.keys() != state.keys():
            return None
        return {key: state[own].numpy() for own, key in names.items()}

    def _expect(self, arrays: Arrays | None, manifest: RoundManifest) -> None:
        if not _is(arrays, manifest.result):
            raise DataError(f"{self.path}: the model of round {manifest.round} is not there any more", remedy=REMEDY)


def _members_in(text: str) -> Members:
    kept = json.loads(text)
    return Members.model_validate({key: kept[key] for key in Members.model_fields if key in kept})


def _is(arrays: Arrays | None, wanted: str) -> bool:
    return arrays is not None and hash_arrays(arrays) == wanted


def _own_name(key: str) -> str:
    return key.partition("/")[2]
