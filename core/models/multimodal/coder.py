"""From a clinical record to the vector that a model reads, by what the federation agreed on."""

import torch
from torch import Tensor, nn

from fedpath.core.clinical.layout import Layout
from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.clinical.standard import Standard
from fedpath.core.config.clinical import ClinicalSchema


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

    def __init__(self, schema: ClinicalSchema) -> None:
        super().__init__()
        self.layout = layout = Layout.of(schema)
        n_fields = len(layout.names)
        self.register_buffer("patients", torch.zeros(()))
        self.register_buffer("mean_F", torch.zeros(n_fields))
        # 0 for a number that nobody reported: it is read as missing.
        self.register_buffer("sd_F", torch.tensor([0.0 if number else 1.0 for number in layout.is_number]))
        self.register_buffer("typical_E", torch.zeros(layout.n_entries))
        self._is_number_F = torch.tensor(layout.is_number)
        self._value_at_F = torch.tensor(layout.value_at)
        self._missing_at_F = torch.tensor(layout.missing_at)

    def use_standard(self, standard: Standard) -> None:
        """Take over what the hospitals agreed on."""
        self.patients.fill_(standard.patients)
        for index, name in enumerate(self.layout.names):
            start, end = self.layout.value_at[index], self.layout.missing_at[index]
            if self.layout.is_number[index]:
                self.mean_F[index] = standard.mean.get(name, 0.0)
                # A field in which all patients agree says nothing; it is centred and not blown up.
                self.sd_F[index] = (standard.sd[name] or 1.0) if name in standard.sd else 0.0
            else:
                self.typical_E[start:end] = torch.tensor(standard.shares.get(name, (0.0,) * (end - start)))

    @property
    def is_agreed(self) -> bool:
        """Whether any hospital has clinical data to train on."""
        return bool(self.patients > 0)

    def forward(self, record: ClinicalRecord) -> Tensor:
        """Return a record's vector (E)."""
        device = self.sd_F.device
        values_F, sd_F, mean_F = record.values_F, self.sd_F.cpu().double(), self.mean_F.cpu().double()
        is_read_F = record.present_F & (sd_F > 0)
        at_F = torch.where(self._is_number_F, self._value_at_F, self._value_at_F + values_F.long())
        standardised_F = (values_F - mean_F) / torch.where(sd_F > 0, sd_F, 1)
        amount_F = torch.where(is_read_F & self._is_number_F, standardised_F, 1).to(self.sd_F.dtype)
        vector_E = torch.zeros(self.layout.n_entries, dtype=self.sd_F.dtype)
        return vector_E.index_put((torch.where(is_read_F, at_F, self._missing_at_F),), amount_F).to(device)
