"""BD against its formulas, written out; which patient trains what; what each term may not reach."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from literal import record_kept
from literal_clinical import (
    ENCODERS,
    STANDARD,
    WIDTH,
    assert_same_gradients,
    clinical_encoding,
    layer,
    literal_vector,
    patient,
    positive,
    probabilities,
    record,
    small_model,
)
from torch import Tensor

from fedpath.core.bags import Bag
from fedpath.core.clinical.standard import Standard
from fedpath.core.errors import ConfigError
from fedpath.core.models import build_model
from fedpath.core.models.multimodal.bd import Bd

PUBLISHED = {
    "single_loss": 1.0,
    "multi_loss": 1.0,
    "to_single": 1.0,
    "to_multi": 1.0,
    "single_in_multi": 0.0,
    "encoder_loss": 1.0,
}
WEIGHTS_C = torch.tensor([9.0, 0.4, 9.0], dtype=torch.float64)
MULTIMODAL = {"clinical", "fusion", "multi_head"}
KNOWN = (61.0, 2, None, 31.0)


def make(**options: Any) -> Bd:
    model = small_model("bd", **{"prompt": 4, "temperature": 3.0} | options)
    assert isinstance(model, Bd)
    return model


def literal(
    model: Bd, bag: Bag, values: tuple[float | None, ...], target: int, kept: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return logits and loss; ``kept`` are the values that dropout left of each branch's hidden layer."""
    state, options = dict(model.named_parameters()), model.options
    encoded = model.encoder(bag)
    slide = encoded.slide_vector_L
    share = 1 - options.dropout

    guided = positive(layer(state, "single.guide.0", slide))
    single_hidden = positive(layer(state, "single.fusion.0", torch.cat([guided, state["single.prompt"]])))
    single = layer(state, "single.head", single_hidden * kept[0] / share)
    loss = torch.zeros((), dtype=torch.float64)
    if options.single_loss:
        loss = loss - options.single_loss * WEIGHTS_C[target] * torch.log(probabilities(single)[target])
    if options.encoder_loss:
        loss = loss + options.encoder_loss * model.encoder.loss(encoded, target, WEIGHTS_C)
    if not values:
        return single, loss

    both = torch.cat([slide, clinical_encoding(state, literal_vector(*values))])
    multi_hidden = positive(layer(state, "multi.fusion.0", both))
    if not options.multi_loss:
        kept = [kept[0], torch.ones_like(kept[0])]
    multi = layer(state, "multi.head", multi_hidden * kept[1] / share) + options.single_in_multi * single.detach()
    if options.multi_loss:
        loss = loss - options.multi_loss * WEIGHTS_C[target] * torch.log(probabilities(multi)[target])
    if options.to_single:
        teacher = probabilities(multi.detach(), options.temperature)
        taught = probabilities(single, options.temperature)
        loss = loss + options.to_single * options.temperature**2 * (teacher * torch.log(teacher / taught)).sum()
    if options.to_multi:
        distance = ((multi_hidden - single_hidden.detach()) ** 2).sum() / options.hidden
        loss = loss + options.to_multi * distance
    return (multi if options.multi_loss else single), loss


TERMS = {
    "all terms": {
        "single_loss": 0.7,
        "multi_loss": 1.3,
        "to_single": 0.5,
        "to_multi": 2.0,
        "single_in_multi": 0.6,
        "encoder_loss": 0.25,
    },
    "as it is": PUBLISHED | {"single_in_multi": 1.0},
    "as published": PUBLISHED,
    "cross-entropies alone": PUBLISHED | {"to_single": 0, "to_multi": 0, "encoder_loss": 0},
    "and to the single-modal branch": PUBLISHED | {"to_multi": 0, "encoder_loss": 0},
    "and to the multi-modal branch": PUBLISHED | {"to_single": 0, "encoder_loss": 0},
    "single-modal branch taught by the other": PUBLISHED | {"single_loss": 0, "to_multi": 0},
    "multi-modal branch taught by the other": PUBLISHED | {"multi_loss": 0, "to_single": 0},
    "single-modal branch alone": PUBLISHED | {"multi_loss": 0, "to_single": 0, "to_multi": 0},
}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("values", [KNOWN, (None, None, 1, None), ()], ids=["table", "one field", "no table"])
@pytest.mark.parametrize("terms", TERMS)
def test_follows_its_formulas(encoder: str, values: tuple[float | None, ...], terms: str) -> None:
    if encoder != "abmil" and terms != "all terms":
        return
    model, bag, target = make(encoder=encoder, dropout=0.5, **TERMS[terms]), patient(*values), 1
    kept = [record_kept(model.single.dropout), record_kept(model.multi.dropout)]
    torch.manual_seed(0)
    output = model(bag)
    logits, loss = literal(model, bag, values, target, [calls[0] for calls in kept if calls])
    torch.testing.assert_close(output.logits_C, logits, rtol=1e-10, atol=1e-12)
    assert output.route == ("multi-modal" if values and TERMS[terms]["multi_loss"] else "single-modal")
    assert_same_gradients(model, model.loss(output, target, WEIGHTS_C), loss)


def gradients(values: tuple[float | None, ...], **options: Any) -> dict[str, Tensor | None]:
    model = make(**PUBLISHED | {"dropout": 0.0} | options)
    model.loss(model(patient(*values)), 1).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("term", "taught", "untouched"),
    [("to_single", "single.", "multi."), ("to_multi", "multi.fusion.", "single.")],
)
def test_a_branch_is_not_changed_by_what_it_teaches_the_other(term: str, taught: str, untouched: str) -> None:
    with_it, without = gradients(KNOWN), gradients(KNOWN, **{term: 0})
    for name, gradient in with_it.items():
        assert gradient is not None
        other = without[name]
        assert other is not None
        if name.startswith(untouched):
            assert torch.equal(gradient, other), name
        if name.startswith(taught):
            assert not torch.equal(gradient, other), name
    if term == "to_multi":
        assert not torch.equal(with_it["multi.clinical.0.weight"], without["multi.clinical.0.weight"])
        assert torch.equal(with_it["multi.head.weight"], without["multi.head.weight"])


def test_the_distance_of_the_features_is_a_mean_over_their_width() -> None:
    """λ means the same whatever the width: of a wider layer the sum would drown the cross-entropies."""
    model = make(**PUBLISHED | {"dropout": 0.0})
    output = model(patient(*KNOWN))
    apart = replace(output, multi_hidden_H=output.multi_hidden_H + 1)
    difference = (output.multi_hidden_H - output.single_hidden_H).mean()
    torch.testing.assert_close(model.loss(apart, 1) - model.loss(output, 1), 1 + 2 * difference)


def test_a_patient_without_a_table_leaves_the_multimodal_groups_alone() -> None:
    model = make()
    groups = {name: group for group, names in model.parameter_groups().items() for name in names}
    without = gradients(())
    assert {groups[name] for name, gradient in without.items() if gradient is None} == MULTIMODAL
    assert {groups[name] for name, gradient in without.items() if gradient is not None} == {
        "image",
        "prompt",
        "single_head",
    }
    assert all(gradient is not None for gradient in gradients(KNOWN).values())


def test_the_prediction_without_a_table_depends_on_no_multimodal_parameter() -> None:
    model = make().eval()
    bag, full = patient(), patient(*KNOWN)
    before, before_full = model(bag), model(full)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("multi."):
                parameter.fill_(float("nan"))
    after = model(bag)
    assert torch.equal(after.logits_C, before.logits_C)
    assert torch.equal(model.loss(after, 2), model.loss(before, 2))
    assert before_full.logits_C.isfinite().all()
    assert model(full).logits_C.isnan().all()
    assert not torch.equal(before.logits_C, before_full.logits_C)


@pytest.mark.parametrize(
    ("options", "with_table", "without"),
    [
        ({}, MULTIMODAL | {"image", "prompt", "single_head"}, {"image", "prompt", "single_head"}),
        ({"single_loss": 0}, MULTIMODAL | {"image", "prompt", "single_head"}, {"image"}),
        (
            {"multi_loss": 0, "to_single": 0},
            {"clinical", "fusion", "image", "prompt", "single_head"},
            {"image", "prompt", "single_head"},
        ),
        (
            {"multi_loss": 0, "to_single": 0, "to_multi": 0},
            {"image", "prompt", "single_head"},
            {"image", "prompt", "single_head"},
        ),
    ],
)
def test_the_groups_it_says_it_trains_are_those_that_learn(
    options: dict[str, Any], with_table: set[str], without: set[str]
) -> None:
    for values, expected in ((KNOWN, with_table), ((), without)):
        model = make(**options)
        bag = patient(*values)
        assert model.trained_groups(bag) == expected
        model.loss(model(bag), 1).backward()
        state = dict(model.named_parameters())
        learned = {
            group
            for group, names in model.parameter_groups().items()
            if any(name in state and state[name].grad is not None for name in names)
        }
        assert learned == expected


@pytest.mark.parametrize(
    "standard",
    [Standard(0), Standard(20, shares=STANDARD.shares)],
    ids=["nobody has clinical data", "nobody reported the only field it has"],
)
def test_a_record_that_nothing_was_agreed_about_is_none(standard: Standard) -> None:
    model = make()
    model.use_standard(standard)
    model.eval()
    with_table, without = model(patient(61.0, None, None, None)), model(patient())
    assert with_table.route == without.route == "single-modal"
    assert torch.equal(with_table.logits_C, without.logits_C)
    assert model.trained_groups(patient(61.0, None, None, None)) == {"image", "prompt", "single_head"}


def test_what_was_agreed_on_is_part_of_the_state() -> None:
    model, other = make(), make()
    other.use_standard(Standard(0))
    assert other(patient(*KNOWN)).route == "single-modal"
    other.load_state_dict(model.state_dict())
    assert other(patient(*KNOWN)).route == "multi-modal"
    assert torch.equal(other.eval()(patient(*KNOWN)).logits_C, model.eval()(patient(*KNOWN)).logits_C)
    assert model.parameter_groups()["standard"] == [
        f"coder.{name}" for name in ("patients", "mean_F", "sd_F", "typical_E")
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"single_loss": 0, "to_single": 0}, ["single-modal branch", "single_loss", "to_single"]),
        ({"multi_loss": 0}, ["multi_loss = 0", "to_single", "set it to 0"]),
        ({"single_loss": 0, "encoder_loss": 0}, ["encoder_loss = 0", "trains nothing"]),
        ({"to_multi": -1.0}, ["model.options.to_multi = -1.0"]),
        ({"to_multi": float("inf")}, ["model.options.to_multi = inf"]),
        ({"to_multi": float("nan")}, ["model.options.to_multi = nan"]),
        ({"temperature": 0.0}, ["model.options.temperature = 0.0"]),
        ({"temperature": 1e9}, ["model.options.temperature"]),
        ({"prompt": 0}, ["model.options.prompt = 0"]),
        ({"dropout": 1.0}, ["model.options.dropout = 1.0"]),
    ],
)
def test_options_that_leave_somebody_without_a_lesson_are_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**options)
    for word in words:
        assert word in str(caught.value)


def test_the_loss_of_another_models_output_is_refused() -> None:
    model = make()
    with pytest.raises(ValueError, match="its own forward"):
        model.loss(model.encoder(patient()), 1)


def test_a_record_of_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="2 fields, where the schema has 4"):
        make()(replace(patient(), clinical=record(61.0, 1)))


def test_without_a_seed_of_its_own_the_prompt_starts_with_length_one() -> None:
    model = build_model("image-only", width=WIDTH, n_classes=2, options={"prompt": 4096}, seed=0)
    assert model.state_dict()["single.prompt"].norm().item() == pytest.approx(1, abs=0.05)
