"""Max pooling against a definition written out by hand: loops, one number at a time, in float64."""

import pytest
import torch
from literal import affine, assert_gradients_equal, cross_entropy, random_bag
from torch import Tensor

from fedpath.core.bags import Bag
from fedpath.core.models import BagModel, build_model
from fedpath.core.models.dropout import keep_mask

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
    torch.manual_seed(3)
    output = model(bag)
    torch.manual_seed(3)
    kept_NL = keep_mask((n_instances, INNER), DROPOUT) if training else torch.ones(n_instances, INNER)

    p, scale = dict(model.named_parameters()), 1 / (1 - DROPOUT) if training else 1.0
    slide, shares_N = [], [0.0] * n_instances
    for i in range(INNER):
        best, holder = torch.zeros((), dtype=torch.float64), None
        for n, x in enumerate(bag.features_ND):
            value = scale * affine(p["reduce.weight"][i], p["reduce.bias"][i], list(x))
            if kept_NL[n, i] and value > best:
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


@pytest.mark.parametrize("n_instances", [2048, 2049, 5000])
def test_chunks_do_not_show(n_instances: int) -> None:
    model, bag = make_model().eval(), random_bag(n_instances, WIDTH)
    h_NL = torch.relu(bag.features_ND @ model.reduce.weight.T + model.reduce.bias)
    torch.testing.assert_close(model(bag).slide_vector_L, h_NL.max(dim=0).values)
    counts_N = torch.bincount(h_NL.argmax(dim=0), minlength=n_instances)
    torch.testing.assert_close(model(bag).attention_KN[0], counts_N / INNER, check_dtype=False)


def test_dropout_passes_its_share_on_to_the_next_patch_in_training_alone() -> None:
    inner = 4000
    model, bag = make_model(inner=inner), random_bag(30, WIDTH)
    with torch.no_grad():
        model.reduce.weight.zero_()
        model.reduce.bias.fill_(1)
    torch.manual_seed(0)
    output = model.train()(bag)
    torch.testing.assert_close(output.slide_vector_L, torch.full((inner,), 1 / (1 - DROPOUT), dtype=torch.float64))
    for n in range(3):  # the first patch that dropout kept holds the maximum
        share = (1 - DROPOUT) * DROPOUT**n
        assert abs(output.attention_N[n].item() - share) < 5 * (share * (1 - share) / inner) ** 0.5
    assert model.eval()(bag).attention_N[0] == 1
