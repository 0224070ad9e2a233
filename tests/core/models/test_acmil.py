"""ACMIL against a definition written out by hand: loops, one number at a time, in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from fedpath.core.bags import Bag
from fedpath.core.models import BagModel, BagOutput, build_model
from fedpath.core.models.acmil import branch_similarity, mask_top_instances

N_BRANCHES, N_CLASSES, WIDTH, INNER, ATTENTION = 3, 2, 5, 4, 6
OPTIONS = {"inner": INNER, "attention": ATTENTION, "n_branches": N_BRANCHES}
WEIGHTS_C = torch.tensor([0.5, 2.0], dtype=torch.float64)


def make_bag(n_instances: int, width: int = WIDTH, dtype: torch.dtype = torch.float64) -> Bag:
    generator = torch.Generator().manual_seed(n_instances)
    features_ND = torch.randn(n_instances, width, generator=generator, dtype=torch.float64).to(dtype)
    return Bag("slide", features_ND, torch.zeros(n_instances, 2, dtype=torch.int64), 256)


def make_model(**options: object) -> BagModel:
    return build_model("acmil", width=WIDTH, n_classes=N_CLASSES, options=OPTIONS | options, seed=1).double()


def literal_acmil(
    p: dict[str, Tensor], x_ND: Tensor, kept: list[list[int]], target: int, weights_C: Tensor | None
) -> dict[str, Tensor]:
    """The paper's formulas with the instances ``kept[k]`` left in branch k; shares only names with the model."""
    n = len(x_ND)
    hidden = [
        [
            sum((p["reduce.weight"][i, d] * x[d] for d in range(WIDTH)), x.new_zeros(())).clamp(min=0)
            for i in range(INNER)
        ]
        for x in x_ND
    ]

    def affine(weight: Tensor, bias: Tensor, vector: list[Tensor]) -> Tensor:
        return sum((w * v for w, v in zip(weight, vector, strict=True)), bias)

    def cross_entropy(logits: list[Tensor]) -> Tensor:
        loss = -(logits[target] - torch.log(sum((torch.exp(z) for z in logits), x_ND.new_zeros(()))))
        return loss if weights_C is None else weights_C[target] * loss

    scores = []
    for h in hidden:
        gated = []
        for a in range(ATTENTION):
            content = affine(p["gate.weight"][a], p["gate.bias"][a], h)
            gate = affine(p["gate.weight"][ATTENTION + a], p["gate.bias"][ATTENTION + a], h)
            gated.append(torch.tanh(content) / (1 + torch.exp(-gate)))
        scores.append([affine(p["score.weight"][k], p["score.bias"][k], gated) for k in range(N_BRANCHES)])

    attention = []
    for k in range(N_BRANCHES):
        total = sum((torch.exp(scores[i][k]) for i in kept[k]), x_ND.new_zeros(()))
        attention.append([torch.exp(scores[i][k]) / total if i in kept[k] else x_ND.new_zeros(()) for i in range(n)])

    branch_logits = []
    for k in range(N_BRANCHES):
        pooled = [sum((attention[k][i] * hidden[i][j] for i in range(n)), x_ND.new_zeros(())) for j in range(INNER)]
        head, bias = p["branch_weight_KCL"][k], p["branch_bias_KC"][k]
        branch_logits.append([affine(head[c], bias[c], pooled) for c in range(N_CLASSES)])

    mean_attention = [sum(attention[k][i] for k in range(N_BRANCHES)) / N_BRANCHES for i in range(n)]
    slide = [sum((mean_attention[i] * hidden[i][j] for i in range(n)), x_ND.new_zeros(())) for j in range(INNER)]
    logits = [affine(p["slide_head.weight"][c], p["slide_head.bias"][c], slide) for c in range(N_CLASSES)]

    cosines = []
    for one, other in itertools.combinations(attention, 2):
        dot = sum(a * b for a, b in zip(one, other, strict=True))
        cosines.append(dot / (math.prod([sum(a * a for a in row) for row in (one, other)]) ** 0.5))
    return {
        "logits": torch.stack(logits),
        "attention": torch.stack([torch.stack(row) for row in attention]),
        "slide_vector": torch.stack(slide),
        "branch_logits": torch.stack([torch.stack(row) for row in branch_logits]),
        "branches": sum(cross_entropy(row) for row in branch_logits) / N_BRANCHES,
        "slide": cross_entropy(logits),
        "similarity": sum(cosines) / len(cosines),
    }


@pytest.mark.parametrize("n_instances", [1, 2, 7, 10, 23])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("weights_C", [None, WEIGHTS_C])
def test_equals_the_literal_definition(n_instances: int, training: bool, weights_C: Tensor | None) -> None:
    model, bag, target = make_model().train(training), make_bag(n_instances), 1
    torch.manual_seed(3)
    output = model(bag)
    kept = [[i for i in range(n_instances) if row[i] > 0] for row in output.attention_KN]
    expected = literal_acmil(dict(model.named_parameters()), bag.features_ND, kept, target, weights_C)

    assert output.branch_logits_KC is not None
    for got, name in (
        (output.logits_C, "logits"),
        (output.attention_KN, "attention"),
        (output.slide_vector_L, "slide_vector"),
        (output.branch_logits_KC, "branch_logits"),
        (branch_similarity(output.attention_KN), "similarity"),
    ):
        torch.testing.assert_close(got, expected[name], rtol=1e-10, atol=1e-12, msg=name)
    torch.testing.assert_close(output.attention_N.sum(), torch.tensor(1.0, dtype=torch.float64))

    loss = model.loss(output, target, weights_C)
    expected_loss = expected["branches"] + expected["slide"] + expected["similarity"]
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=1e-12)
    names = [name for name, _ in model.named_parameters()]
    got_gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    gradients = torch.autograd.grad(expected_loss, list(model.parameters()), allow_unused=True)
    for name, got, gradient in zip(names, got_gradients, gradients, strict=True):
        wanted = torch.zeros_like(got) if gradient is None else gradient
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize(("n_instances", "masked"), [(1, 0), (2, 1), (7, 4), (10, 6), (11, 6), (200, 6)])
def test_masks_this_many_of_the_top_ten_in_each_branch(n_instances: int, masked: int) -> None:
    scores_KN = torch.randn(5, n_instances, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    drawn = [mask_top_instances(scores_KN, 10, 0.6) for _ in range(40)]
    top_Kk = scores_KN.topk(min(10, n_instances), dim=1).indices
    for result_KN in drawn:
        is_masked_KN = result_KN == float("-inf")
        assert is_masked_KN.sum(dim=1).tolist() == [masked] * 5
        assert is_masked_KN.gather(1, top_Kk).sum(dim=1).tolist() == [masked] * 5  # none outside the top
        assert torch.equal(result_KN[~is_masked_KN], scores_KN[~is_masked_KN])
    if masked > 0:
        ever_KN = torch.stack(drawn).isinf().any(dim=0)
        assert ever_KN.gather(1, top_Kk).all()  # each of the top is drawn some time
        assert any(not torch.equal(result_KN[0].isinf(), result_KN[1].isinf()) for result_KN in drawn)


def test_masks_a_random_part_in_training_and_nothing_in_eval() -> None:
    model, bag = make_model(), make_bag(30)
    assert (model.train()(bag).attention_KN == 0).sum(dim=1).tolist() == [6] * N_BRANCHES
    assert (model.eval()(bag).attention_KN > 0).all()
    assert (make_model(mask_ratio=0.0).train()(bag).attention_KN > 0).all()


def test_evaluation_is_not_random_even_with_dropout() -> None:
    model, bag = make_model(dropout=0.5), make_bag(30)
    model.eval()
    assert torch.equal(model(bag).logits_C, model(bag).logits_C)
    model.train()
    assert not torch.equal(model(bag).logits_C, model(bag).logits_C)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_of_any_float_type_meet_the_model_in_its_own(dtype: torch.dtype) -> None:
    model = build_model("acmil", width=WIDTH, n_classes=N_CLASSES, options=OPTIONS, seed=1).eval()
    bag = make_bag(9, dtype=dtype)
    widened = Bag("slide", bag.features_ND.float(), bag.coords_N2, 256)
    output = model(bag)
    assert output.logits_C.dtype == torch.float32
    assert torch.equal(output.logits_C, model(widened).logits_C)


def test_one_branch_has_no_pairs_to_keep_apart() -> None:
    model = make_model(n_branches=1).train()
    assert branch_similarity(model(make_bag(5)).attention_KN).item() == 0
    assert math.isfinite(model.loss(model(make_bag(5)), 0, None).item())


def test_input_norm_makes_every_instance_zero_mean_and_unit_variance() -> None:
    model, bag = make_model(input_norm="layer").eval(), make_bag(6)
    moved = Bag("slide", bag.features_ND * 300 + 40, bag.coords_N2, 256)
    torch.testing.assert_close(model(moved).logits_C, model(bag).logits_C, rtol=1e-3, atol=1e-4)
    x_ND = bag.features_ND
    x_ND = (x_ND - x_ND.mean(dim=1, keepdim=True)) / (x_ND.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()
    plain = make_model()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "input_norm" not in name})
    normalised = Bag("slide", x_ND, bag.coords_N2, 256)
    torch.testing.assert_close(plain.eval()(normalised).logits_C, model(bag).logits_C)


def test_bag_norm_takes_away_what_all_patches_share() -> None:
    model, bag = make_model(input_norm="bag").eval(), make_bag(40)
    x_ND = bag.features_ND
    columns = [x_ND[:, d].tolist() for d in range(WIDTH)]
    means = [math.fsum(column) / 40 for column in columns]
    sds = [math.sqrt(math.fsum((v - m) ** 2 for v in c) / 40 + 1e-5) for c, m in zip(columns, means, strict=True)]
    expected_ND = (x_ND - torch.tensor(means, dtype=x_ND.dtype)) / torch.tensor(sds, dtype=x_ND.dtype)
    torch.testing.assert_close(model.input_norm(x_ND), expected_ND)

    # Another stain: every feature scaled and shifted in the same way in all patches.
    scale_D, shift_D = torch.tensor([2.0, 0.5, 3.0, 1.0, 4.0]), torch.tensor([9.0, -5.0, 0.0, 1.0, 30.0])
    stained = Bag("slide", x_ND * scale_D + shift_D, bag.coords_N2, 256)
    torch.testing.assert_close(model(stained).logits_C, model(bag).logits_C, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("input_norm", ["layer", "bag"])
@pytest.mark.parametrize("n_instances", [1, 2])
def test_input_norm_of_tiny_or_constant_bags_stays_finite(input_norm: str, n_instances: int) -> None:
    model = make_model(input_norm=input_norm).train()
    bag = Bag("slide", torch.full((n_instances, WIDTH), 1000.0), torch.zeros(n_instances, 2, dtype=torch.int64), 256)
    model.loss(model(bag), 0).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_class_weights_scale_the_classification_terms_only() -> None:
    model = make_model().eval()
    output = model(make_bag(8))
    similarity = branch_similarity(output.attention_KN)
    plain = model.loss(output, 1, None) - similarity
    torch.testing.assert_close(model.loss(output, 1, WEIGHTS_C) - similarity, 2.0 * plain)


@pytest.mark.parametrize("options", [{}, {"input_norm": "layer"}, {"input_norm": "bag"}])
def test_groups_are_disjoint_and_cover_everything(options: dict[str, object]) -> None:
    model = make_model(**options)
    names = [name for group in model.parameter_groups().values() for name in group]
    assert sorted(names) == sorted(model.state_dict())
    assert len(set(names)) == len(names)


def test_inner_width_follows_the_authors_pairs() -> None:
    for width, inner in ((384, 128), (512, 256), (768, 384), (1024, 512), (1536, 768), (166, 83)):
        model = build_model("acmil", width=width, n_classes=2, options={}, seed=0)
        assert model.eval()(make_bag(2, width)).slide_vector_L.shape == (inner,)


def test_the_slide_pools_with_the_mean_of_the_branches() -> None:
    model, bag = make_model().train(), make_bag(30)
    output = model(bag)
    h_NL = torch.relu(bag.features_ND @ model.reduce.weight.T)
    pooled_L = sum(sum(row[i] for row in output.attention_KN) / N_BRANCHES * h_NL[i] for i in range(30))
    torch.testing.assert_close(output.slide_vector_L, pooled_L)
    torch.testing.assert_close(output.logits_C, model.slide_head.weight @ pooled_L + model.slide_head.bias)


SURE, UNSURE, APART, ALIKE = [20.0, -20.0], [0.0, 0.0], torch.eye(3), torch.ones(3, 3)


@pytest.mark.parametrize(
    ("branches", "slide", "attention_KN", "loss"),
    [
        ([SURE, SURE, SURE], SURE, APART, 0.0),
        ([UNSURE, SURE, UNSURE], SURE, APART, math.log(2) * 2 / 3),
        ([SURE, SURE, SURE], UNSURE, APART, math.log(2)),
        ([SURE, SURE, SURE], SURE, ALIKE, 1.0),
        ([SURE, SURE, SURE], SURE, torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]), 1 / 3),
        ([UNSURE, UNSURE, UNSURE], UNSURE, ALIKE, 2 * math.log(2) + 1.0),
    ],
)
def test_each_term_of_the_loss_alone(
    branches: list[list[float]], slide: list[float], attention_KN: Tensor, loss: float
) -> None:
    output = BagOutput(
        logits_C=torch.tensor(slide),
        attention_KN=attention_KN / attention_KN.sum(dim=1, keepdim=True),
        slide_vector_L=torch.zeros(INNER),
        branch_logits_KC=torch.tensor(branches),
    )
    assert make_model().loss(output, 0).item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("missing", ["acmil", "acmil-mha"])
def test_the_loss_of_another_models_output_is_refused(missing: str) -> None:
    model = build_model(missing, width=WIDTH, n_classes=N_CLASSES, options={"inner": 8}, seed=1)
    output = build_model("abmil", width=WIDTH, n_classes=N_CLASSES, options={"inner": 8}, seed=1)(make_bag(3))
    with pytest.raises(ValueError, match="branch logits"):
        model.loss(output, 0)


def test_dropout_in_training_alone_with_the_expectation_of_evaluation() -> None:
    bag = make_bag(200)
    model = make_model(dropout=0.25, mask_ratio=0.0)
    model.train()
    torch.manual_seed(0)
    slides_BL = torch.stack([model(bag).slide_vector_L.detach() for _ in range(300)])
    # The attention moves a little with dropout; the vectors agree far within the quarter that is dropped.
    torch.testing.assert_close(slides_BL.mean(dim=0), model.eval()(bag).slide_vector_L, rtol=0.05, atol=1e-3)
    assert (slides_BL.std(dim=0) > 0).all()
