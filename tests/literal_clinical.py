"""Clinical data for the tests of multimodal models, and what these models share, literally and in float64."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from literal import random_bag
from torch import Tensor, nn

from fedpath.core.bags import Bag
from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.clinical.standard import Standard
from fedpath.core.config.clinical import BinaryField, CategoryField, ClinicalSchema, NumberField
from fedpath.core.models import BagModel, build_model
from fedpath.core.models.multimodal.parts import MultimodalModel

SCHEMA = ClinicalSchema(
    fields={
        "age": NumberField(type="number", unit="years", minimum=0, maximum=120, outcome_derived=False),
        "grade": CategoryField(type="category", vocabulary=["1", "2", "3"], outcome_derived=False),
        "er": BinaryField(type="binary", positive="pos", negative="neg", outcome_derived=False),
        "size": NumberField(type="number", unit="mm", minimum=0, maximum=300, outcome_derived=False),
    }
)
STANDARD = Standard(
    patients=20,
    mean={"age": 60.0, "size": 25.0},
    sd={"age": 8.0, "size": 10.0},
    shares={"grade": (0.25, 0.5, 0.25), "er": (0.375, 0.625)},
)
N_ENTRIES = 11
"""age, its state "missing"; grade 1, 2, 3, missing; er neg, pos, missing; size, missing."""
FIELD_OF_ENTRY = ("age",) * 2 + ("grade",) * 4 + ("er",) * 3 + ("size",) * 2
MISSING_ENTRIES = {"age": 1, "grade": 5, "er": 8, "size": 10}
TYPICAL = (0, 0, 0.25, 0.5, 0.25, 0, 0.375, 0.625, 0, 0, 0)
"""The mean patient."""


def record(*values: float | None) -> ClinicalRecord:
    """Age, index of the grade, ER (0 or 1), size; None for what is missing."""
    return ClinicalRecord(
        torch.tensor([0.0 if value is None else value for value in values], dtype=torch.float64),
        torch.tensor([value is not None for value in values]),
    )


def literal_vector(*values: float | None) -> Tensor:
    """The entries of a record by ``STANDARD``, in float64."""
    age, grade, er, size = values
    entries = [0.0] * N_ENTRIES
    if age is None:
        entries[1] = 1.0
    else:
        entries[0] = (age - 60) / 8
    entries[5 if grade is None else 2 + int(grade)] = 1.0
    entries[8 if er is None else 6 + int(er)] = 1.0
    if size is None:
        entries[10] = 1.0
    else:
        entries[9] = (size - 25) / 10
    return torch.tensor(entries, dtype=torch.float64)


WIDTH, N_CLASSES = 6, 3
ENCODERS: dict[str, dict[str, Any]] = {
    "abmil": {"inner": 5, "attention": 4, "dropout": 0.0},
    "acmil": {"inner": 5, "attention": 4, "n_branches": 2, "mask_ratio": 0.0},
    "longmil": {"inner": 8, "heads": 2, "attention_dropout": 0.0},
}
"""Small slide encoders that draw nothing in training, so that a second run of one gives the same again."""


def small_model(name: str, *, encoder: str = "abmil", **options: Any) -> BagModel:
    """A small float64 model in training mode; clinical data are agreed on as ``STANDARD`` where it reads them."""
    if name != "clinical-only":
        options = {"encoder": encoder, "encoder_options": ENCODERS[encoder], "hidden": 7} | options
    model = build_model(name, width=WIDTH, n_classes=N_CLASSES, options=options, seed=3, clinical=SCHEMA)
    if isinstance(model, MultimodalModel):
        model.use_standard(STANDARD)
    return model.double().train()


def patient(*values: float | None) -> Bag:
    """A bag of nine patches in a row, of a patient with these clinical data; with none at all, without a record."""
    bag = random_bag(9, WIDTH)
    coords_N2 = 256 * torch.stack([torch.arange(9), torch.zeros(9, dtype=torch.int64)], dim=1)
    return replace(bag, coords_N2=coords_N2, clinical=record(*values) if values else None)


def layer(state: Mapping[str, Tensor], name: str, vector: Tensor) -> Tensor:
    """W v + b, a row of W at a time."""
    rows = zip(state[f"{name}.weight"], state[f"{name}.bias"], strict=True)
    return torch.stack([(row * vector).sum() + bias for row, bias in rows])


def positive(vector: Tensor) -> Tensor:
    return torch.where(vector > 0, vector, 0.0)


def clinical_encoding(state: Mapping[str, Tensor], vector: Tensor) -> Tensor:
    """The two layers of ``multi.clinical``."""
    return positive(layer(state, "multi.clinical.2", positive(layer(state, "multi.clinical.0", vector))))


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    powers = torch.exp(logits / temperature)
    return powers / powers.sum()


def assert_same_gradients(model: nn.Module, loss: Tensor, expected: Tensor) -> None:
    """Compare a loss and its gradients with the literal ones; what has none there must have none."""
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    for name, got, literal in zip(names, gradients, wanted, strict=True):
        assert (got is None) == (literal is None), name
        if got is not None and literal is not None:
            torch.testing.assert_close(
                got, literal, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
            )
