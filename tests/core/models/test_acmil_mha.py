"""ACMIL's multi-head variant against its definition with whole keys and values, patch by patch, in float64."""

import itertools

import pytest
import torch
from literal import affine, assert_gradients_equal, cross_entropy, random_bag, record_kept, softmax, total
from torch import Tensor

from fedpath.core.errors import ConfigError
from fedpath.core.models import BagModel, build_model
from fedpath.core.models.acmil_mha import head_similarity

N_BRANCHES, N_CLASSES, WIDTH, INNER, HEADS = 3, 2, 5, 16, 8
OPTIONS = {"inner": INNER, "n_branches": N_BRANCHES}
WEIGHTS_C = torch.tensor([0.5, 2.0], dtype=torch.float64)


def make_model(**options: object) -> BagModel:
    model = build_model("acmil-mha", width=WIDTH, n_classes=N_CLASSES, options=OPTIONS | options, seed=1).double()
    with torch.no_grad():  # at their initialisation near 0 the queries would hide mistakes
        model.query_KL.normal_(generator=torch.Generator().manual_seed(2))
    return model


def project(weight_OI: Tensor, bias_O: Tensor, vector: list[Tensor]) -> list[Tensor]:
    return [affine(weight, bias, vector) for weight, bias in zip(weight_OI, bias_O, strict=True)]


def of_head(vector: list[Tensor], head: int) -> list[Tensor]:
    size = len(vector) // HEADS
    return vector[head * size : (head + 1) * size]


def literal_finish(
    p: dict[str, Tensor], prefix: str, k: int, h: list[list[Tensor]], attention: list[list[Tensor]], keep_L: Tensor
) -> list[Tensor]:
    """Values of every patch, pooled by each head's attention; output projection, dropout, LayerNorm.

    ``keep_L`` is 0 for what dropout drops, else its scale.
    """
    values = [project(p[f"{prefix}.to_value.weight_KOI"][k], p[f"{prefix}.to_value.bias_KO"][k], row) for row in h]
    joined = []
    for m in range(HEADS):
        heads = [of_head(value, m) for value in values]
        joined += [total([a * v[j] for a, v in zip(attention[m], heads, strict=True)]) for j in range(len(heads[0]))]
    out = project(p[f"{prefix}.to_output.weight_KOI"][k], p[f"{prefix}.to_output.bias_KO"][k], joined)
    out = [o * keep for o, keep in zip(out, keep_L, strict=True)]
    mean = total(out) / len(out)
    deviation = (total([(o - mean) ** 2 for o in out]) / len(out) + 1e-6) ** 0.5
    weight_L, bias_L = p[f"{prefix}.norm_weight_KL"][k], p[f"{prefix}.norm_bias_KL"][k]
    return [(o - mean) / deviation * w + b for o, w, b in zip(out, weight_L, bias_L, strict=True)]


def literal_mha(
    p: dict[str, Tensor], x_ND: Tensor, open_RN: Tensor, keep_KL: Tensor, keep_slide_L: Tensor
) -> dict[str, Tensor]:
    """The variant's formulas; row k · 8 + m of ``open_RN`` says which patches head m of branch k may see."""
    n, size = len(x_ND), INNER // HEADS
    h = [[total([w * v for w, v in zip(row, x, strict=True)]).clamp(min=0) for row in p["reduce.weight"]] for x in x_ND]
    attention: list[list[list[Tensor]]] = []
    for k in range(N_BRANCHES):
        query = project(p["to_query.weight_KOI"][k], p["to_query.bias_KO"][k], list(p["query_KL"][k]))
        keys = [project(p["to_key.weight_KOI"][k], p["to_key.bias_KO"][k], row) for row in h]
        branch = []
        for m in range(HEADS):
            seen = [i for i in range(n) if open_RN[k * HEADS + m, i]]
            scores = [
                total([a * b for a, b in zip(of_head(query, m), of_head(keys[i], m), strict=True)]) / size**0.5
                for i in seen
            ]
            weights = dict(zip(seen, softmax(scores), strict=True))
            branch.append([weights.get(i, torch.zeros((), dtype=torch.float64)) for i in range(n)])
        attention.append(branch)

    branch_logits = []
    for k in range(N_BRANCHES):
        vector = literal_finish(p, "attend", k, h, attention[k], keep_KL[k])
        branch_logits.append(project(p["branch_head.weight_KOI"][k], p["branch_head.bias_KO"][k], vector))
    mean = [
        [total([attention[k][m][i] for k in range(N_BRANCHES)]) / N_BRANCHES for i in range(n)] for m in range(HEADS)
    ]
    slide = literal_finish(p, "slide_attend", 0, h, mean, keep_slide_L)

    cosines = []
    for m, (i, j) in itertools.product(range(HEADS), itertools.combinations(range(N_BRANCHES), 2)):
        one, other = attention[i][m], attention[j][m]
        norms = [total([a * a for a in row]) ** 0.5 for row in (one, other)]
        cosines.append(total([a * b for a, b in zip(one, other, strict=True)]) / (norms[0] * norms[1]))
    return {
        "logits": torch.stack(project(p["slide_head.weight"], p["slide_head.bias"], slide)),
        "attention": torch.stack([torch.stack(row) for branch in attention for row in branch]),
        "slide": torch.stack(slide),
        "branch_logits": torch.stack([torch.stack(row) for row in branch_logits]),
        "similarity": total(cosines) / len(cosines),
    }


@pytest.mark.parametrize("n_instances", [1, 2, 11])
@pytest.mark.parametrize(("training", "dropout"), [(False, 0.1), (True, 0.1), (True, 0.0)])
@pytest.mark.parametrize("weights_C", [None, WEIGHTS_C])
def test_equals_the_definition_with_whole_keys_and_values(
    n_instances: int, training: bool, dropout: float, weights_C: Tensor | None
) -> None:
    model = make_model(dropout=dropout).train(training)
    bag, target = random_bag(n_instances, WIDTH), 1
    kept_branches, kept_slide = record_kept(model.attend.dropout), record_kept(model.slide_attend.dropout)
    torch.manual_seed(3)
    output = model(bag)
    scale, p = 1 / (1 - dropout) if training else 1.0, dict(model.named_parameters())
    expected = literal_mha(
        p, bag.features_ND, output.attention_KN > 0, scale * kept_branches[0], scale * kept_slide[0][0]
    )

    assert output.branch_logits_KC is not None
    for got, name in (
        (output.logits_C, "logits"),
        (output.attention_KN, "attention"),
        (output.slide_vector_L, "slide"),
        (output.branch_logits_KC, "branch_logits"),
        (head_similarity(output.attention_KN), "similarity"),
    ):
        torch.testing.assert_close(got, expected[name], rtol=1e-9, atol=1e-11, msg=name)

    branches = [cross_entropy(list(row), target, weights_C) for row in expected["branch_logits"]]
    slide = cross_entropy(list(expected["logits"]), target, weights_C)
    wanted = total(branches) / N_BRANCHES + slide + expected["similarity"]
    assert_gradients_equal(model, model.loss(output, target, weights_C), wanted)


def test_masks_in_each_branch_and_head_in_training_and_nothing_in_eval() -> None:
    model, bag = make_model(), random_bag(30, WIDTH)
    masked_RN = model.train()(bag).attention_KN == 0
    assert masked_RN.sum(dim=1).tolist() == [6] * N_BRANCHES * HEADS
    assert len({tuple(row.nonzero().flatten().tolist()) for row in masked_RN}) > 1
    assert (model.eval()(bag).attention_KN > 0).all()
    assert (make_model(mask_ratio=0.0).train()(bag).attention_KN > 0).all()


def test_one_branch_has_no_pairs_to_keep_apart() -> None:
    output = make_model(n_branches=1).train()(random_bag(5, WIDTH))
    assert output.attention_KN.shape == (HEADS, 5)
    assert head_similarity(output.attention_KN).item() == 0


def test_queries_start_near_zero() -> None:
    query_KL = build_model("acmil-mha", width=1024, n_classes=2, options={}, seed=0).query_KL
    assert query_KL.shape == (5, 512)
    assert query_KL.std().item() == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize(("width", "inner"), [(384, 128), (1024, 512), (166, 88), (3, 8)])
def test_inner_width_is_the_authors_pair_or_a_multiple_of_the_heads(width: int, inner: int) -> None:
    model = build_model("acmil-mha", width=width, n_classes=2, options={}, seed=0).eval()
    assert model(random_bag(2, width)).slide_vector_L.shape == (inner,)


def test_an_inner_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        build_model("acmil-mha", width=WIDTH, n_classes=2, options={"inner": 12}, seed=0)
