"""The stages of a federation: `[[stage]]` of federation.toml, each an ordinary run of rounds.

A pipeline adapts the encoder to the hospitals' own slides: *select* finds the patches that matter, *fine-tune* trains
the encoder on them, *encode* makes new features with it, *train* trains any bag model on those. Without `[[stage]]` a
federation is one stage of kind train.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedpath.core.config.loading import Section
from fedpath.core.config.model import ModelSection
from fedpath.core.config.names import StageName
from fedpath.core.config.training import TrainingSection


class StageTraining(Section):
    """What a stage trains differently from `[training]`; absent keys are those of `[training]`."""

    rounds: Annotated[int, Field(ge=1)] | None = None
    local_epochs: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    class_weights: bool | None = None
    accumulate_bags: Annotated[int, Field(ge=1)] | None = None

    def over(self, training: TrainingSection) -> TrainingSection:
        """Return ``training`` with what this stage says in its place."""
        return training.model_copy(update=self.model_dump(exclude_none=True))


class SelectStage(Section):
    """Train the selector on the features that are there; each hospital then ranks its patches with it."""

    kind: Literal["select"]
    name: StageName = "select"
    model: ModelSection = ModelSection(name="vib")
    training: StageTraining = StageTraining()


class Patches(Section):
    """How many patches of a slide the encoder is trained on: a hospital takes what its GPU can, within these bounds."""

    most: Annotated[int, Field(ge=1)] = 512
    least: Annotated[int, Field(ge=1)] = 64

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least ({self.least}) is above most ({self.most})")
        return self


class TuningSection(Section):
    """How the encoder is trained."""

    patches: Patches = Patches()
    trainable_stages: Annotated[int, Field(ge=1)] | None = None
    """How many of the encoder's last stages are trained; by default what its row in the registry says."""
    adapter: Literal["none", "lora"] = "none"
    """"lora" trains low-rank adapters in all attention layers of a transformer instead of its own weights."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Adapters' output is scaled by alpha / rank."""
    encoder_learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """The head has that of the stage's training."""
    augment: bool = True
    """Brightness and contrast, rotation, crop and flips of each patch, drawn anew each time."""


class TuneStage(Section):
    """Train encoder and head end to end on the pixels of the selected patches."""

    kind: Literal["fine-tune"]
    name: StageName = "fine-tune"
    model: ModelSection = ModelSection(name="clam-sb")
    """The head."""
    tuning: TuningSection = TuningSection()
    training: StageTraining = StageTraining()


class EncodeStage(Section):
    """Encode every slide again with the tuned encoder."""

    kind: Literal["encode"]
    name: StageName = "encode"
    timeout_s: Annotated[float, Field(gt=0)] = 604_800.0
    """A hospital that has not encoded its slides by then takes no part in the stages after."""


class TrainStage(Section):
    """Train a bag model on the features as they are by now."""

    kind: Literal["train"]
    name: StageName = "train"
    model: ModelSection | None = None
    """That of `[model]` by default."""
    training: StageTraining = StageTraining()


Stage = Annotated[SelectStage | TuneStage | EncodeStage | TrainStage, Field(discriminator="kind")]


def check_order(stages: list[Stage]) -> list[Stage]:
    """Return ``stages`` if each finds what it needs in those before.

    Raises:
        ValueError: saying which stage lacks what.
    """
    kinds: list[str] = []
    names: set[str] = set()
    for stage in stages:
        if stage.name in names:
            raise ValueError(f"two stages have the name '{stage.name}'; give them different names")
        if stage.kind == "fine-tune" and "select" not in kinds:
            raise ValueError(f"stage '{stage.name}' needs selected patches; put a stage of kind 'select' before")
        if stage.kind == "encode" and "fine-tune" not in kinds:
            raise ValueError(f"stage '{stage.name}' encodes with a tuned encoder; put a 'fine-tune' stage before")
        if stage.kind in kinds and stage.kind in ("fine-tune", "encode"):
            raise ValueError(f"stage '{stage.name}': one stage of kind '{stage.kind}' is all a pipeline may have")
        kinds.append(stage.kind)
        names.add(stage.name)
    if kinds and kinds[-1] == "encode":
        raise ValueError(f"nothing uses what stage '{stages[-1].name}' makes; put a stage of kind 'train' after it")
    return stages
