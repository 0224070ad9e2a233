"""FedProx and SCAFFOLD at one site, against what the papers write, in float64 and without the loop."""

import copy
from collections.abc import Mapping, Sequence

import pytest
import torch
from engine_models import make_examples
from literal_training import literal_training
from torch import Tensor, nn

from fedpath.core.bags import Bag
from fedpath.core.cohort import Example
from fedpath.core.config.federated import LocalSection
from fedpath.core.errors import ConfigError
from fedpath.core.models import BagModel, BagOutput
from fedpath.core.training import TrainResult, TrainSettings, learning_rate_at, train
from fedpath.core.training.drift import Drift, DriftTerms, copies_of
from fedpath.core.training.engines import EngineSettings

WIDTH = 16
EXAMPLES = make_examples(5)
IN_TWOS = TrainSettings(2, 1e-2, 1e-3, accumulate_bags=2, precision="float32")


class Two(BagModel):
    """A layer that every bag reaches, one that only bags of class 1 reach (by their first number), and a norm."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.all, self.some = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 2)
        for layer in (self.all, self.some):
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, bag: Bag) -> BagOutput:
        x_ND = torch.relu(self.norm(bag.features_ND.to(self.all.weight.dtype)))
        mean_D = x_ND.mean(dim=0)
        logits_C = self.all(mean_D)
        if int(bag.slide_id[1:]) % 2:
            logits_C = logits_C + self.some(mean_D)
        return BagOutput(logits_C, torch.full((1, len(x_ND)), 1 / len(x_ND)), mean_D)


def literal(
    settings: TrainSettings,
    *,
    proximal: float = 0.0,
    correction: Mapping[str, Tensor] | None = None,
    personal: Sequence[str] = (),
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights after training, and the mean of the raw gradients."""
    model = Two().double()
    means = literal_training(
        model, EXAMPLES, settings, seed=11, proximal=proximal, correction=correction, personal=personal
    )
    return {name: parameter.detach() for name, parameter in model.named_parameters()}, means


def trained(
    settings: TrainSettings, terms: DriftTerms | None, examples: Sequence[Example] = EXAMPLES
) -> tuple[dict[str, Tensor], TrainResult]:
    model = Two()
    result = train(model, examples, settings, seed=11, drift=terms)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}, result


def some_correction(scale: float = 0.1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(8)
    return {name: scale * torch.randn(p.shape, generator=generator) for name, p in Two().named_parameters()}


def assert_close(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name].double(), expected[name].double(), rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("accumulate_bags", [1, 2])
@pytest.mark.parametrize("proximal", [0.0, 0.5, 20.0])
def test_fedprox_is_the_gradient_of_its_penalty(proximal: float, accumulate_bags: int) -> None:
    settings = TrainSettings(3, 1e-2, 1e-3, accumulate_bags=accumulate_bags, precision="float32")
    expected, _ = literal(settings, proximal=proximal)
    got, result = trained(settings, DriftTerms(proximal=proximal))
    assert_close(got, expected)
    assert result.mean_gradients is None


def test_the_pull_is_what_autograd_says_of_the_penalty() -> None:
    model = Two()
    drift = Drift(model, DriftTerms(proximal=0.7))
    came = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3
    penalty = 0.7 / 2 * sum(((p - came[name]) ** 2).sum() for name, p in model.named_parameters())
    expected = torch.autograd.grad(penalty, list(model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    drift.act()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("accumulate_bags", [1, 2])
def test_scaffold_corrects_each_step_and_returns_the_mean_of_the_raw_gradients(accumulate_bags: int) -> None:
    settings = TrainSettings(3, 1e-2, 1e-3, accumulate_bags=accumulate_bags, precision="float32")
    correction = some_correction()
    expected, means = literal(settings, correction=correction)
    got, result = trained(settings, DriftTerms(correction=correction))
    assert_close(got, expected)
    assert result.mean_gradients is not None
    assert_close(result.mean_gradients, means)


def test_under_plain_sgd_the_mean_is_option_ii_of_the_paper() -> None:
    """c_i⁺ = c_i − c + (x − y) / (K η), with the steps that the code under test corrects."""
    model, correction, eta, steps = Two().double(), some_correction(), 0.05, 7
    x = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    drift = Drift(model, DriftTerms(correction=correction))
    optimizer = torch.optim.SGD(model.parameters(), eta)
    example = EXAMPLES[1]  # goes through both layers
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(model(example.bag), example.target).backward()  # type: ignore[no-untyped-call]
        drift.act()
        optimizer.step()
    means = drift.mean_gradients()
    assert means is not None
    for name, y in model.named_parameters():
        option_ii = -correction[name].double() + (x[name] - y.detach()) / (steps * eta)
        torch.testing.assert_close(means[name], option_ii, rtol=1e-9, atol=1e-10)


def test_no_correction_is_plain_training_to_the_bit() -> None:
    zeros = {name: torch.zeros_like(parameter) for name, parameter in Two().named_parameters()}
    plain, _ = trained(IN_TWOS, None)
    for terms in (DriftTerms(), DriftTerms(correction={}), DriftTerms(correction=zeros)):
        got, _ = trained(IN_TWOS, terms)
        assert all(torch.equal(plain[name], got[name]) for name in plain)


def test_personal_parameters_are_left_alone() -> None:
    personal = ["norm.weight", "norm.bias"]
    correction = some_correction()
    expected, means = literal(IN_TWOS, correction=correction, personal=personal)
    got, result = trained(IN_TWOS, DriftTerms(correction=correction, personal=frozenset(personal)))
    assert_close(got, expected)
    assert result.mean_gradients is not None
    assert result.mean_gradients.keys() == means.keys() - set(personal)
    expected, _ = literal(IN_TWOS, proximal=5.0, personal=personal)
    got, _ = trained(IN_TWOS, DriftTerms(proximal=5.0, personal=frozenset(personal)))
    assert_close(got, expected)


def test_a_parameter_that_no_gradient_reaches_stays_as_it_came() -> None:
    of_class_0 = [example for example in EXAMPLES if example.target == 0]
    came = dict(Two().named_parameters())
    for terms in (DriftTerms(proximal=1.0), DriftTerms(correction=some_correction())):
        got, result = trained(IN_TWOS, terms, of_class_0)
        assert torch.equal(got["some.weight"], came["some.weight"])
        assert not torch.equal(got["all.weight"], came["all.weight"])
        if result.mean_gradients is not None:
            assert sorted(result.mean_gradients) == ["all.bias", "all.weight", "norm.bias", "norm.weight"]


@pytest.mark.parametrize("terms", [DriftTerms(proximal=0.5), DriftTerms(correction=some_correction(0.01))])
def test_terms_are_float32_beside_bfloat16_products(terms: DriftTerms) -> None:
    settings = TrainSettings(2, 1e-2, precision="bfloat16")
    once, result = trained(settings, terms)
    again, _ = trained(settings, terms)
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert {tensor.dtype for tensor in (result.mean_gradients or once).values()} == {torch.float32}


def test_a_strong_pull_keeps_the_model_near() -> None:
    came = dict(Two().named_parameters())
    settings = TrainSettings(20, 1e-2, 0.0, precision="float32")

    def distance(terms: DriftTerms | None) -> float:
        got, _ = trained(settings, terms)
        return sum(float(((got[name] - came[name].detach()) ** 2).sum()) for name in got) ** 0.5

    assert distance(DriftTerms(proximal=100.0)) < distance(DriftTerms(proximal=1.0)) < distance(None)


def test_as_many_steps_as_some_epochs_have_are_these_epochs_to_the_bit() -> None:
    by_epochs, result = trained(IN_TWOS, None)  # 5 bags in twos: 3 steps an epoch
    by_steps, other = trained(TrainSettings(1, 1e-2, 1e-3, accumulate_bags=2, precision="float32", steps=6), None)
    assert all(torch.equal(by_epochs[name], by_steps[name]) for name in by_epochs)
    assert (result.steps, other.steps) == (6, 6)
    assert other.loss == result.loss
    assert other.patients_by_group == result.patients_by_group == {"image": 3}


def test_fewer_steps_than_an_epoch_count_whom_they_trained_on() -> None:
    order = torch.randperm(5, generator=torch.Generator().manual_seed(11)).tolist()[:2]
    _, result = trained(TrainSettings(1, 1e-2, precision="float32", steps=2), None)
    assert (result.steps, result.bags) == (2, 2)
    assert result.patients_by_group == {"image": len({EXAMPLES[index].patient_id for index in order})}


def test_the_schedule_of_a_few_steps_covers_its_span(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def recording(self: torch.optim.AdamW, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    settings = TrainSettings(1, 0.01, precision="float32", steps=7)
    train(Two(), EXAMPLES, settings, seed=0, span=(0.5, 1.0))
    assert rates == pytest.approx([learning_rate_at(0.5 + 0.5 * k / 7, 0.01) for k in range(7)], rel=1e-12)


def test_the_loss_is_over_as_many_of_the_last_bags_as_there_are() -> None:
    losses: list[float] = []
    settings = TrainSettings(1, 1e-2, precision="float32", steps=7)
    result = train(Two(), EXAMPLES, settings, seed=1, progress=lambda done, total, loss: losses.append(loss))
    assert len(losses) == 7
    assert result.loss == pytest.approx(sum(losses[-5:]) / 5, rel=1e-12)


def test_deepspeed_has_no_way_for_the_terms_and_says_so() -> None:
    with pytest.raises(ConfigError, match="neither FedProx nor SCAFFOLD") as caught:
        train(
            copy.deepcopy(Two()), EXAMPLES, IN_TWOS, seed=0, engine=EngineSettings("deepspeed"),
            drift=DriftTerms(proximal=1.0),
        )  # fmt: skip
    assert 'compute.engine = "torch"' in caught.value.remedy


def test_what_a_method_holds_beside_the_model() -> None:
    assert [copies_of(LocalSection(method=method)) for method in ("plain", "fedprox", "scaffold")] == [0, 1, 2]
