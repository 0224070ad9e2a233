"""Mean pooling against a definition written out by hand: loops, one number at a time, in float64."""

import pytest
import torch
from literal import affine, assert_gradients_equal, cross_entropy, random_bag, total
from torch import Tensor

from fedpath.core.models import BagModel, build_model
from fedpath.core.models.dropout import keep_mask

N_CLASSES, WIDTH, INNER, DROPOUT = 3, 5, 4, 0.25
WEIGHTS_C = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


def make_model(**options: object) -> BagModel:
    return build_model(
        "mean-pool", width=WIDTH, n_classes=N_CLASSES, options={"inner": INNER} | options, seed=1
    ).double()


@pytest.mark.parametrize("n_instances", [1, 2, 19])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("weights_C", [None, WEIGHTS_C])
def test_equals_the_literal_definition(n_instances: int, training: bool, weights_C: Tensor | None) -> None:
    model, bag, target = make_model().train(training), random_bag(n_instances, WIDTH), 1
    torch.manual_seed(3)
    output = model(bag)
    torch.manual_seed(3)
    kept_NL = keep_mask((n_instances, INNER), DROPOUT) if training else torch.ones(n_instances, INNER)

    p, scale = dict(model.named_parameters()), 1 / (1 - DROPOUT) if training else 1.0
    slide = []
    for i in range(INNER):
        values = []
        for n, x in enumerate(bag.features_ND):
            z = affine(p["reduce.weight"][i], p["reduce.bias"][i], list(x))
            values.append(scale * z if z > 0 and kept_NL[n, i] else torch.zeros_like(z))
        slide.append(total(values) / n_instances)
    logits = [affine(p["slide_head.weight"][c], p["slide_head.bias"][c], slide) for c in range(N_CLASSES)]

    torch.testing.assert_close(output.slide_vector_L, torch.stack(slide), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.logits_C, torch.stack(logits), rtol=1e-10, atol=1e-12)
    assert output.attention_KN.tolist() == [[1 / n_instances] * n_instances]
    assert_gradients_equal(model, model.loss(output, target, weights_C), cross_entropy(logits, target, weights_C))


def test_dropout_keeps_the_mean_in_training_and_does_nothing_after() -> None:
    model, bag = make_model(inner=50), random_bag(2000, WIDTH)
    with torch.no_grad():
        model.reduce.weight.zero_()
        model.reduce.bias.fill_(1)
    torch.manual_seed(0)
    slide_L = model.train()(bag).slide_vector_L
    spread = (DROPOUT / (1 - DROPOUT) / 2000) ** 0.5
    assert (slide_L - 1).abs().max() < 5 * spread
    assert slide_L.std().item() == pytest.approx(spread, rel=0.5)
    torch.testing.assert_close(model.eval()(bag).slide_vector_L, torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize(("width", "inner"), [(1024, 512), (166, 83), (1, 1)])
def test_inner_width_follows_the_feature_width(width: int, inner: int) -> None:
    model = build_model("mean-pool", width=width, n_classes=2, seed=0).eval()
    assert model(random_bag(2, width)).slide_vector_L.shape == (inner,)
