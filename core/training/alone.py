"""Training without a federation: one hospital's data, or the pooled data of several, with the federation's settings.

It is what the federated model is compared with: same initialisation, loop, learning rates and number of epochs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpath.core.clinical.standard import Standard
from fedpath.core.cohort.examples import Example
from fedpath.core.config.federation import FederationConfig
from fedpath.core.errors import ConfigError
from fedpath.core.models.multimodal.parts import MultimodalModel
from fedpath.core.models.protocol import BagModel
from fedpath.core.models.registry import build_model
from fedpath.core.training.evaluation import Metrics, evaluate
from fedpath.core.training.loop import train
from fedpath.core.training.precision import Precision
from fedpath.core.training.settings import TrainSettings
from fedpath.core.training.standard import standard_of


@dataclass(frozen=True, slots=True)
class Validated:
    """One validation during training."""

    epoch: int
    """Epochs done."""
    train_loss: float
    """Mean training loss since the validation before."""
    validation: Metrics | None
    """None when there is nothing to validate on."""


@dataclass(frozen=True, slots=True)
class AloneResult:
    """What training left behind."""

    best_state: dict[str, Tensor]
    """The state with the highest validation AUC, then the lowest validation loss; the last one without validation."""
    last_state: dict[str, Tensor]
    best_epoch: int
    epochs: int
    """Epochs done; fewer than planned when patience ran out."""
    history: tuple[Validated, ...]


def train_alone(
    config: FederationConfig,
    examples_train: Sequence[Example],
    examples_validation: Sequence[Example],
    *,
    seed: int,
    device: torch.device | str = "cpu",
    precision: Precision = "auto",
    standard: Standard | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    validated: Callable[[Validated], None] | None = None,
) -> AloneResult:
    """Train ``rounds × local_epochs`` epochs from the federation's initialisation, validating every ``local_epochs``.

    With ``training.patience`` the training ends after that many validations in a row that brought no better model; up
    to there it is the same training, for the schedule stays that of the planned number of epochs.

    Args:
        config: of the federation; its seed gives the initialisation.
        examples_train: at least one.
        examples_validation: may be empty, unless there is a patience.
        seed: of the training: order, masks, dropout.
        device: where to train.
        precision: see ``fedpath.core.training.precision``.
        standard: how clinical data is read, for a model that uses them; by default what ``examples_train`` say as
            those of one hospital. The states that are returned hold it.
        progress: as in ``train``.
        validated: called with each validation.

    Raises:
        ConfigError: a patience without validation; else as ``train``.
    """
    patience = config.training.patience
    if patience is not None and not examples_validation:
        raise ConfigError(
            "training.patience needs validation patients, and there are none",
            remedy="remove patience from federation.toml, or give some patients split 'validation'",
        )
    model = initial_model(config)
    if isinstance(model, MultimodalModel) and config.clinical is not None:
        model.use_standard(standard or standard_of(config.clinical, [(examples_train, 1)]))
    planned = config.training.rounds * config.training.local_epochs
    settings = settings_of(config, epochs=planned, precision=precision)
    history: list[Validated] = []
    losses: list[float] = []
    best: tuple[tuple[float, float], int, dict[str, Tensor]] | None = None
    epochs, without_gain = planned, 0

    def note(done: int, total: int, loss: float) -> None:
        losses.append(loss)
        if progress is not None:
            progress(done, total, loss)

    def validate(epoch: int) -> bool:
        nonlocal best, epochs, without_gain
        if epoch % config.training.local_epochs:
            return False
        metrics = evaluate(model, examples_validation, device) if examples_validation else None
        history.append(Validated(epoch, sum(losses) / len(losses), metrics))
        losses.clear()
        if validated is not None:
            validated(history[-1])
        if metrics is None:
            return False
        if best is None or merit(metrics) > best[0]:
            best, without_gain = (merit(metrics), epoch, _copy_state(model)), 0
        else:
            without_gain += 1
        if without_gain == patience:
            epochs = epoch
        return without_gain == patience

    train(model, examples_train, settings, seed=seed, device=device, progress=note, after_epoch=validate)
    last_state = _copy_state(model)
    _, best_epoch, best_state = best or (None, epochs, last_state)
    return AloneResult(best_state, last_state, best_epoch, epochs, tuple(history))


def initial_model(config: FederationConfig) -> BagModel:
    """Build the model of a federation as round 0 starts from it, but for what the hospitals agree on before."""
    return build_model(
        config.model.name,
        width=config.features.width,
        n_classes=len(config.task.labels),
        options=config.model.options,
        seed=config.federation.seed,
        clinical=config.clinical,
    )


def settings_of(config: FederationConfig, *, epochs: int, precision: Precision = "auto") -> TrainSettings:
    """Return the loop's settings for ``epochs`` epochs under a federation's [training]."""
    training = config.training
    return TrainSettings(
        epochs=epochs,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        class_weights=training.class_weights,
        accumulate_bags=training.accumulate_bags,
        precision=precision,
    )


def merit(metrics: Metrics) -> tuple[float, float]:
    """Return what "best by validation" compares: AUC first (none counts lowest), then the lower loss."""
    return (-1.0 if metrics.auc is None else metrics.auc, -metrics.loss)


def _copy_state(model: BagModel) -> dict[str, Tensor]:
    """Return the state on the CPU, cut loose from further training."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
