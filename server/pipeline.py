"""The stages of `[[stage]]` in order: each a run of rounds, or the hospitals encoding their slides again.

```
STATE/runs/<run>/run.json         the settings
STATE/runs/<run>/pipeline.json    which stages are done, which sites have what they left, the tuned encoder's hash
STATE/runs/<run>/stages/<number>-<name>/   the records of each stage (`fedpath.server.folder`)
STATE/runs/<run>/stages/<number>-<name>/encoder.safetensors   fine-tune: the tuned encoder
STATE/runs/<run>/stages/<number>-<name>/encoded.json          encode: which sites have new features
STATE/runs/<run>/summary.json     that of the last stage of kind train, and those of all stages
```

A later stage stands on what earlier ones left *at the hospitals*: fine-tune on the selector, encode on the tuned
encoder, what follows on the new features. A hospital that was not there when such a stage ended has nothing to go on
with, and is told so; nothing is made up for latecomers afterwards, for encoding takes hours and the others would wait.
Stages that need nothing of earlier ones, such as the first, take latecomers in as any run does.
"""

import json
import threading
from pathlib import Path
from typing import Any

from pydantic import Field

from fedpath.core.config import FederationConfig
from fedpath.core.config.loading import Section
from fedpath.core.config.stages import EncodeStage, TuneStage
from fedpath.core.encoders.registry import save_encoder
from fedpath.core.events import EventLog
from fedpath.core.exchange.groups import load_arrays
from fedpath.core.exchange.messages import StageFacts
from fedpath.core.exchange.wire import Arrays
from fedpath.core.files import write_json
from fedpath.core.tuning.build import tuned_encoder
from fedpath.core.tuning.model import SparseTuner
from fedpath.server.aggregation import Engine
from fedpath.server.aggregation.engine import engine_of
from fedpath.server.encoding import Encoding
from fedpath.server.folder import SUMMARY_FILE, RunFolder
from fedpath.server.gather import Needs
from fedpath.server.kept import read_kept
from fedpath.server.rounds import FederatedRun, facts_of
from fedpath.server.stages import build_model_of, config_of
from fedpath.server.talk import Talk

PIPELINE_FILE, ENCODER_FILE = "pipeline.json", "encoder.safetensors"


class Done(Section):
    """A stage that is over."""

    name: str
    sites: list[str]
    """That have what it left."""
    encoder_sha256: str | None = None
    """fine-tune: of the tuned encoder."""


class Progress(Section):
    """pipeline.json: the stages that are over, in order."""

    done: list[Done] = Field(default_factory=list)

    def of(self, name: str | None) -> Done | None:
        """Return a stage that is over; None for no stage."""
        return next((stage for stage in self.done if stage.name == name), None)


class Pipeline:
    """One run of a pipeline.

    Args:
        config: federation.toml, after `fedpath.server.stages.check_models`.
        run: its name.
        talk: the conversation with the sites.
        folder: where its records go; where they are already, the run goes on.
        events: where progress is reported.
        stop: set it to end the run; everything so far is kept.
    """

    def __init__(
        self,
        config: FederationConfig,
        run: str,
        talk: Talk,
        folder: Path,
        events: EventLog,
        stop: threading.Event,
    ) -> None:
        self._config, self._run, self._talk = config, run, talk
        self._folder, self._events, self._stop = folder, events, stop
        self._stages = config.stage

    def execute(self) -> dict[str, Any]:
        """Run the stages that are not over; return the summary.

        Raises:
            FederationError: too few sites joined, or go on.
            StoppedError: `stop` was set.
        """
        # One for all stages: starting it takes seconds.
        with engine_of(self._config.aggregation, self._events, self._stop) as engine:
            return self._execute(engine)

    def _execute(self, engine: Engine) -> dict[str, Any]:
        progress = read_kept(self._folder / PIPELINE_FILE, Progress.model_validate_json) or Progress()
        if progress.done:
            self._events.emit("resumed", run=self._run, stages=[stage.name for stage in progress.done])
        for index in range(len(progress.done), len(self._stages)):
            stage = self._stages[index]
            values = {"stage": stage.name, "stage_kind": stage.kind, "number": index + 1, "of": len(self._stages)}
            model = None if isinstance(stage, EncodeStage) else config_of(self._config, stage).model.name
            self._events.emit("stage_started", **values, model=model)
            done = self._do(index, progress, engine)
            progress = Progress(done=[*progress.done, done])
            write_json(self._folder / PIPELINE_FILE, progress.model_dump(mode="json"))
            self._events.emit("stage_finished", **values, sites=done.sites, encoder_sha256=done.encoder_sha256)
        summary = self._summary(progress)
        write_json(self._folder / SUMMARY_FILE, summary)
        return summary

    def _do(self, index: int, progress: Progress, engine: Engine) -> Done:
        """Do one stage, or what is left of it."""
        stage, path = self._stages[index], self._path(index)
        facts, more = self._facts(index, progress), index + 1 < len(self._stages)
        config, needs = self._with_features(facts, progress), self._needs(facts, progress)
        expected = self._expected(progress, needs)
        if isinstance(stage, EncodeStage):
            assert needs is not None  # a tuned encoder: `check_order` sees to it
            encoding = Encoding(config, facts_of(config, self._run, facts), self._talk, path, self._events, self._stop)
            return Done(name=stage.name, sites=encoding.execute(needs, stage.timeout_s))
        model = build_model_of(config, stage)
        config = config_of(config, stage)
        ended = FederatedRun(
            config,
            self._run,
            model,
            self._talk,
            RunFolder(path, config),
            self._events,
            self._stop,
            stage=facts,
            expected=expected,
            needs=needs,
            more=more,
            engine=engine,
        ).execute()
        sha256 = None
        if isinstance(stage, TuneStage):
            tuner = build_model_of(config, stage)  # the weights of the one that went into the run are gone
            assert isinstance(tuner, SparseTuner)
            sha256 = self._keep_encoder(path, tuner, ended.best_model, stage, facts)
        return Done(name=stage.name, sites=ended.have, encoder_sha256=sha256)

    def _facts(self, index: int, progress: Progress) -> StageFacts:
        """Return what every order of a stage says about it."""
        stage, before = self._stages[index], self._stages[:index]

        def latest(kind: str) -> str | None:
            return next((other.name for other in reversed(before) if other.kind == kind), None)

        tuned = progress.of(latest("fine-tune"))
        place = {"name": stage.name, "kind": stage.kind, "number": index + 1, "of": len(self._stages)}
        match stage:
            case TuneStage():
                own = {
                    "selector": latest("select"),
                    "tuning": stage.tuning,
                    "encoder_sha256": self._config.features.encoder_sha256,
                }
            case EncodeStage():
                own = {"tuned": latest("fine-tune"), "encoder_sha256": None if tuned is None else tuned.encoder_sha256}
            case _:
                own = {}
        encoded = None if isinstance(stage, EncodeStage) else latest("encode")
        return StageFacts.model_validate(place | own | {"encoded": encoded})

    def _with_features(self, facts: StageFacts, progress: Progress) -> FederationConfig:
        """Return the configuration with the features as they are in a stage: the encoder's hash moves with encoding."""
        if facts.kind != "encode" and facts.encoded is None:
            return self._config
        tuned = next(stage.name for stage in self._stages if stage.kind == "fine-tune")
        done = progress.of(tuned)
        features = self._config.features.model_copy(
            update={"encoder_sha256": None if done is None else done.encoder_sha256}
        )
        return self._config.model_copy(update={"features": features})

    def _needs(self, facts: StageFacts, progress: Progress) -> Needs | None:
        """Return which sites can take part in a stage that stands on another one."""
        for name in (facts.selector, facts.tuned, facts.encoded):
            if (done := progress.of(name)) is not None:
                return Needs(
                    frozenset(done.sites),
                    f"stage '{facts.name}' goes on with what stage '{name}' left at the sites, and this site was not "
                    "there when that ended; it can take part in the next run",
                )
        return None

    def _expected(self, progress: Progress, needs: Needs | None) -> list[str]:
        """Return the sites to wait for: those of the stage before, as far as they can take part."""
        if needs is not None:
            return sorted(needs.sites)
        return progress.done[-1].sites if progress.done else []

    def _keep_encoder(self, path: Path, model: SparseTuner, best: Arrays, stage: TuneStage, facts: StageFacts) -> str:
        """Keep the best tuned encoder; return its hash, which the hospitals' own must have."""
        load_arrays(model, best)
        assert facts.encoder_sha256 is not None
        return save_encoder(
            path / ENCODER_FILE,
            tuned_encoder(model),
            name=self._config.features.encoder,
            base_sha256=facts.encoder_sha256,
            tuning=stage.tuning,
        )

    def _summary(self, progress: Progress) -> dict[str, Any]:
        """Return the summary of the last stage of kind train, which readers of any run know, and those of all."""
        stages = []
        for index, (stage, done) in enumerate(zip(self._stages, progress.done, strict=True)):
            path = self._path(index)
            own = {
                "stage": stage.name,
                "kind": stage.kind,
                "folder": str(path.relative_to(self._folder)),
                "encoder_sha256": done.encoder_sha256,
            }
            kept = path / SUMMARY_FILE
            stages.append(own | (json.loads(kept.read_text()) if kept.exists() else {"sites": done.sites}))
        trained = [stage for stage in stages if "best_round" in stage]
        headline = next((stage for stage in reversed(trained) if stage["kind"] == "train"), trained[-1])
        return headline | {"stages": stages}

    def _path(self, index: int) -> Path:
        return self._folder / "stages" / f"{index + 1}-{self._stages[index].name}"
