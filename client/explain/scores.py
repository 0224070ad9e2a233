"""What a trained model says of one slide, from its stored features: its classes, and attention patch by patch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedpath.core.bags import Bag, FeatureMeta, read_bag, read_meta
from fedpath.core.errors import ConfigError, DataError
from fedpath.core.models.protocol import BagModel

MEAN = "mean"
"""Attention averaged over a model's branches or heads."""
ALL = "all"


@dataclass(frozen=True, slots=True)
class Explained:
    """One slide and what the model says of it."""

    bag: Bag
    meta: FeatureMeta
    probabilities: Mapping[str, float]
    """Of each class, by its label."""
    attention_KN: NDArray[np.float64]
    """A row a branch (ACMIL) or head (LongMIL), a column a patch; rows sum to 1."""

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        return self.meta.slide_id

    @property
    def predicted(self) -> str:
        """Label of the most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def attention(self, branch: str) -> NDArray[np.float64]:
        """Return attention (N) of ``mean`` or of a branch, counted from 1.

        Raises:
            ConfigError: the model has no such branch.
        """
        if branch == MEAN:
            mean_N: NDArray[np.float64] = self.attention_KN.mean(axis=0)
            return mean_N
        count = len(self.attention_KN)
        if not branch.isdecimal() or not 1 <= int(branch) <= count:
            raise ConfigError(
                f"--branch {branch}: the model has {'1 branch' if count == 1 else f'branches 1 to {count}'}",
                remedy=f"give {MEAN}, {ALL} or a number of these",
            )
        branch_N: NDArray[np.float64] = self.attention_KN[int(branch) - 1]
        return branch_N

    def branches(self, wanted: str) -> list[str]:
        """Return the names ``attention`` takes that are meant: one, or for ``all`` the mean and, of several, each."""
        if wanted != ALL:
            self.attention(wanted)
            return [wanted]
        if len(self.attention_KN) == 1:
            return [MEAN]
        return [MEAN, *(str(number) for number in range(1, len(self.attention_KN) + 1))]


def explain(model: BagModel, metadata: Mapping[str, str], labels: list[str], features: Path) -> Explained:
    """Ask a model about one slide.

    Args:
        model: in eval mode, of `load_model`.
        metadata: of its file.
        labels: of its classes, in order.
        features: the slide's feature file.

    Raises:
        DataError: the file cannot be read, or was made by another encoder than the model was trained on.
    """
    meta, bag = read_meta(features), read_bag(features)
    trained_on, width = metadata.get("encoder", meta.encoder), int(metadata["width"])
    if meta.encoder != trained_on or bag.features_ND.shape[1] != width:
        raise DataError(
            f"{features}: features of encoder '{meta.encoder}', {bag.features_ND.shape[1]} wide; the model was trained "
            f"on '{trained_on}', {width} wide",
            remedy=f"name the features that were made with '{trained_on}'",
        )
    with torch.inference_mode():
        output = model(bag)
    probabilities_C = torch.softmax(output.logits_C.double(), dim=-1).tolist()
    attention_KN = output.attention_KN.double().cpu().numpy()
    return Explained(bag, meta, dict(zip(labels, probabilities_C, strict=True)), attention_KN)
