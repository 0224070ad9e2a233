"""The selector of VIB against a definition written out by hand: loops, one number at a time, in float64."""

import math

import pytest
import torch
from literal import affine, assert_gradients_equal, cross_entropy, random_bag, softmax, stacked, total
from torch import Tensor

from fedpath.core.bags import Bag
from fedpath.core.cohort.examples import Example
from fedpath.core.models import BagModel, build_model, vib
from fedpath.core.models.dropout import keep_mask
from fedpath.core.models.selection import select
from fedpath.core.models.vib import bernoulli_kl, logistic_noise, relaxed_bernoulli
from fedpath.core.training.loop import train
from fedpath.core.training.settings import TrainSettings

N_CLASSES, WIDTH, INNER, ATTENTION, SAMPLES, DROPOUT = 3, 5, 4, 3, 4, 0.25
PRIOR, BETA, TEMPERATURE = 0.2, 0.7, 0.5
WEIGHTS_C = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


def make_model(**options: object) -> BagModel:
    sizes = {"inner": INNER, "attention": ATTENTION, "samples": SAMPLES}
    chosen = sizes | {"prior": PRIOR, "beta": BETA, "temperature": TEMPERATURE, "dropout": DROPOUT} | options
    return build_model("vib", width=WIDTH, n_classes=N_CLASSES, options=chosen, seed=1).double()


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def literal_vib(
    p: dict[str, Tensor], x_ND: Tensor, kept_NL: Tensor, scale: float, uniform_SN: Tensor | None
) -> dict[str, Tensor]:
    """The formulas, with what dropout kept and the uniform draws given; shares only names with the model."""
    logits_of_mask, masks, hidden, scores = [], [], [], []
    for n, (x_D, kept_L) in enumerate(zip(x_ND, kept_NL, strict=True)):
        linear = [affine(p["reduce.weight"][j], p["reduce.bias"][j], list(x_D)) for j in range(INNER)]
        h = [scale * v if v > 0 and kept else torch.zeros_like(v) for v, kept in zip(linear, kept_L, strict=True)]
        s = affine(p["select.weight"][0], p["select.bias"][0], h)
        if uniform_SN is None:
            mask = sigmoid(s)
        else:
            draws = [sigmoid((s + math.log(u) - math.log(1 - u)) / TEMPERATURE) for u in uniform_SN[:, n].tolist()]
            mask = total(draws) / len(draws)
        z = [mask * v for v in h]
        gated = []
        for a in range(ATTENTION):
            content = affine(p["gate.weight"][a], p["gate.bias"][a], z)
            gate = affine(p["gate.weight"][ATTENTION + a], p["gate.bias"][ATTENTION + a], z)
            gated.append(torch.tanh(content) * sigmoid(gate))
        logits_of_mask.append(s)
        masks.append(mask)
        hidden.append(z)
        scores.append(affine(p["score.weight"][0], p["score.bias"][0], gated))
    attention = softmax(scores)
    slide = [total([a * z[j] for a, z in zip(attention, hidden, strict=True)]) for j in range(INNER)]
    logits = [affine(p["slide_head.weight"][c], p["slide_head.bias"][c], slide) for c in range(N_CLASSES)]
    return {
        "logits": torch.stack(logits),
        "attention": stacked([attention]),
        "slide": torch.stack(slide),
        "selection": torch.stack(logits_of_mask),
        "mask": torch.stack(masks),
    }


def literal_distance(kind: str, selection_N: Tensor, mask_N: Tensor) -> Tensor:
    if kind == "surrogate":
        return (total(list(mask_N)) / len(mask_N) - PRIOR) ** 2
    terms = []
    for s in selection_N:
        pi = sigmoid(s)
        terms.append(pi * torch.log(pi / PRIOR) + (1 - pi) * torch.log((1 - pi) / (1 - PRIOR)))
    return total(terms) / len(terms)


@pytest.mark.parametrize("n_instances", [1, 2, 7, 23])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kl", ["bernoulli", "surrogate"])
@pytest.mark.parametrize("weights_C", [None, WEIGHTS_C])
def test_equals_the_literal_definition(n_instances: int, training: bool, kl: str, weights_C: Tensor | None) -> None:
    model, bag, target = make_model(kl=kl).train(training), random_bag(n_instances, WIDTH), 1
    torch.manual_seed(3)
    output = model(bag)
    torch.manual_seed(3)
    # The model adds draws of float32 to numbers of float64.
    uniform_SN = sigmoid(logistic_noise(SAMPLES, n_instances).double()) if training else None
    kept_NL = keep_mask((n_instances, INNER), DROPOUT) if training else torch.ones(n_instances, INNER)
    scale = 1 / (1 - DROPOUT) if training else 1.0
    expected = literal_vib(dict(model.named_parameters()), bag.features_ND, kept_NL, scale, uniform_SN)

    for got, name in (
        (output.logits_C, "logits"),
        (output.attention_KN, "attention"),
        (output.slide_vector_L, "slide"),
        (output.selection_N, "selection"),
        (output.mask_N, "mask"),
    ):
        torch.testing.assert_close(got, expected[name], rtol=1e-10, atol=1e-12, msg=name)
    wanted = cross_entropy(list(expected["logits"]), target, weights_C)
    wanted = wanted + BETA * literal_distance(kl, expected["selection"], expected["mask"])
    assert_gradients_equal(model, model.loss(output, target, weights_C), wanted)


@pytest.mark.parametrize("training", [False, True])
def test_chunks_are_one_bag(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that are computed twice give the numbers and gradients of a whole; so do the draws, without dropout."""
    model, bag = make_model(dropout=0.0).train(training), random_bag(23, WIDTH)
    torch.manual_seed(3)
    whole = model(bag)
    expected = model.loss(whole, 1)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    monkeypatch.setattr(vib, "_CPU_ROWS", 5)
    torch.manual_seed(3)
    output = model(bag)
    torch.testing.assert_close(output.attention_KN, whole.attention_KN, rtol=1e-12, atol=0)
    loss = model.loss(output, 1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for got, whole_gradient in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(got, whole_gradient, rtol=1e-10, atol=1e-13)


def test_a_chunk_that_is_computed_twice_drops_the_same_values_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a step with dropout is that of the loss it reported: compared with differences of losses."""
    monkeypatch.setattr(vib, "_CPU_ROWS", 5)
    model, bag = make_model().train(), random_bag(23, WIDTH)

    def loss() -> Tensor:
        torch.manual_seed(3)
        return model.loss(model(bag), 1)

    weight = model.get_parameter("select.weight")
    (gradient,) = torch.autograd.grad(loss(), weight)
    for place in range(INNER):
        step = torch.zeros_like(weight)
        step[0, place] = 1e-5
        with torch.no_grad():
            weight += step
            above = loss()
            weight -= 2 * step
            slope = (above - loss()) / 2e-5
            weight += step
        assert slope.item() == pytest.approx(gradient[0, place].item(), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("prior", [0.1, 0.5, 0.97])
def test_the_kl_is_torchs_and_nothing_at_the_prior(prior: float) -> None:
    logits = torch.linspace(-9, 9, 37, dtype=torch.float64)
    ours = bernoulli_kl(logits, prior)
    mask, wanted = torch.distributions.Bernoulli(logits=logits), torch.distributions.Bernoulli(torch.tensor(prior))
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(mask, wanted).double(), rtol=1e-5, atol=1e-6)
    assert (ours >= 0).all()
    at_prior = torch.tensor([prior], dtype=torch.float64).logit().requires_grad_()
    distance = bernoulli_kl(at_prior, prior)
    assert distance.item() == pytest.approx(0, abs=1e-15)
    assert torch.autograd.grad(distance.sum(), at_prior)[0].item() == pytest.approx(0, abs=1e-12)


def test_the_kl_of_a_certain_mask_is_finite() -> None:
    extreme = torch.tensor([-200.0, 200.0], requires_grad=True)
    distance_N = bernoulli_kl(extreme, 0.1)
    torch.testing.assert_close(distance_N, torch.tensor([-math.log(0.9), -math.log(0.1)]))
    assert torch.autograd.grad(distance_N.sum(), extreme)[0].isfinite().all()


def test_draws_are_those_of_torchs_relaxed_bernoulli() -> None:
    """The same distribution: mean and spread of many draws, and the gradient of the mean."""
    logit, n = torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64, requires_grad=True), 40_000
    torch.manual_seed(0)
    ours = relaxed_bernoulli(logit, logistic_noise(n, 3).double(), TEMPERATURE)
    temperature = torch.tensor(TEMPERATURE, dtype=torch.float64)
    theirs = torch.distributions.RelaxedBernoulli(temperature, logits=logit).rsample(torch.Size([n])).mean(dim=0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.01)
    slopes = [torch.autograd.grad(mean.sum(), logit)[0] for mean in (ours, theirs)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0.03, atol=0.002)


def test_masks_can_rise_above_one_half_and_learn_from_the_class() -> None:
    """Both were impossible in the released code."""
    model = make_model(dropout=0.0, beta=0.0).train()
    with torch.no_grad():
        model.get_parameter("select.bias").fill_(5.0)
    output = model(random_bag(7, WIDTH))
    assert (output.mask_N > 0.9).all()
    (gradient,) = torch.autograd.grad(model.loss(output, 1), model.get_parameter("select.weight"))
    assert gradient.abs().max() > 0


def test_the_noise_comes_from_the_cpu_and_from_the_seed() -> None:
    """The draws of the masks are the first of a forward, and of torch's global CPU generator whatever the device."""
    model, bag = make_model(dropout=0.0).train(), random_bag(9, WIDTH)
    torch.manual_seed(5)
    mask_N = model(bag).mask_N
    torch.manual_seed(5)
    noise_SN = logistic_noise(SAMPLES, 9)
    assert noise_SN.device.type == "cpu"
    expected = relaxed_bernoulli(model(bag).selection_N, noise_SN.double(), TEMPERATURE)
    torch.testing.assert_close(mask_N, expected, rtol=0, atol=0)
    assert not torch.equal(model(bag).mask_N, model(bag).mask_N)


def test_evaluation_masks_with_the_probability_itself() -> None:
    output = make_model().eval()(random_bag(9, WIDTH))
    torch.testing.assert_close(output.mask_N, torch.sigmoid(output.selection_N), rtol=0, atol=0)


def test_the_loss_asks_for_its_own_output() -> None:
    other = build_model("abmil", width=WIDTH, n_classes=N_CLASSES, seed=1)
    with pytest.raises(ValueError, match="mask"):
        make_model().loss(other(random_bag(3, WIDTH, torch.float32)), 1)


def planted(count: int, seed: int, *, width: int = 24, n_instances: int = 200, n_planted: int = 10) -> list[Bag]:
    """Bags of noise; in every second one the first 5 % of the instances have one feature shifted by four deviations."""
    generator = torch.Generator().manual_seed(seed)
    features_BND = torch.randn(count, n_instances, width, generator=generator)
    features_BND[1::2, :n_planted, 3] += 4
    coords_N2 = torch.zeros(n_instances, 2, dtype=torch.int64)
    return [Bag(str(number), features_ND, coords_N2, 256) for number, features_ND in enumerate(features_BND)]


def test_planted_instances_are_found_better_than_by_abmils_attention() -> None:
    examples = [Example(bag, n % 2, bag.slide_id, bag.slide_id) for n, bag in enumerate(planted(60, seed=0))]
    settings, recalls = TrainSettings(epochs=30, learning_rate=3e-3, weight_decay=1e-4), {}
    for name in ("vib", "abmil"):
        model = build_model(name, width=24, n_classes=2, options={"inner": 32}, seed=0)
        train(model, examples, settings, seed=0)
        positive = planted(40, seed=1000)[1::2]
        recalls[name] = sum(int((select(model, bag, 10) < 10).sum()) for bag in positive) / (10 * len(positive))
    assert recalls["vib"] > 0.7  # chance: 0.05
    assert recalls["vib"] > recalls["abmil"]
