"""`[training]` of federation.toml."""

from typing import Annotated

from pydantic import Field

from fedpath.core.config.loading import Section


class TrainingSection(Section):
    """How each site trains in a round, and for how many rounds."""

    rounds: Annotated[int, Field(ge=1)] = 10
    local_epochs: Annotated[int, Field(ge=1)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    class_weights: bool = True
    """Weight the loss by inverse class frequency of the site's training bags."""
    accumulate_bags: Annotated[int, Field(ge=1)] = 1
    """Bags an optimizer step learns from; their gradients are averaged."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """`fedpath train` only: stop after this many validations in a row without a better one."""
