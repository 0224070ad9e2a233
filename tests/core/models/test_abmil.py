"""ABMIL against a definition written out by hand: loops, one number at a time, in float64."""

import pytest
import torch
from literal import affine, assert_gradients_equal, cross_entropy, random_bag, softmax, stacked, total
from torch import Tensor

from fedpath.core.models import BagModel, build_model
from fedpath.core.models.dropout import keep_mask

N_CLASSES, WIDTH, INNER, ATTENTION, DROPOUT = 3, 5, 4, 6, 0.25
WEIGHTS_C = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


def make_model(**options: object) -> BagModel:
    options = {"inner": INNER, "attention": ATTENTION} | options
    return build_model("abmil", width=WIDTH, n_classes=N_CLASSES, options=options, seed=1).double()


def literal_abmil(p: dict[str, Tensor], x_ND: Tensor, kept_NL: Tensor, scale: float) -> dict[str, Tensor]:
    """The paper's formulas, with the inner values that dropout kept; shares only names with the model."""
    hidden, scores = [], []
    for x_D, kept_L in zip(x_ND, kept_NL, strict=True):
        z = [affine(p["reduce.weight"][j], p["reduce.bias"][j], list(x_D)) for j in range(INNER)]
        h = [scale * z[j] if z[j] > 0 and kept_L[j] else torch.zeros_like(z[j]) for j in range(INNER)]
        gated = []
        for a in range(ATTENTION):
            content = affine(p["gate.weight"][a], p["gate.bias"][a], h)
            gate = affine(p["gate.weight"][ATTENTION + a], p["gate.bias"][ATTENTION + a], h)
            gated.append(torch.tanh(content) / (1 + torch.exp(-gate)))
        hidden.append(h)
        scores.append(affine(p["score.weight"][0], p["score.bias"][0], gated))
    attention = softmax(scores)
    slide = [total([a * h[j] for a, h in zip(attention, hidden, strict=True)]) for j in range(INNER)]
    logits = [affine(p["slide_head.weight"][c], p["slide_head.bias"][c], slide) for c in range(N_CLASSES)]
    return {"logits": torch.stack(logits), "attention": stacked([attention]), "slide": torch.stack(slide)}


@pytest.mark.parametrize("n_instances", [1, 2, 7, 23])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("weights_C", [None, WEIGHTS_C])
def test_equals_the_literal_definition(n_instances: int, training: bool, weights_C: Tensor | None) -> None:
    model, bag, target = make_model(dropout=DROPOUT).train(training), random_bag(n_instances, WIDTH), 1
    torch.manual_seed(3)
    output = model(bag)
    torch.manual_seed(3)
    kept_NL = keep_mask((n_instances, INNER), DROPOUT) if training else torch.ones(n_instances, INNER)
    scale = 1 / (1 - DROPOUT) if training else 1.0
    expected = literal_abmil(dict(model.named_parameters()), bag.features_ND, kept_NL, scale)

    assert output.branch_logits_KC is None
    for got, name in (
        (output.logits_C, "logits"),
        (output.attention_KN, "attention"),
        (output.slide_vector_L, "slide"),
    ):
        torch.testing.assert_close(got, expected[name], rtol=1e-10, atol=1e-12, msg=name)
    wanted = cross_entropy(list(expected["logits"]), target, weights_C)
    assert_gradients_equal(model, model.loss(output, target, weights_C), wanted)


def test_dropout_is_on_in_training_by_default_and_can_be_switched_off() -> None:
    bag = random_bag(30, WIDTH)
    dropping, plain = make_model().train(), make_model(dropout=0.0).train()
    assert not torch.equal(dropping(bag).logits_C, dropping(bag).logits_C)
    assert torch.equal(plain(bag).logits_C, plain(bag).logits_C)


@pytest.mark.parametrize(("width", "inner"), [(384, 128), (1024, 512), (166, 83)])
def test_inner_width_follows_acmils_pairs(width: int, inner: int) -> None:
    model = build_model("abmil", width=width, n_classes=2, options={}, seed=0).eval()
    assert model(random_bag(2, width)).slide_vector_L.shape == (inner,)
