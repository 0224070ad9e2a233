"""The ensemble against its formulas: two models that share nothing but the patient."""

import pytest
import torch
from literal import record_kept
from literal_clinical import (
    ENCODERS,
    assert_same_gradients,
    clinical_encoding,
    layer,
    literal_vector,
    patient,
    positive,
    probabilities,
    small_model,
)

from fedpath.core.models.multimodal.ensemble import Ensemble


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("values", [(61.0, 2, None, 31.0), ()], ids=["table", "no table"])
def test_follows_its_formulas(encoder: str, values: tuple[float | None, ...]) -> None:
    model = small_model("ensemble", encoder=encoder, prompt=4, dropout=0.5, encoder_loss=0.3)
    assert isinstance(model, Ensemble)
    bag, target, weights_C = patient(*values), 1, torch.tensor([9, 0.4, 9], dtype=torch.float64)
    image_kept, clinical_kept = record_kept(model.single.dropout), record_kept(model.multi.dropout)
    output = model(bag)

    state, encoded = dict(model.named_parameters()), model.encoder(bag)
    guided = positive(layer(state, "single.guide.0", encoded.slide_vector_L))
    hidden = positive(layer(state, "single.fusion.0", torch.cat([guided, state["single.prompt"]])))
    image = probabilities(layer(state, "single.head", hidden * image_kept[0] / 0.5))
    loss, mean = -0.4 * torch.log(image[target]), image
    if values:
        encoding = clinical_encoding(state, literal_vector(*values))
        clinical = probabilities(layer(state, "multi.head", encoding * clinical_kept[0] / 0.5))
        loss, mean = loss - 0.4 * torch.log(clinical[target]), (image + clinical) / 2
    torch.testing.assert_close(output.logits_C.softmax(0), mean, rtol=1e-10, atol=1e-12)
    assert output.route == ("multi-modal" if values else "single-modal")
    loss = loss + 0.3 * model.encoder.loss(encoded, target, weights_C)
    assert_same_gradients(model, model.loss(output, target, weights_C), loss)


def test_neither_model_learns_from_the_other() -> None:
    """The image model's gradients are those of a patient without a table."""
    gradients = []
    for values in ((61.0, 2, 1, 31.0), ()):
        model = small_model("ensemble", dropout=0.0)
        model.loss(model(patient(*values)), 1).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[1].items():
        assert (gradient is None) == name.startswith("multi.")
        if gradient is not None:
            torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-12, atol=0)


def test_a_certain_model_and_an_ignorant_one_stay_finite() -> None:
    model = small_model("ensemble")
    with torch.no_grad():
        model.state_dict()["single.head.bias"].copy_(torch.tensor([800.0, 0.0, -800.0]))
        model.state_dict()["multi.head.weight"].zero_()
        model.state_dict()["multi.head.bias"].zero_()
    output = model.eval()(patient(61.0, 2, 1, 31.0))
    expected = torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64) / 6
    torch.testing.assert_close(output.logits_C.softmax(0), expected)


def test_groups() -> None:
    model = small_model("ensemble")
    assert model.trained_groups(patient()) == {"image", "prompt", "single_head"}
    assert model.trained_groups(patient(61.0, 2, 1, 31.0)) == {
        "image",
        "prompt",
        "single_head",
        "clinical",
        "multi_head",
    }
