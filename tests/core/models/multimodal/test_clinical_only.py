"""Clinical-only against its formulas; who has no table trains and gets the prior."""

import pytest
import torch
from literal import record_kept
from literal_clinical import (
    assert_same_gradients,
    clinical_encoding,
    layer,
    literal_vector,
    patient,
    probabilities,
    small_model,
)

from fedpath.core.models.multimodal.clinical_only import ClinicalOnly


@pytest.mark.parametrize("values", [(61.0, 2, None, 31.0), (None, None, 1, None), ()])
def test_follows_its_formulas(values: tuple[float | None, ...]) -> None:
    model, bag, target = small_model("clinical-only", dropout=0.5), patient(*values), 1
    assert isinstance(model, ClinicalOnly)
    state, weights_C = dict(model.named_parameters()), torch.tensor([9, 0.4, 9], dtype=torch.float64)
    with torch.no_grad():
        model.prior.copy_(torch.tensor([0.5, -0.3, 0.1]))
    kept = record_kept(model.multi.dropout)
    output = model(bag)
    logits, encoding = state["prior"], torch.zeros(256, dtype=torch.float64)
    loss = -0.4 * torch.log(probabilities(state["prior"])[target])
    if values:
        encoding = clinical_encoding(state, literal_vector(*values))
        logits = layer(state, "multi.head", encoding * kept[0] / 0.5)
        loss = loss - 0.4 * torch.log(probabilities(logits)[target])
    torch.testing.assert_close(output.logits_C, logits, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.slide_vector_L, encoding, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.attention_KN, torch.full((1, 9), 1 / 9, dtype=torch.float64))
    assert output.route == ("multi-modal" if values else "single-modal")
    assert_same_gradients(model, model.loss(output, target, weights_C), loss)


def test_a_hospital_without_tables_trains_the_prior_alone() -> None:
    model = small_model("clinical-only")
    assert model.trained_groups(patient()) == {"single_head"}
    assert model.trained_groups(patient(61.0, 2, 1, 31.0)) == {"single_head", "clinical", "multi_head"}


def test_the_prior_learns_the_frequencies_of_the_classes() -> None:
    model = small_model("clinical-only")
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        # Of six patients, with a table or without, three have class 0, two class 1 and one class 2.
        for target, bag in zip([0, 0, 0, 1, 1, 2], [patient(), patient(61.0, 2, 1, 31.0)] * 3, strict=True):
            model.loss(model(bag), target).backward()
        optimizer.step()
    shares = model.eval()(patient()).logits_C.softmax(0)
    torch.testing.assert_close(shares, torch.tensor([3, 2, 1], dtype=torch.float64) / 6, rtol=0, atol=1e-3)
