"""DSMIL against a definition written out by hand: loops, one number at a time, in float64."""

import pytest
import torch
from literal import (
    affine,
    assert_gradients_equal,
    cross_entropy,
    random_bag,
    record_kept,
    softmax,
    stacked,
    total,
)
from torch import Tensor

from fedpath.core.bags import Bag
from fedpath.core.models import BagModel, BagOutput, build_model

N_CLASSES, WIDTH, ATTENTION = 3, 5, 4
WEIGHTS_C = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


def make_model(**options: object) -> BagModel:
    options = {"attention": ATTENTION} | options
    return build_model("dsmil", width=WIDTH, n_classes=N_CLASSES, options=options, seed=1).double()


def literal_dsmil(p: dict[str, Tensor], x_ND: Tensor, keeps: Tensor, dropout: float) -> dict[str, list]:
    """The released model's formulas with the values kept by dropout given; shares only names with the model."""
    n, queries, scores = len(x_ND), [], []
    first, first_bias = p["instance_and_hidden.weight"], p["instance_and_hidden.bias"]
    for x in x_ND:
        scores.append([affine(first[c], first_bias[c], list(x)) for c in range(N_CLASSES)])
        z = [affine(first[N_CLASSES + a], first_bias[N_CLASSES + a], list(x)).clamp(min=0) for a in range(ATTENTION)]
        queries.append([torch.tanh(affine(p["query.weight"][a], p["query.bias"][a], z)) for a in range(ATTENTION)])
    best, attention, pooled = [], [], []
    for c in range(N_CLASSES):
        critical = max(range(n), key=lambda i: scores[i][c].item())
        best.append(scores[critical][c])
        products = [total([a * b for a, b in zip(q, queries[critical], strict=True)]) for q in queries]
        attention.append(softmax([product / ATTENTION**0.5 for product in products]))
        values = x_ND * keeps / (1 - dropout)
        pooled.append([total([attention[c][i] * values[i, d] for i in range(n)]) for d in range(WIDTH)])
    # A convolution with C channels in and out, as wide as the features.
    kernels_CCD = p["bag_head.weight"].view(N_CLASSES, N_CLASSES, WIDTH)
    bag = [
        total([affine(kernels_CCD[c, other], torch.zeros(()), pooled[other]) for other in range(N_CLASSES)])
        + p["bag_head.bias"][c]
        for c in range(N_CLASSES)
    ]
    return {"instance": best, "attention": attention, "pooled": pooled, "bag": bag}


@pytest.mark.parametrize("n_instances", [1, 2, 19])
@pytest.mark.parametrize(("training", "dropout"), [(False, 0.4), (True, 0.4), (True, 0.0)])
@pytest.mark.parametrize("weights_C", [None, WEIGHTS_C])
def test_equals_the_literal_definition(
    n_instances: int, training: bool, dropout: float, weights_C: Tensor | None
) -> None:
    model, bag, target = make_model(dropout=dropout).train(training), random_bag(n_instances, WIDTH), 1
    kept = record_kept(model.dropout)
    torch.manual_seed(3)
    output = model(bag)
    keeps = kept[0] if training and dropout else torch.ones_like(bag.features_ND)
    expected = literal_dsmil(dict(model.named_parameters()), bag.features_ND, keeps, dropout if training else 0.0)

    logits = [(a + b) / 2 for a, b in zip(expected["instance"], expected["bag"], strict=True)]
    for got, wanted in (
        (output.logits_C, torch.stack(logits)),
        (output.attention_KN, stacked(expected["attention"])),
        (output.slide_vector_L, stacked(expected["pooled"]).flatten()),
        (output.branch_logits_KC, stacked([expected["instance"], expected["bag"]])),
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    streams = [cross_entropy(expected[stream], target, weights_C) for stream in ("instance", "bag")]
    assert_gradients_equal(model, model.loss(output, target, weights_C), 0.5 * streams[0] + 0.5 * streams[1])


def test_dropout_drops_its_share_in_training_alone() -> None:
    model, bag = make_model(dropout=0.4), random_bag(5000, WIDTH)
    kept = record_kept(model.dropout)
    torch.manual_seed(0)
    model.train()(bag)
    share = kept[0].double().mean().item()
    assert abs(share - 0.6) < 5 * (0.4 * 0.6 / kept[0].numel()) ** 0.5
    output = model.eval()(bag)
    torch.testing.assert_close(output.slide_vector_L, (output.attention_KN @ bag.features_ND).flatten())


def test_values_are_the_features_themselves_without_dropout() -> None:
    model, bag = make_model().train(), random_bag(6, WIDTH)
    torch.testing.assert_close(model(bag).slide_vector_L, (model(bag).attention_KN @ bag.features_ND).flatten())


def test_the_first_of_equal_best_patches_is_the_critical_one() -> None:
    model, one = make_model().eval(), random_bag(4, WIDTH)
    twice = Bag("slide", one.features_ND.repeat(2, 1), one.coords_N2.repeat(2, 1), 256)
    torch.testing.assert_close(model(twice).logits_C, model(one).logits_C)
    torch.testing.assert_close(model(twice).attention_KN, model(one).attention_KN.repeat(1, 2) / 2)


def test_the_loss_names_what_it_lacks() -> None:
    output = make_model()(random_bag(3, WIDTH))
    plain = BagOutput(output.logits_C, output.attention_KN, output.slide_vector_L)
    with pytest.raises(ValueError, match="both streams"):
        make_model().loss(plain, 0)
