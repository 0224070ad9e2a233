"""The filling baselines against their formulas: what stands for a missing field and for a missing table."""

import pytest
import torch
from literal import record_kept
from literal_clinical import (
    ENCODERS,
    FIELD_OF_ENTRY,
    N_ENTRIES,
    SCHEMA,
    TYPICAL,
    assert_same_gradients,
    clinical_encoding,
    layer,
    literal_vector,
    patient,
    positive,
    probabilities,
    small_model,
)
from torch import Tensor

from fedpath.core.clinical.standard import Standard
from fedpath.core.models import BagModel
from fedpath.core.models.multimodal.filled import Filled

every_filling = pytest.mark.parametrize("name", ["fill-zero", "fill-mean", "fill-autoencoder"])
FUSED = {"image", "clinical", "fusion", "multi_head"}


def literal_fill(name: str, model: BagModel, slide: Tensor) -> Tensor:
    state = dict(model.named_parameters())
    if name == "fill-zero":
        return torch.zeros(N_ENTRIES, dtype=torch.float64)
    if name == "fill-mean":
        return torch.tensor(TYPICAL, dtype=torch.float64)
    return layer(state, "decoder.2", positive(layer(state, "decoder.0", slide.detach())))


def known_entries(values: tuple[float | None, ...]) -> list[bool]:
    known = dict(zip(SCHEMA.fields, values or (None,) * 4, strict=True))
    return [known[field] is not None for field in FIELD_OF_ENTRY]


@every_filling
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("values", [(61.0, 2, 1, 31.0), (61.0, None, 0, None), ()], ids=["whole", "holes", "no table"])
def test_follows_its_formulas(name: str, encoder: str, values: tuple[float | None, ...]) -> None:
    options = {"decoder_loss": 0.8} if name == "fill-autoencoder" else {}
    model = small_model(name, encoder=encoder, dropout=0.5, encoder_loss=0.3, **options)
    assert isinstance(model, Filled)
    bag, target, weights_C = patient(*values), 1, torch.tensor([9, 0.4, 9], dtype=torch.float64)
    kept = record_kept(model.multi.dropout)
    output = model(bag)

    state, encoded = dict(model.named_parameters()), model.encoder(bag)
    slide = encoded.slide_vector_L
    fill, known = literal_fill(name, model, slide), known_entries(values)
    own = literal_vector(*values) if values else torch.zeros(N_ENTRIES, dtype=torch.float64)
    vector = torch.stack([own[e] if known[e] else fill[e].detach() for e in range(N_ENTRIES)])
    hidden = positive(layer(state, "multi.fusion.0", torch.cat([slide, clinical_encoding(state, vector)])))
    logits = layer(state, "multi.head", hidden * kept[0] / 0.5)
    torch.testing.assert_close(output.logits_C, logits, rtol=1e-10, atol=1e-12)
    assert output.route == ("multi-modal" if values else "single-modal")

    loss = -0.4 * torch.log(probabilities(logits)[target]) + 0.3 * model.encoder.loss(encoded, target, weights_C)
    if name == "fill-autoencoder" and values:
        errors = [(fill[e] - own[e]) ** 2 for e in range(N_ENTRIES) if known[e]]
        loss = loss + 0.8 * torch.stack(errors).mean()
    assert_same_gradients(model, model.loss(output, target, weights_C), loss)


@every_filling
def test_all_patients_train_the_fused_branch(name: str) -> None:
    model = small_model(name)
    decoder = {"decoder"} if name == "fill-autoencoder" else set()
    assert model.trained_groups(patient()) == FUSED
    assert model.trained_groups(patient(61.0, 2, 1, 31.0)) == FUSED | decoder


@every_filling
def test_where_nobody_has_clinical_data_everybody_is_filled(name: str) -> None:
    model = small_model(name)
    assert isinstance(model, Filled)
    model.use_standard(Standard(0))
    model.eval()
    with_table, without = model(patient(61.0, 2, 1, 31.0)), model(patient())
    assert with_table.route == without.route == "single-modal"
    assert torch.equal(with_table.logits_C, without.logits_C)
    assert model.trained_groups(patient(61.0, 2, 1, 31.0)) == FUSED


def test_the_decoder_learns_what_the_slides_tell_about_the_table() -> None:
    model = small_model("fill-autoencoder", dropout=0.0)
    assert isinstance(model, Filled)
    optimizer = torch.optim.Adam(model.decoder.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        model.loss(model(patient(76.0, 2, 1, 31.0)), 0).backward()
        optimizer.step()
    torch.testing.assert_close(model(patient()).vector_E, literal_vector(76.0, 2, 1, 31.0), rtol=0, atol=0.02)
