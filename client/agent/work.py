"""What one kind of stage trains on this hospital's data; the worker knows a stage only through this."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fedpath.client.agent.data import SiteData
from fedpath.client.agent.folders import FINAL_MODEL, StageFolders
from fedpath.core.cohort.examples import Example
from fedpath.core.cohort.manifest import Split
from fedpath.core.exchange.messages import RunFacts
from fedpath.core.models.checkpoint import model_metadata, save_model
from fedpath.core.models.protocol import BagModel
from fedpath.core.models.registry import build_model
from fedpath.core.training.engines.base import EngineSettings
from fedpath.core.training.loop import TrainResult
from fedpath.core.training.precision import Precision

Fill = Callable[[BagModel], None]
"""Puts the arrays that came into a model."""
Trainer = Callable[[BagModel, Precision, EngineSettings], TrainResult]
"""Trains a model in place, in a precision, with an engine."""


class Work(Protocol):
    """A stage's model and examples. Whatever it needs it finds by the order's facts and in the stage's folders."""

    def check(self) -> None:
        """Find out, before anything is promised, whether this hospital can take part.

        Raises:
            RefusedError, DataError, ConfigError: it cannot.
        """
        ...

    def examples(self, split: Split) -> list[Example]:
        """Return a split's bags as the model reads them."""
        ...

    def build(self, learning_rate: float) -> BagModel:
        """Build the stage's model as the federation's seed draws it, to be trained at ``learning_rate``."""
        ...

    def train(self, learning_rate: float, fill: Fill, trainer: Trainer) -> tuple[BagModel, TrainResult]:
        """Build the model, fill it and train it; return it and what training did."""
        ...

    def keep(self, model: BagModel, best_round: int) -> Path:
        """Write what the hospital keeps of the stage and remove what it needs no more; return the file."""
        ...


class BagWork:
    """A bag model on features: stages select and train, and a run without a pipeline.

    Args:
        facts: the order's.
        folders: of its stage.
        data: what the hospital has.
        precision: of the matrix products.
        engine: what steps the weights.
    """

    def __init__(
        self, facts: RunFacts, folders: StageFolders, data: SiteData, precision: Precision, engine: EngineSettings
    ) -> None:
        self._facts, self._folders, self._data = facts, folders, data
        self._precision, self._engine = precision, engine

    def check(self) -> None:
        """Check that the features are there."""
        self._folders.check_features()

    def examples(self, split: Split) -> list[Example]:
        """Return a split's bags of features."""
        self._folders.check_features()
        return self._data.examples(split, self._facts, self._folders.features)

    def build(self, learning_rate: float) -> BagModel:
        """Build the model."""
        facts = self._facts
        return build_model(
            facts.model.name,
            width=facts.features.width,
            n_classes=len(facts.labels),
            options=facts.model.options,
            seed=facts.seed,
            clinical=facts.clinical,
        )

    def train(self, learning_rate: float, fill: Fill, trainer: Trainer) -> tuple[BagModel, TrainResult]:
        """Train it."""
        model = self.build(learning_rate)
        fill(model)
        return model, trainer(model, self._precision, self._engine)

    def keep(self, model: BagModel, best_round: int) -> Path:
        """Write the model."""
        facts, path = self._facts, self._folders.own / FINAL_MODEL
        metadata = model_metadata(facts.federation, facts.model, facts.features, facts.labels, facts.clinical)
        metadata |= {"run": facts.run, "round": str(best_round)}
        if facts.local.personal:
            metadata["personal"] = json.dumps(facts.local.personal)
        save_model(path, model.state_dict(), metadata)
        return path
