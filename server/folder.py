"""What a run leaves in the coordinator's folder, and how a coordinator that was killed finds its way back into it.

```
STATE/flower.db, flower.log     Flower's state, and what it complains about
STATE/events.jsonl              what happened, as it happened
STATE/runs/<run>/run.json       the settings and the sites that were accepted or refused, with reasons
STATE/runs/<run>/rounds/0001.json   who was asked, answered, was refused, and what counted
STATE/runs/<run>/rounds/0001.journal.jsonl   the same as it happened (`fedpath.server.journal`)
STATE/runs/<run>/updates/0001/  the updates of the open round, until they have counted (`fedpath.server.spool`)
STATE/runs/<run>/models/, last.safetensors, best.safetensors   `fedpath.server.checkpoints`
STATE/runs/<run>/closing.json   what the sites said of the last and of the best model
STATE/runs/<run>/summary.json   the result; written last: a run without it is not finished
```

Of a pipeline (`fedpath.server.pipeline`) each stage has such a folder.

A round ends with these writes, each whole or not at all, in this order:

1. `models/<round>`: the model that the round ended with;
2. the round's manifest: from here on the round is done;
3. the model that the round started from is called `best`, if it is the best so far: the round has validated it;
4. the new model is called `last`; the round's updates are removed.

So at any moment the files hold the model of the last manifest and the best one. After a kill the names may lag behind;
`standing` brings them up to date. Where the newest model is damaged, its round is done again from the one before.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from fedpath.core.config import FederationConfig
from fedpath.core.config.loading import Section
from fedpath.core.errors import DataError
from fedpath.core.exchange.messages import Description, Metrics
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.core.files import write_json
from fedpath.server.checkpoints import Checkpoints
from fedpath.server.journal import Journal
from fedpath.server.kept import REMEDY, read_kept
from fedpath.server.records import ROUNDS, RoundManifest, damaged_newest, manifest_path, read_chain, write_round
from fedpath.server.spool import Spool
from fedpath.server.standing import Best, Standing, weighted

FORMAT = 1
"""Of what a run leaves on disk, in run.json: a version of fedpath that writes otherwise counts on."""
RUN_FILE, CLOSING_FILE, SUMMARY_FILE = "run.json", "closing.json", "summary.json"
LOST = ".lost"
"""Ending of a record that no longer holds: the model it speaks of is damaged."""
Tell = Callable[[int, int, str], None]
"""Is told which round's file is damaged, from which round the run goes on, and whether it is "model" or "record"."""


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
    """Return the settings that a run keeps, as JSON: all but what is the coordinator's own: paths, its database."""
    return config.model_dump(mode="json", exclude={"server": {"credentials", "registry", "parallel"}, "encoder": True})


def begun(run: str, config: FederationConfig) -> dict[str, Any]:
    """Return what run.json says of a run that has just begun."""
    return {"format": FORMAT, "run": run, "config": settings_of_run(config)}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Writes and reads the records of one run, or of one stage of a pipeline."""

    path: Path
    config: FederationConfig
    rest: Arrays = field(default_factory=dict)
    """Parameters that every site keeps for itself, as they are before round 1."""

    @property
    def models(self) -> Checkpoints:
        """The models of the last rounds: two, or as many as a late update may be old."""
        late = self.config.late.most_rounds if self.carries else 0
        return Checkpoints(self.path, self.config, kept=2 + late)

    @property
    def carries(self) -> bool:
        """Whether updates that come after their round may count."""
        return self.config.late.rule == "carry" or self.config.asynchronous is not None

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
                **begun(run, self.config),
                "sites": {site: description.model_dump(mode="json") for site, description in accepted.items()},
                "refused": refused,
                "founders": None if founders is None else sorted(founders),
                "clinical": clinical,
            },
        )

    def members(self) -> Members:
        """Return who takes part in the run that is in this folder; nobody in a new one."""
        return read_kept(self.path / RUN_FILE, _members_in) or Members()

    def journal(self, round_: int) -> Journal:
        """Return the journal of a round; one that is damaged is set aside, and the round asked again."""
        path = self._journal_path(round_)
        try:
            return Journal(path)
        except DataError:
            path.replace(path.with_suffix(path.suffix + LOST))
            journal = Journal(path)
            journal.replaces_damaged = True
            return journal

    def _journal_path(self, round_: int) -> Path:
        return self.path / ROUNDS / f"{round_:04d}.journal.jsonl"

    def spool(self, round_: int) -> Spool:
        """Return where the updates of a round are kept until they have counted."""
        return Spool(self.path / "updates" / f"{round_:04d}")

    def keep_round(self, manifest: RoundManifest, standing: Standing, result: Arrays, state: Arrays) -> bool:
        """Keep a round that is done, as the module says, and move ``standing`` on.

        Returns:
            Whether the model that the round started from is the best so far.
        """
        models, journal, round_ = self.models, self.journal(manifest.round), manifest.round
        contributions = standing.contributions(round_)
        for site in manifest.contributed():
            contributions.setdefault(site, []).append(round_)
        models.keep(round_, result, state, self.rest, contributions)
        journal.note("aggregated", result=manifest.result)
        write_round(self.path, manifest)
        better = standing.advance(manifest)
        standing.model, standing.state = result, state
        journal.note("evaluated", auc=manifest.validation_auc, loss=manifest.validation_loss)
        if better:
            models.call("best", round_ - 1)
        models.call("last", round_)
        journal.note("published")
        self.spool(round_).clear()
        models.forget_before(round_)
        return better

    def standing(
        self, initial: Arrays, tell: Tell = lambda damaged, back_to, what: None, *, run: str | None = None
    ) -> Standing:
        """Return where the run in this folder stands, after putting right what a kill or a bad disk left.

        Args:
            initial: the model before round 1.
            tell: what is damaged, if something is.
            run: the run's name; None where any will do.

        Raises:
            DataError: the folder does not hold any of the models that its manifests name, or another run's.
        """
        for leftover in self.path.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if (damaged := damaged_newest(self.path)) is not None:
            tell(damaged, damaged - 1, "record")
            self._set_aside(damaged)
        standing, manifests, models = Standing(initial), read_chain(self.path, run), self.models
        for manifest in manifests:
            standing.advance(manifest)
        if not manifests:
            if models.read(0, initial, hash_arrays(initial)) is None:
                models.keep(0, initial, {}, self.rest)
            return standing
        good = self._newest_good(manifests, standing, initial)
        if good < len(manifests):
            tell(len(manifests), good, "model")
            for round_ in range(len(manifests), good, -1):
                self._set_aside(round_)
            return self.standing(initial, tell, run=run)
        if (closing := self.closing()) is not None:
            standing.judge(good, weighted(closing.validation, "auc"), weighted(closing.validation, "loss"))
        self._mend_names(standing, tell)
        self.spool(good).clear()
        models.forget_before(good)
        return standing

    def best_model(self, standing: Standing) -> Arrays:
        """Return the best model so far.

        Raises:
            DataError: it is damaged.
        """
        if standing.best.round in (0, standing.round):
            return standing.model
        wanted = standing.manifests[standing.best.round - 1].result
        best = self.models.read_named("best", standing.model, wanted)
        if best is None:
            raise DataError(f"{self.path}: the best model is damaged", remedy=REMEDY)
        return best

    def keep_closing(self, closing: Closing) -> None:
        """Keep what the sites said after the last round, so that they are not asked again."""
        write_json(self.path / CLOSING_FILE, closing.model_dump(mode="json"))

    def closing(self) -> Closing | None:
        """Return what the sites said after the last round; None while they were not asked."""
        return read_kept(self.path / CLOSING_FILE, Closing.model_validate_json)

    def keep_summary(self, summary: dict[str, Any]) -> None:
        """Keep the result."""
        write_json(self.path / SUMMARY_FILE, summary)

    def _newest_good(self, manifests: list[RoundManifest], standing: Standing, initial: Arrays) -> int:
        """Fill ``standing`` with the newest model that is as it was; return its round."""
        models = self.models
        for manifest in reversed(manifests):
            model = models.read(manifest.round, initial, manifest.result)
            state = models.read_state(manifest.round, manifest.state)
            if model is not None and state is not None:
                standing.model, standing.state = model, state
                return manifest.round
        if manifests[0].base == hash_arrays(initial):
            return 0
        raise DataError(f"{self.path}: none of the models of its rounds is there any more", remedy=REMEDY)

    def _set_aside(self, round_: int) -> None:
        """Rename the records of the last round, which is to be done again."""
        path = manifest_path(self.path, round_)
        path.replace(path.with_suffix(path.suffix + LOST))
        self._journal_path(round_).unlink(missing_ok=True)
        if (closing := self.path / CLOSING_FILE).exists():
            closing.replace(closing.with_suffix(closing.suffix + LOST))

    def _mend_names(self, standing: Standing, tell: Tell) -> None:
        """Give the names `best` and `last` to the models they belong to."""
        best, models = standing.best.round, self.models
        if 0 < best < standing.round:
            wanted = standing.manifests[best - 1].result
            if models.read_named("best", standing.model, wanted) is None:
                if models.read(best, standing.model, wanted) is None:
                    # What was best is lost: the best of what is still there goes on in its place.
                    tell(best, standing.round, "model")
                    standing.best = Best(standing.round)
                    best = standing.round
                models.call("best", best)
        elif best == standing.round:
            models.call("best", best)
        models.call("last", standing.round)


def _members_in(text: str) -> Members:
    kept = json.loads(text)
    return Members.model_validate({key: kept[key] for key in Members.model_fields if key in kept})
