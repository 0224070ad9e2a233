"""Training alone: validations where the federation has them, the best state kept, the loop's own bits."""

import json

import pytest
import torch

from fedpath.core.bags import Bag
from fedpath.core.cohort import Example
from fedpath.core.config import FederationConfig
from fedpath.core.errors import ConfigError
from fedpath.core.models import BagModel
from fedpath.core.models.checkpoint import model_metadata
from fedpath.core.training import Metrics, Validated, evaluate, train, train_alone
from fedpath.core.training.alone import initial_model, merit, settings_of


def make_config(rounds: int = 4, local_epochs: int = 2, **training: object) -> FederationConfig:
    return FederationConfig.model_validate(
        {
            "federation": {"name": "test", "sites": ["A"], "seed": 3},
            "server": {"address": "localhost:1"},
            "task": {"labels": ["normal", "tumour"]},
            "features": {"encoder": "table", "width": 6},
            "model": {"options": {"inner": 6, "attention": 6}},
            "training": {"rounds": rounds, "local_epochs": local_epochs, "learning_rate": 1e-3} | training,
        }
    )


def make_examples(n: int, seed: int, shift: float = 1.0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for index in range(n):
        features_ND = torch.randn(12, 6, generator=generator) + shift * (index % 2)
        bag = Bag(str(index), features_ND, torch.zeros(12, 2, dtype=torch.int64), 256)
        examples.append(Example(bag, index % 2, str(index), str(index)))
    return examples


def as_model(config: FederationConfig, state: dict[str, torch.Tensor]) -> BagModel:
    model = initial_model(config)
    model.load_state_dict(state)
    return model


def test_validates_every_local_epochs_and_keeps_the_best() -> None:
    config, validation = make_config(), make_examples(10, seed=1)
    seen: list[Validated] = []
    result = train_alone(config, make_examples(8, seed=0), validation, seed=9, validated=seen.append)
    assert [entry.epoch for entry in result.history] == [2, 4, 6, 8]
    assert tuple(seen) == result.history
    best = max(result.history, key=lambda entry: merit(entry.validation) if entry.validation else (-2.0, 0.0))
    assert result.best_epoch == best.epoch
    assert evaluate(as_model(config, result.best_state), validation) == best.validation
    assert evaluate(as_model(config, result.last_state), validation) == result.history[-1].validation


def test_is_the_same_run_as_the_loops() -> None:
    config, examples = make_config(), make_examples(8, seed=0)
    result = train_alone(config, examples, make_examples(4, seed=1), seed=9)
    model = initial_model(config)
    train(model, examples, settings_of(config, epochs=8), seed=9)
    for name, value in model.state_dict().items():
        assert torch.equal(value, result.last_state[name])


def test_without_validation_the_last_is_the_best() -> None:
    config = make_config()
    result = train_alone(config, make_examples(6, seed=0), [], seed=0)
    assert result.best_epoch == 8
    assert all(torch.equal(result.best_state[name], result.last_state[name]) for name in result.last_state)
    assert [entry.validation for entry in result.history] == [None] * 4


def test_merit_is_auc_then_lower_loss() -> None:
    def metrics(auc: float | None, loss: float) -> Metrics:
        return Metrics(loss=loss, auc=auc, balanced_accuracy=0.5, macro_f1=0.5, slides=4, patients=4)

    order = [metrics(None, 0.9), metrics(None, 0.1), metrics(0.5, 0.9), metrics(0.8, 0.7), metrics(0.8, 0.6)]
    assert sorted([order[i] for i in (3, 0, 4, 2, 1)], key=merit) == order


def test_a_checkpoint_can_say_all_it_must() -> None:
    config = make_config()
    metadata = model_metadata(config.federation.name, config.model, config.features, config.task.labels)
    assert json.loads(metadata["labels"]) == ["normal", "tumour"]
    assert json.loads(metadata["options"]) == {"inner": 6, "attention": 6}
    assert (metadata["name"], metadata["width"], metadata["n_classes"]) == ("acmil", "6", "2")
    assert metadata["federation"] == "test"


@pytest.mark.parametrize("rounds", [1, 3])
def test_progress_covers_the_whole_run(rounds: int) -> None:
    seen: list[tuple[int, int]] = []
    train_alone(
        make_config(rounds), make_examples(5, 0), [], seed=0, progress=lambda done, total, _: seen.append((done, total))
    )
    assert seen == [(n + 1, rounds * 10) for n in range(rounds * 10)]


def stops_after(history: tuple[Validated, ...], patience: int) -> int | None:
    """The number of validations after which ``patience`` in a row were no better than the best before, by hand."""
    for count in range(1, len(history) + 1):
        merits = [merit(entry.validation) for entry in history[:count] if entry.validation]
        first_best = merits.index(max(merits))
        if len(merits) - 1 - first_best == patience:
            return count
    return None


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience_ends_the_run_where_it_runs_out_and_changes_nothing_before(patience: int) -> None:
    whole_config = make_config(rounds=16, local_epochs=1, learning_rate=1e-2)
    patient_config = make_config(rounds=16, local_epochs=1, learning_rate=1e-2, patience=patience)
    examples, validation = make_examples(6, seed=0, shift=0), make_examples(7, seed=5, shift=0)
    whole = train_alone(whole_config, examples, validation, seed=9)
    cut = train_alone(patient_config, examples, validation, seed=9)
    count = stops_after(whole.history, patience)
    assert count is not None
    assert count < len(whole.history)
    assert cut.epochs == count
    assert cut.history == whole.history[:count]
    best = max(cut.history, key=lambda entry: merit(entry.validation) if entry.validation else (-2.0, 0.0))
    assert cut.best_epoch == best.epoch == cut.epochs - patience
    assert evaluate(as_model(whole_config, cut.best_state), validation) == best.validation
    assert evaluate(as_model(whole_config, cut.last_state), validation) == cut.history[-1].validation
    assert (whole.epochs, len(whole.history)) == (16, 16)


def test_patience_counts_validations_and_not_epochs() -> None:
    config = make_config(rounds=8, local_epochs=2, learning_rate=1e-2, patience=1)
    result = train_alone(config, make_examples(6, seed=0, shift=0), make_examples(7, seed=5, shift=0), seed=9)
    assert result.epochs == 2 * len(result.history) < 16
    assert result.best_epoch == result.epochs - 2


def test_patience_needs_something_to_validate_on() -> None:
    config = make_config(patience=2)
    with pytest.raises(ConfigError, match=r"training.patience needs validation patients.*remove patience"):
        train_alone(config, make_examples(6, seed=0), [], seed=0)
