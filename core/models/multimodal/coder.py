"""From a clinical record to the vector that a model reads, by what the federation agreed on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedpath.core.clinical.layout import Layout
from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.clinical.standard import Standard
from fedpath.core.config.clinical import ClinicalSchema


@dataclass(frozen=True, slots=True)
class _Agreed:
    """What was agreed on, as a record is coded with it: on the CPU, in float64."""

    source: tuple[Tensor, ...]
    """The buffers it was taken from."""
    versions: tuple[int, ...]
    """How often each had been written to."""
    has_patients: bool
    mean_F: Tensor
    divisor_F: Tensor
    is_read_F: Tensor


class ClinicalCoder(nn.Module):
    """Standardises numbers, codes words, marks what is missing; the entries are those of ``Layout``.

    What was agreed on is kept in buffers, so that it travels, is hashed and is saved with the model. Until
    ``use_standard`` it stands for a federation in which nobody has clinical data.

    Args:
        schema: the federation's fields.
    """

    patients: Tensor
    mean_F: Tensor
    sd_F: Tensor
    typical_E: Tensor
    """What a patient is like of whom nothing is known: numbers at their mean, 0, and of each word its share."""

    def __init__(self, schema: ClinicalSchema) -> None:
        super().__init__()
        self.layout = layout = Layout.of(schema)
        n_fields = len(layout.names)
        self.register_buffer("patients", torch.zeros(()))
        self.register_buffer("mean_F", torch.zeros(n_fields))
        # 0 for a number that nobody reported, or in which all training patients agree: it is read as missing. Such a
        # field taught nothing, and the one later patient who differs would enter in raw units.
        self.register_buffer("sd_F", torch.tensor([0.0 if number else 1.0 for number in layout.is_number]))
        self.register_buffer("typical_E", torch.zeros(layout.n_entries))
        # What follows from the schema stays on the CPU, where records are.
        self._is_number_F = torch.tensor(layout.is_number, device="cpu")
        self._is_word_F = (~self._is_number_F).double()
        self._value_at_F = torch.tensor(layout.value_at, dtype=torch.float64, device="cpu")
        self._missing_at_F = torch.tensor(layout.missing_at, dtype=torch.float64, device="cpu")
        self._first_word_F = torch.zeros_like(self._value_at_F)
        self._last_word_F = (self._missing_at_F - self._value_at_F - 1) * self._is_word_F
        starts = torch.tensor([*layout.value_at, layout.n_entries], device="cpu")
        self._field_of_E = torch.repeat_interleave(torch.arange(n_fields, device="cpu"), starts.diff())
        self._agreed: _Agreed | None = None

    def use_standard(self, standard: Standard) -> None:
        """Take over what the hospitals agreed on."""
        self.patients.fill_(standard.patients)
        for index, name in enumerate(self.layout.names):
            start, end = self.layout.value_at[index], self.layout.missing_at[index]
            if self.layout.is_number[index]:
                self.mean_F[index] = standard.mean.get(name, 0.0)
                self.sd_F[index] = standard.sd.get(name, 0.0)
            else:
                self.typical_E[start:end] = torch.tensor(standard.shares.get(name, (0.0,) * (end - start)))

    def can_read(self, record: ClinicalRecord) -> bool:
        """Whether some hospital has clinical data to train on, and the record has a field that was agreed on."""
        return self._on_cpu().has_patients and bool(self._known(record).any())

    def forward(self, record: ClinicalRecord, fill_E: Tensor | None = None) -> Tensor:
        """Return a record's vector (E), on the model's device.

        Args:
            record: one value a field of the schema.
            fill_E: what the entries of a missing field are, instead of its state "missing".

        Raises:
            ValueError: the record is not of this schema.
        """
        agreed, is_known_F = self._on_cpu(), self._known(record)
        word_F = record.values_F * self._is_word_F
        if bool(((word_F != word_F.round().clamp(self._first_word_F, self._last_word_F)) & is_known_F).any()):
            raise ValueError("a record with a word that the schema's vocabulary does not have")
        at_F = torch.where(is_known_F, self._value_at_F + word_F, self._missing_at_F).long()
        standardised_F = (record.values_F - agreed.mean_F) / agreed.divisor_F
        amount_F = torch.where(is_known_F & self._is_number_F, standardised_F, 1.0)
        vector_E = amount_F.new_zeros(self.layout.n_entries).index_put_((at_F,), amount_F).to(self.sd_F)
        return vector_E if fill_E is None else torch.where(self.known(record), vector_E, fill_E)

    def known(self, record: ClinicalRecord) -> Tensor:
        """Return which entries (E, bool) are of fields that the record has and the model reads."""
        return self._known(record)[self._field_of_E].to(self.sd_F.device)

    def _known(self, record: ClinicalRecord) -> Tensor:
        """Return which fields (F, bool) the record has and the model reads."""
        if record.values_F.shape != self._value_at_F.shape:
            n_fields = len(self.layout.names)
            raise ValueError(f"a record of {len(record.values_F)} fields, where the schema has {n_fields}")
        return record.present_F & self._on_cpu().is_read_F

    def _on_cpu(self) -> _Agreed:
        """Return what was agreed on, taken from the buffers once for as long as they stay: they may be on a GPU."""
        source = (self.patients, self.mean_F, self.sd_F)
        # Tensors of inference mode do not count how often they are written to.
        countable = not any(buffer.is_inference() for buffer in source)
        versions = tuple(buffer._version for buffer in source) if countable else ()
        kept = self._agreed
        if kept is not None and kept.versions == versions and all(map(_same, kept.source, source)):
            return kept
        sd_F = self.sd_F.cpu().double()
        agreed = _Agreed(
            source=source,
            versions=versions,
            has_patients=bool(self.patients > 0),
            mean_F=self.mean_F.cpu().double(),
            divisor_F=torch.where(sd_F > 0, sd_F, 1.0),
            is_read_F=sd_F > 0,
        )
        self._agreed = agreed if countable else None
        return agreed

    def __getstate__(self) -> dict[str, Any]:
        """Leave what was taken from the buffers behind: a copy has buffers of its own, which count from 0."""
        return {**self.__dict__, "_agreed": None}


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other
