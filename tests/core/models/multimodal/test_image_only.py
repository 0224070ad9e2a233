"""Image-only is the single-modal part of BD: where nobody has clinical data, both are one model to the bit."""

from collections.abc import Callable

import pytest
import torch
from literal import record_kept
from literal_clinical import (
    ENCODERS,
    N_CLASSES,
    SCHEMA,
    WIDTH,
    assert_same_gradients,
    layer,
    patient,
    positive,
    probabilities,
    record,
    small_model,
)

from fedpath.core.bags import Bag
from fedpath.core.models import BagModel, build_model
from fedpath.core.models.multimodal.image_only import ImageOnly
from fedpath.core.models.randomness import seeded


@pytest.mark.parametrize("encoder", ENCODERS)
def test_follows_its_formulas(encoder: str) -> None:
    model, bag, target = (
        small_model("image-only", encoder=encoder, prompt=4, dropout=0.5, encoder_loss=0.3),
        patient(),
        2,
    )
    assert isinstance(model, ImageOnly)
    weights_C, state = torch.tensor([9, 9, 0.4], dtype=torch.float64), dict(model.named_parameters())
    kept = record_kept(model.single.dropout)
    output = model(bag)
    encoded = model.encoder(bag)
    guided = positive(layer(state, "single.guide.0", encoded.slide_vector_L))
    hidden = positive(layer(state, "single.fusion.0", torch.cat([guided, state["single.prompt"]])))
    logits = layer(state, "single.head", hidden * kept[0] / 0.5)
    torch.testing.assert_close(output.logits_C, logits, rtol=1e-10, atol=1e-12)
    loss = -0.4 * torch.log(probabilities(logits)[target]) + 0.3 * model.encoder.loss(encoded, target, weights_C)
    assert_same_gradients(model, model.loss(output, target, weights_C), loss)


def train(name: str, encoder: str, bags: list[Bag]) -> BagModel:
    """Ten steps with every dropout and mask on, which all draw from one stream."""
    options = {"encoder": encoder}
    model = build_model(name, width=WIDTH, n_classes=N_CLASSES, options=options, seed=7, clinical=SCHEMA).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    with seeded(11):
        for step, bag in enumerate(bags):
            optimizer.zero_grad()
            model.loss(model(bag), step % N_CLASSES, torch.tensor([1.0, 2.0, 0.5])).backward()
            optimizer.step()
    return model.eval()


def without_record() -> Bag:
    return patient()


def with_record_that_nobody_agreed_on() -> Bag:
    return Bag("slide", patient().features_ND, patient().coords_N2, 256, clinical=record(61.0, 1, 1, 20.0))


@pytest.mark.parametrize("encoder", ["abmil", "acmil", "clam-mb", "longmil"])
@pytest.mark.parametrize("other", ["bd", "ensemble"])
@pytest.mark.parametrize("draw", [without_record, with_record_that_nobody_agreed_on])
def test_without_clinical_data_bd_and_the_ensemble_are_this_model(
    encoder: str, other: str, draw: Callable[[], Bag]
) -> None:
    bags = [draw()] * 10
    alone, whole = train("image-only", encoder, bags), train(other, encoder, bags)
    start = build_model("image-only", width=WIDTH, n_classes=N_CLASSES, options={"encoder": encoder}, seed=7)
    state, whole_state = alone.state_dict(), whole.state_dict()
    assert all(torch.equal(tensor, whole_state[name]) for name, tensor in state.items())
    assert not any(
        torch.equal(tensor, start.state_dict()[name]) for name, tensor in state.items() if name.startswith("single.")
    )
    assert torch.equal(alone(bags[0]).logits_C, whole(bags[0]).logits_C)
    assert alone(bags[0]).route == whole(bags[0]).route == "single-modal"


def test_it_reads_no_record() -> None:
    model = small_model("image-only").eval()
    assert torch.equal(model(patient(61.0, 1, 1, 20.0)).logits_C, model(patient()).logits_C)
    assert set(model.parameter_groups()) == model.trained_groups(patient()) == {"image", "prompt", "single_head"}
