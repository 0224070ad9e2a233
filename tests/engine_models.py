"""Models that training engines are tried on; the processes of an engine import them from here."""

import os
import signal
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedpath.core.bags import Bag
from fedpath.core.cohort import Example
from fedpath.core.encoders.base import Hidden, PatchEncoder
from fedpath.core.models import BagModel, BagOutput
from fedpath.core.models.randomness import seeded

WIDTH = 16


def make_examples(n: int) -> list[Example]:
    """Bags of 6 patches, two a patient; those of class 1 are shifted."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for index in range(n):
        features_ND = torch.randn(6, WIDTH, generator=generator)
        features_ND[:3, 0] += 2.0 * (index % 2)
        bag = Bag(f"s{index}", features_ND.half(), torch.zeros(6, 2, dtype=torch.int64), 256)
        examples.append(Example(bag, index % 2, f"p{index // 2}", f"s{index}"))
    return examples


class Layers(PatchEncoder):
    """Three layers, each a stage, large enough to be split among processes."""

    stage_names = ("lower", "middle", "upper")
    width = 384

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.middle, self.upper = nn.Linear(WIDTH, 384), nn.Linear(384, 384), nn.Linear(384, 384)

    def prepare(self, rgb_BCHW: Tensor) -> Tensor:
        return rgb_BCHW

    def run_stage(self, index: int, hidden: Hidden) -> Hidden:
        return (torch.tanh(self.stage_modules(index)[0](hidden[0])),)  # type: ignore[operator]

    def stage_modules(self, index: int) -> list[nn.Module | nn.Parameter]:
        return [(self.lower, self.middle, self.upper)[index]]


class Head(BagModel):
    """A layer whose weights are read from outside of it, as the bag models' own functions do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(width, 32), nn.Linear(32, 2)

    def forward(self, bag: Bag) -> BagOutput:
        h_NL = torch.relu(bag.features_ND @ self.hidden.weight.T + self.hidden.bias)
        attention_KN = torch.softmax(h_NL[:, :1].T, dim=1)
        slide_L = attention_KN[0] @ h_NL
        return BagOutput(self.out(slide_L), attention_KN, slide_L)


class Parts(BagModel):
    """A frozen layer, one whose learning rate is nothing, a slow one, a head; a parameter nobody uses, and a buffer."""

    resident_groups = frozenset({"frozen"})

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        with seeded(0):
            self.encoder, self.head = Layers(), Head(384)
        self.encoder.lower.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(5))
        self.dropout = nn.Dropout(dropout)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, bag: Bag) -> BagOutput:
        if self.training:
            self.seen += 1
        (h_ND,) = self.encoder.run_stages((bag.features_ND.float(),), 0, 3)
        return self.head(Bag(bag.slide_id, self.dropout(h_ND), bag.coords_N2, 256))

    def parameter_groups(self) -> dict[str, list[str]]:
        names = list(self.state_dict())
        parts = {"frozen": "encoder.lower.", "still": "encoder.middle.", "slow": "encoder.upper."}
        groups = {group: [name for name in names if name.startswith(start)] for group, start in parts.items()}
        return groups | {"image": [name for name in names if not name.startswith(tuple(parts.values()))]}

    @property
    def learning_rate_scales(self) -> Mapping[str, float]:
        return {"still": 0.0, "slow": 0.1}


class Broken(Parts):
    """Fails in its own way: at the third bag."""

    how = ""

    def forward(self, bag: Bag) -> BagOutput:
        output = super().forward(bag)
        if self.training and self.seen[0] > 2:
            match self.how:
                case "raise":
                    raise RuntimeError("the layer is loose\nsecond line")
                case "memory":
                    raise torch.OutOfMemoryError("no memory is left")
                case "killed":
                    print("a last word", flush=True)
                    os.kill(os.getpid(), signal.SIGKILL)
        return output
