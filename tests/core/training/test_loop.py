"""The loop: its schedule, its seeds, its weights."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedpath.core.bags import Bag
from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.clinical.standard import Standard
from fedpath.core.cohort import Example
from fedpath.core.config.clinical import ClinicalSchema, NumberField
from fedpath.core.errors import ConfigError
from fedpath.core.models import BagModel, build_model
from fedpath.core.models.multimodal.parts import MultimodalModel
from fedpath.core.training import TrainSettings, class_weights, evaluate, learning_rate_at, predict, train

WIDTH = 8


def make_examples(n: int, seed: int = 0) -> list[Example]:
    """Bags of 20 instances; in bags of class 1 a quarter of them are shifted. Two slides a patient."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for index in range(n):
        features_ND = torch.randn(20, WIDTH, generator=generator)
        features_ND[:5, 0] += 3.0 * (index % 2)
        bag = Bag(f"s{index}", features_ND.half(), torch.zeros(20, 2, dtype=torch.int64), 256)
        examples.append(Example(bag, index % 2, f"p{index // 4}{index % 2}", f"s{index}"))
    return examples


def make_model(**options: object) -> BagModel:
    return build_model("acmil", width=WIDTH, n_classes=2, options={"inner": 8, "attention": 8} | options, seed=0)


def states_equal(one: BagModel, other: BagModel) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def rates_of(monkeypatch: pytest.MonkeyPatch, calls: Sequence[tuple[int, tuple[float, float]]]) -> list[float]:
    """Return the learning rates with which the optimizer really stepped, over several calls (epochs, span)."""
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def recording(self: torch.optim.AdamW, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", recording)
        for epochs, span in calls:
            train(make_model(), make_examples(3), TrainSettings(epochs, 0.01), seed=0, span=span)
    return rates


def test_half_spans_use_the_learning_rates_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rates_of(monkeypatch, [(6, (0, 1))])
    assert len(whole) == 18
    assert rates_of(monkeypatch, [(3, (0, 0.5)), (3, (0.5, 1))]) == pytest.approx(whole, rel=1e-12)
    rounds = rates_of(monkeypatch, [(2, (r / 3, (r + 1) / 3)) for r in range(3)])
    assert rounds == pytest.approx(whole, rel=1e-12)
    assert whole[0] == 0.01
    assert whole == sorted(whole, reverse=True)
    assert whole[9] == pytest.approx(0.005)


def test_the_learning_rate_is_a_half_cosine_from_its_start_to_nothing() -> None:
    assert learning_rate_at(0, 2.0) == 2.0
    assert learning_rate_at(0.25, 2.0) == pytest.approx(1 + math.sqrt(0.5))
    assert learning_rate_at(0.5, 2.0) == pytest.approx(1.0)
    assert learning_rate_at(1, 2.0) == pytest.approx(0, abs=1e-15)


def test_the_seed_alone_decides_the_bits() -> None:
    examples, settings = make_examples(6), TrainSettings(2, 1e-3)
    models = [make_model(dropout=0.3) for _ in range(3)]
    torch.manual_seed(1)
    first = train(models[0], examples, settings, seed=5)
    torch.manual_seed(2)
    torch.rand(7)
    second = train(models[1], examples, settings, seed=5)
    train(models[2], examples, settings, seed=6)
    assert states_equal(models[0], models[1])
    assert first.loss == second.loss
    assert not states_equal(models[0], models[2])


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    train(make_model(dropout=0.3), make_examples(4), TrainSettings(1, 1e-3), seed=0)
    assert torch.equal(torch.rand(4), expected)


def test_evaluating_between_epochs_changes_nothing() -> None:
    examples, settings = make_examples(6), TrainSettings(3, 1e-3)
    one, other = make_model(dropout=0.3), make_model(dropout=0.3)
    train(one, examples, settings, seed=5)
    seen: list[int] = []

    def look(epoch: int) -> None:
        seen.append(epoch)
        evaluate(other, examples)

    train(other, examples, settings, seed=5, after_epoch=look)
    assert seen == [1, 2, 3]
    assert states_equal(one, other)


def test_learns_what_there_is_to_learn() -> None:
    model = make_model()
    before = evaluate(model, make_examples(40, seed=1))
    result = train(model, make_examples(40), TrainSettings(15, 3e-3), seed=0)
    after = evaluate(model, make_examples(40, seed=1))
    assert after.auc is not None
    assert after.auc > 0.95
    assert after.loss < before.loss
    assert (result.bags, result.patients) == (40, 20)
    assert not model.training


def test_one_group_is_trained_by_every_patient() -> None:
    result = train(make_model(), make_examples(7), TrainSettings(1, 1e-3), seed=0)
    assert result.patients_by_group == {"image": 4}  # of seven bags


def test_patients_are_counted_for_each_group_that_they_trained() -> None:
    schema = ClinicalSchema(
        fields={"age": NumberField(type="number", unit="years", minimum=0, maximum=120, outcome_derived=False)}
    )
    record = ClinicalRecord(torch.tensor([50.0], dtype=torch.float64), torch.tensor([True]))
    # Patients: bags 0 and 2, 1 and 3, 4 and 6, 5. One bag of the first has a record, and that of the last.
    examples = [
        replace(example, bag=replace(example.bag, clinical=record if index in (2, 5) else None))
        for index, example in enumerate(make_examples(7))
    ]

    def trained(standard: Standard) -> tuple[dict[str, int], set[str]]:
        """The counts, and the groups of the parameters that training changed."""
        model = build_model("bd", width=WIDTH, n_classes=2, seed=0, clinical=schema)
        assert isinstance(model, MultimodalModel)
        model.use_standard(standard)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        counts = train(model, examples, TrainSettings(1, 1e-3), seed=0).patients_by_group
        groups = model.parameter_groups().items()
        return counts, {
            group for group, names in groups for name in names if model.state_dict()[name].ne(before[name]).any()
        }

    everybody = {"image": 4, "prompt": 4, "single_head": 4}
    counts, changed = trained(Standard(9, {"age": 50.0}, {"age": 10.0}))
    assert counts == {"clinical": 2, "fusion": 2, "multi_head": 2} | everybody
    assert changed == set(counts)
    assert list(counts) == sorted(counts)
    # Nobody in the federation has clinical data: the records are not read.
    assert trained(Standard(0)) == (everybody, set(everybody))


def test_progress_counts_every_bag() -> None:
    seen: list[tuple[int, int, float]] = []
    result = train(
        make_model(),
        make_examples(3),
        TrainSettings(2, 1e-3),
        seed=0,
        progress=lambda done, total, loss: seen.append((done, total, loss)),
    )
    assert [(done, total) for done, total, _ in seen] == [(n, 6) for n in range(1, 7)]
    assert result.loss == pytest.approx(sum(loss for *_, loss in seen[3:]) / 3)


def test_every_epoch_sees_every_bag_once_in_an_order_of_its_own() -> None:
    orders: list[list[str]] = []

    class Watching(type(make_model())):  # type: ignore[misc]
        def forward(self, bag: Bag) -> object:
            orders[-1].append(bag.slide_id)
            return super().forward(bag)

    model = make_model()
    model.__class__ = Watching
    orders.append([])
    train(model, make_examples(8), TrainSettings(3, 1e-3), seed=0, after_epoch=lambda _: orders.append([]))
    epochs = orders[:3]
    assert all(sorted(order) == [f"s{i}" for i in range(8)] for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_class_weights_are_inverse_frequencies_with_mean_one() -> None:
    examples = make_examples(8)
    unbalanced = [*examples[0:8:2], examples[1]]  # four of class 0, one of class 1
    weights_C = class_weights(unbalanced)
    torch.testing.assert_close(weights_C, torch.tensor([5 / 8, 5 / 2]))
    assert sum(weights_C[example.target].item() for example in unbalanced) == pytest.approx(len(unbalanced))
    torch.testing.assert_close(class_weights(examples[1::2]), torch.tensor([1.0, 1.0]))


def test_class_weights_reach_the_gradient() -> None:
    # With one bag a step, torch's own mean-reduced weighting would cancel and change nothing.
    examples = [*make_examples(8)[0:8:2], make_examples(8)[1]]
    weighted, plain = make_model(), make_model()
    train(weighted, examples, TrainSettings(2, 1e-3, class_weights=True), seed=0)
    train(plain, examples, TrainSettings(2, 1e-3, class_weights=False), seed=0)
    assert not states_equal(weighted, plain)


def test_weight_decay_shrinks() -> None:
    strong, none = make_model(), make_model()
    train(strong, make_examples(4), TrainSettings(5, 1e-2, weight_decay=5.0), seed=0)
    train(none, make_examples(4), TrainSettings(5, 1e-2, weight_decay=0.0), seed=0)

    def size(model: BagModel) -> float:
        squares: list[Tensor] = [parameter.detach().square().sum() for parameter in model.parameters()]
        return sum(square.item() for square in squares)

    assert size(strong) < 0.7 * size(none)


def test_a_loss_that_leaves_the_numbers_stops_the_run() -> None:
    with pytest.raises(ConfigError, match=r"training diverged: the loss of slide 's\d'.*lower training.learning_rate"):
        train(make_model(), make_examples(8), TrainSettings(50, 1e30), seed=0)


@pytest.mark.parametrize("span", [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (1.0, 0.0)])
def test_a_span_outside_the_run_is_a_mistake(span: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="span"):
        train(make_model(), make_examples(2), TrainSettings(), seed=0, span=span)


def test_nothing_to_train_or_evaluate_on_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no examples"):
        train(make_model(), [], TrainSettings(), seed=0)
    with pytest.raises(ValueError, match="no examples"):
        evaluate(make_model(), [])


def test_predictions_are_probabilities_and_agree_with_the_metrics() -> None:
    model, examples = make_model().train(), make_examples(10)
    probabilities_BC = predict(model, [example.bag for example in examples])
    assert model.training  # its mode is given back
    assert probabilities_BC.shape == (10, 2)
    assert probabilities_BC.sum(axis=1) == pytest.approx(1, abs=1e-12)
    metrics = evaluate(model, examples)
    right = [row.argmax() == example.target for row, example in zip(probabilities_BC, examples, strict=True)]
    assert metrics.balanced_accuracy == pytest.approx(sum(right) / 10)  # five of each class
    assert (metrics.slides, metrics.patients) == (10, 6)


def test_one_class_only_has_no_auc() -> None:
    assert evaluate(make_model(), make_examples(8)[::2]).auc is None


# --- accumulation -----------------------------------------------------------------------------------------------------


def literal_run(model: BagModel, examples: Sequence[Example], epochs: int, rate: float, size: int, seed: int) -> None:
    """AdamW on the mean gradient of each group of ``size`` bags, a bag's gradient at a time, all by hand."""
    torch.manual_seed(seed)  # of masks and dropout
    order = torch.Generator().manual_seed(seed)
    weights_C = class_weights(examples).to(next(model.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-5)
    model.train()
    for epoch in range(epochs):
        indices = torch.randperm(len(examples), generator=order).tolist()
        for start in range(0, len(examples), size):
            gradients = []
            for index in indices[start : start + size]:
                loss = model.loss(model(examples[index].bag), examples[index].target, weights_C)
                gradients.append(torch.autograd.grad(loss, list(model.parameters())))
            for parameter, *parts in zip(model.parameters(), *gradients, strict=True):
                parameter.grad = torch.stack(parts).mean(dim=0)
            seen = epoch * len(examples) + start
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * seen / (epochs * len(examples))))
            optimizer.step()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_step_learns_from_the_mean_gradient_of_its_bags(size: int) -> None:
    examples = make_examples(7)  # 3 + 3 + 1: the last group is divided by its own size
    # Without masks: which of two equal scores is masked hangs on the last digit.
    trained, expected = (make_model(dropout=0.3, mask_ratio=0.0).double() for _ in range(2))
    train(trained, examples, TrainSettings(2, 1e-2, accumulate_bags=size, precision="float32"), seed=4)
    with torch.random.fork_rng(devices=[]):
        literal_run(expected, examples, epochs=2, rate=1e-2, size=size, seed=4)
    for name, value in expected.state_dict().items():
        # Not closer: the bias of the attention scores has no gradient but rounding, which AdamW scales up.
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-10, atol=1e-9)


def test_one_bag_a_step_in_float32_is_the_plain_loop_to_the_bit() -> None:
    examples = make_examples(5)
    trained, expected = make_model(dropout=0.3), make_model(dropout=0.3)
    settings = TrainSettings(3, 1e-2, precision="float32")
    seen: list[float] = []
    train(trained, examples, settings, seed=4, progress=lambda _done, _total, loss: seen.append(loss))
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        order, weights_C = torch.Generator().manual_seed(4), class_weights(examples)
        optimizer = torch.optim.AdamW(expected.parameters(), 1e-2, weight_decay=1e-5, fused=True)
        expected.train()
        for epoch in range(3):
            for step, index in enumerate(torch.randperm(5, generator=order).tolist()):
                optimizer.param_groups[0]["lr"] = learning_rate_at((epoch * 5 + step) / 15, 1e-2)
                optimizer.zero_grad()
                loss = expected.loss(expected(examples[index].bag), examples[index].target, weights_C)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(loss.item())
    assert seen == losses
    assert states_equal(trained, expected)


def test_the_schedule_counts_bags_however_many_a_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def recording(self: torch.optim.AdamW, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    counted: list[tuple[int, int]] = []
    train(
        make_model(),
        make_examples(5),
        TrainSettings(2, 0.01, accumulate_bags=2),
        seed=0,
        progress=lambda done, total, _: counted.append((done, total)),
    )
    assert rates == pytest.approx([learning_rate_at(bags / 10, 0.01) for bags in (0, 2, 4, 5, 7, 9)], rel=1e-12)
    assert counted == [(n + 1, 10) for n in range(10)]


def test_the_caller_can_end_it_after_an_epoch() -> None:
    examples, settings = make_examples(4), TrainSettings(5, 1e-3)
    cut, whole = make_model(dropout=0.3), make_model(dropout=0.3)
    seen: list[int] = []
    after_two: dict[str, Tensor] = {}

    def look(epoch: int) -> None:
        if epoch == 2:
            after_two.update({name: tensor.clone() for name, tensor in whole.state_dict().items()})

    train(cut, examples, settings, seed=1, after_epoch=lambda epoch: seen.append(epoch) or epoch == 2)
    train(whole, examples, settings, seed=1, after_epoch=look)
    assert seen == [1, 2]
    assert not cut.training
    assert all(torch.equal(cut.state_dict()[name], value) for name, value in after_two.items())
