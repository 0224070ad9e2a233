"""Max pooling against a definition written out by hand: loops, one number at a time, in float64."""

import pytest
import torch
from literal import affine, assert_gradients_equal, cross_entropy, random_bag, record_kept
from torch import Tensor

from fedpath.core.bags import Bag
from fedpath.core.models import BagModel, build_model

N_CLASSES, WIDTH, INNER, DROPOUT = 3, 5, 6, 0.25
WEIGHTS_C = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


def make_model(**options: object) -> BagModel:
    return build_model(
        "max-pool", width=WIDTH, n_classes=N_CLASSES, options={"inner": INNER} | options, seed=1
    ).double()


@pytest.mark.parametrize("n_instances", [1, 2, 19])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("weights_C", [None, WEIGHTS_C])
def test_equals_the_literal_definition(n_instances: int, training: bool, weights_C: Tensor | None) -> None:
    model, bag, target = make_model().train(training), random_bag(n_instances, WIDTH), 1
    kept = record_kept(model.dropout)
    torch.manual_seed(3)
    output = model(bag)

    p, scale = dict(model.named_parameters()), 1 / (1 - DROPOUT) if training else 1.0
    slide, shares_N = [], [0.0] * n_instances
    for i in range(INNER):
        best, holder = torch.zeros((), dtype=torch.float64), None
        for n, x in enumerate(bag.features_ND):
            value = scale * affine(p["reduce.weight"][i], p["reduce.bias"][i], list(x))
            if kept[0][n, i] and value > best:
                best, holder = value, n
        slide.append(best)
        for n in range(n_instances):
            shares_N[n] += (1 / n_instances if holder is None else float(holder == n)) / INNER
    logits = [affine(p["slide_head.weight"][c], p["slide_head.bias"][c], slide) for c in range(N_CLASSES)]

    torch.testing.assert_close(output.slide_vector_L, torch.stack(slide), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.logits_C, torch.stack(logits), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.attention_KN, torch.tensor([shares_N], dtype=torch.float64))
    assert_gradients_equal(model, model.loss(output, target, weights_C), cross_entropy(logits, target, weights_C))


def test_among_equal_patches_the_first_holds_the_maximum() -> None:
    model = make_model().eval()
    once = random_bag(4, WIDTH)
    twice = Bag("slide", once.features_ND.repeat(2, 1), once.coords_N2.repeat(2, 1), 256)
    with torch.no_grad():
        model.reduce.bias.fill_(10)  # no coordinate is 0 in every patch
    assert model(twice).attention_KN[0, :4].tolist() == model(once).attention_KN[0].tolist()
    assert not model(twice).attention_KN[0, 4:].any()
    assert torch.equal(model(twice).logits_C, model(once).logits_C)


def test_a_coordinate_that_no_patch_has_counts_for_all_alike() -> None:
    model = make_model().eval()
    with torch.no_grad():
        model.reduce.bias.fill_(-1e3)
    assert model(random_bag(5, WIDTH)).attention_KN[0].tolist() == pytest.approx([0.2] * 5)


def test_dropout_drops_its_share_in_training_alone() -> None:
    model, bag = make_model(), random_bag(5000, WIDTH)
    kept = record_kept(model.dropout)
    model.train()(bag)
    model.eval()(bag)
    share = kept[0].double().mean().item()
    assert abs(share - (1 - DROPOUT)) < 5 * (DROPOUT * (1 - DROPOUT) / kept[0].numel()) ** 0.5
    assert kept[1].all()
