"""CLAM against a definition written out by hand: loops, one number at a time, in float64."""

import math
from typing import Any

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
from fedpath.core.models.clam import ClamOutput, most_and_least, smooth_svm
from fedpath.core.models.dropout import keep_mask

N_CLASSES, WIDTH, INNER, ATTENTION, K_SAMPLE, DROPOUT = 3, 5, 4, 3, 3, 0.25
OPTIONS = {"inner": INNER, "attention": ATTENTION, "k_sample": K_SAMPLE}
WEIGHTS_C = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
BOTH = pytest.mark.parametrize("name", ["clam-sb", "clam-mb"])


def make_model(name: str, **options: object) -> BagModel:
    return build_model(name, width=WIDTH, n_classes=N_CLASSES, options=OPTIONS | options, seed=1).double()


def literal_svm(scores: list[Tensor], target: int) -> Tensor:
    """τ log Σ exp((Δ + s_j - s_y) / τ), τ = 1."""
    gaps = [(0 if j == target else 1) + score - scores[target] for j, score in enumerate(scores)]
    return torch.log(total([torch.exp(gap) for gap in gaps]))


def literal_hidden(p: dict[str, Tensor], x_D: Tensor, keeps_L: Tensor, scale: float) -> list[Tensor]:
    z = [affine(p["reduce.weight"][j], p["reduce.bias"][j], list(x_D)) for j in range(INNER)]
    return [scale * z[j] if z[j] > 0 and keeps_L[j] else torch.zeros_like(z[j]) for j in range(INNER)]


def literal_clam(
    p: dict[str, Tensor], x_ND: Tensor, keeps_inner: Tensor, keeps_gate: Tensor, dropout: float
) -> dict[str, Any]:
    """The paper's forward with the values kept by dropout given; shares only names with the model."""
    n, scale = len(x_ND), 1 / (1 - dropout)
    n_branches = len(p["score.weight"])
    hidden, scores = [], []
    for i, x in enumerate(x_ND):
        h = literal_hidden(p, x, keeps_inner[i], scale)
        gated = []
        for a in range(ATTENTION):
            content = affine(p["gate.weight"][a], p["gate.bias"][a], h)
            gate = affine(p["gate.weight"][ATTENTION + a], p["gate.bias"][ATTENTION + a], h)
            both = (scale * torch.tanh(content)) * (scale / (1 + torch.exp(-gate)))
            gated.append(both if keeps_gate[i, a] else torch.zeros_like(both))
        hidden.append(h)
        scores.append([affine(p["score.weight"][k], p["score.bias"][k], gated) for k in range(n_branches)])
    attention = [softmax([scores[i][k] for i in range(n)]) for k in range(n_branches)]
    pooled = [[total([row[i] * hidden[i][j] for i in range(n)]) for j in range(INNER)] for row in attention]
    of_class = [c if n_branches > 1 else 0 for c in range(N_CLASSES)]
    logits = [affine(p["slide_head.weight"][c], p["slide_head.bias"][c], pooled[of_class[c]]) for c in range(N_CLASSES)]
    return {"attention": attention, "pooled": pooled, "logits": logits}


def literal_instance_loss(
    p: dict[str, Tensor],
    x_ND: Tensor,
    attention: list[list[Tensor]],
    keeps_KML: Tensor,
    dropout: float,
    target: int,
    kind: str,
    subtyping: bool,
) -> Tensor:
    """The clustering term; of the k most and the k least attended rows, dropout kept the values given."""
    n, terms = len(x_ND), []
    k = min(K_SAMPLE, n // 2)
    one_loss = literal_svm if kind == "svm" else cross_entropy
    for c in range(N_CLASSES):
        if k == 0 or (c != target and not subtyping):
            continue
        branch = c if len(attention) > 1 else 0
        ranked = sorted(range(n), key=lambda i, row=attention[branch]: -row[i].item())
        weight, bias = p["instance_weight_CL2"][c], p["instance_bias_C2"][c]
        losses = []
        for place, i in enumerate(ranked[:k] + ranked[n - k :]):
            h = literal_hidden(p, x_ND[i], keeps_KML[branch, place], 1 / (1 - dropout))
            scores = [affine(weight[:, t], bias[t], h) for t in (0, 1)]
            if c == target:
                losses.append(one_loss(scores, 1 if place < k else 0))
            elif place < k:
                losses.append(one_loss(scores, 0))
        terms.append(total(losses) / len(losses))
    return total(terms) / max(1, len(terms))


@BOTH
@pytest.mark.parametrize("n_instances", [1, 2, 5, 17])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("kind", "subtyping", "weights_C"), [("svm", False, None), ("svm", True, WEIGHTS_C), ("ce", True, None)]
)
def test_equals_the_literal_definition(
    name: str, n_instances: int, training: bool, kind: str, subtyping: bool, weights_C: Tensor | None
) -> None:
    model = make_model(name, instance_loss=kind, subtyping=subtyping, bag_weight=0.6).train(training)
    bag, target = random_bag(n_instances, WIDTH), 1
    x_ND, p, dropout = bag.features_ND, dict(model.named_parameters()), DROPOUT if training else 0.0
    keeps_candidates = record_kept(model.dropout)
    torch.manual_seed(3)
    output = model(bag)
    torch.manual_seed(3)
    keeps_inner = keep_mask((n_instances, INNER), dropout) if training else torch.ones(n_instances, INNER)
    gate_dropout = 1 - (1 - dropout) ** 2
    keeps_gate = keep_mask((n_instances, ATTENTION), gate_dropout) if training else torch.ones(n_instances, ATTENTION)
    expected = literal_clam(p, x_ND, keeps_inner, keeps_gate, dropout)

    for got, wanted in (
        (output.logits_C, torch.stack(expected["logits"])),
        (output.attention_KN, stacked(expected["attention"])),
        (output.slide_vector_L, stacked(expected["pooled"]).flatten()),
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    instances = literal_instance_loss(
        p, x_ND, expected["attention"], keeps_candidates[0], dropout, target, kind, subtyping
    )
    expected_loss = 0.6 * cross_entropy(expected["logits"], target, weights_C) + 0.4 * instances
    assert_gradients_equal(model, model.loss(output, target, weights_C), expected_loss)


def test_defaults_are_those_of_the_authors() -> None:
    model = build_model("clam-mb", width=1024, n_classes=2, seed=0)
    assert model.reduce.weight.shape == (512, 1024)
    assert model.gate.weight.shape == (2 * 256, 512)
    assert model.score.weight.shape == (2, 256)
    assert build_model("clam-sb", width=1024, n_classes=2, seed=0).score.weight.shape == (1, 256)


@BOTH
def test_dropout_is_on_in_training_alone(name: str) -> None:
    model, bag = make_model(name), random_bag(5000, WIDTH)
    torch.manual_seed(0)
    slides = [model.train()(bag).slide_vector_L for _ in range(2)]
    assert not torch.equal(*slides)
    torch.testing.assert_close(slides[0], model.eval()(bag).slide_vector_L, rtol=0.2, atol=0.05)
    assert torch.equal(model(bag).slide_vector_L, model(bag).slide_vector_L)


def test_one_dropout_of_the_gate_is_dropout_of_both_halves() -> None:
    ones = torch.ones(200_000, dtype=torch.float64)
    torch.manual_seed(0)
    both = torch.nn.functional.dropout(ones, DROPOUT) * torch.nn.functional.dropout(ones, DROPOUT)
    once = torch.nn.functional.dropout(ones, 1 - (1 - DROPOUT) ** 2)
    torch.testing.assert_close(both.unique(), once.unique())
    share = (1 - DROPOUT) ** 2
    for kept in (both > 0, once > 0):
        assert abs(kept.double().mean().item() - share) < 5 * (share * (1 - share) / len(ones)) ** 0.5


@pytest.mark.parametrize(("n_instances", "k"), [(1, 0), (2, 1), (3, 1), (7, 3), (16, 8), (17, 8), (200, 8)])
@pytest.mark.parametrize("equal", [False, True])
def test_no_patch_gets_both_pseudo_labels(n_instances: int, k: int, equal: bool) -> None:
    scores_KN = torch.randn(4, n_instances, generator=torch.Generator().manual_seed(0)) * (0 if equal else 1)
    chosen_KM = most_and_least(scores_KN, 8)
    assert chosen_KM.shape == (4, 2 * k)
    for scores_N, chosen_M in zip(scores_KN, chosen_KM, strict=True):
        assert len(set(chosen_M.tolist())) == 2 * k
        ranked = scores_N.sort(descending=True).values
        assert torch.equal(scores_N[chosen_M], torch.cat([ranked[:k], ranked[n_instances - k :]]))


def test_smooth_svm_wants_a_margin() -> None:
    logits_BC = torch.tensor([[0.0, 0.0, 0.0], [5.0, 4.0, 4.0]], dtype=torch.float64)
    first, second = smooth_svm(logits_BC, torch.tensor([2, 0])).tolist()
    assert first == pytest.approx(math.log(1 + 2 * math.e))
    assert second == pytest.approx(math.log(3))  # just at the margin, where cross-entropy is lower


@BOTH
def test_other_classes_learn_from_the_instances_with_subtyping_alone(name: str) -> None:
    for subtyping in (False, True):
        model = make_model(name, subtyping=subtyping).eval()
        model.loss(model(random_bag(12, WIDTH)), 1).backward()
        gradient_CL2 = model.instance_weight_CL2.grad
        assert [bool(gradient_CL2[c].any()) for c in range(N_CLASSES)] == [subtyping, True, subtyping]


@BOTH
def test_a_slide_of_one_patch_has_no_instance_loss(name: str) -> None:
    model = make_model(name).eval()
    output = model(random_bag(1, WIDTH))
    assert output.candidate_logits_CM2.shape == (N_CLASSES, 0, 2)
    expected = 0.7 * cross_entropy(list(output.logits_C), 2)
    loss = model.loss(output, 2)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert model.instance_weight_CL2.grad is not None
    assert not model.instance_weight_CL2.grad.any()


@BOTH
def test_class_weights_leave_the_pseudo_labels_alone(name: str) -> None:
    model = make_model(name, subtyping=True).eval()
    output = model(random_bag(12, WIDTH))
    added = model.loss(output, 1, WEIGHTS_C) - model.loss(output, 1)
    torch.testing.assert_close(added, 0.7 * (WEIGHTS_C[1] - 1) * cross_entropy(list(output.logits_C), 1))


@BOTH
def test_equal_patches_are_pooled_to_themselves(name: str) -> None:
    model = make_model(name).eval()
    one = random_bag(1, WIDTH)
    many = Bag("slide", one.features_ND.expand(20, -1), one.coords_N2.expand(20, -1), 256)
    torch.testing.assert_close(model(many).logits_C, model(one).logits_C)


def test_the_loss_names_what_it_lacks() -> None:
    output = make_model("clam-sb")(random_bag(3, WIDTH))
    assert isinstance(output, ClamOutput)
    plain = BagOutput(output.logits_C, output.attention_KN, output.slide_vector_L)
    with pytest.raises(ValueError, match="candidates of CLAM"):
        make_model("clam-sb").loss(plain, 0)
