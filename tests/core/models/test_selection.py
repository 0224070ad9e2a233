"""Which patches are selected: the best, in order, whatever the model was doing before."""

import pytest
import torch
from literal import random_bag
from torch import Tensor, nn

from fedpath.core.bags import Bag
from fedpath.core.errors import DataError
from fedpath.core.models import BagModel, BagOutput, build_model
from fedpath.core.models.selection import select


class Says(BagModel):
    """Ranks patches by their first feature, as a selector or by attention."""

    def __init__(self, *, selects: bool) -> None:
        super().__init__()
        self.selects = selects
        self.noise = nn.Dropout(0.9)

    def forward(self, bag: Bag) -> BagOutput:
        worth_N = self.noise(bag.features_ND[:, 0])
        flat_1N = torch.full((1, len(bag)), 1 / len(bag))
        attention_1N = flat_1N if self.selects else worth_N[None] / worth_N.sum()
        return BagOutput(torch.zeros(2), attention_1N, torch.zeros(1), selection_N=worth_N if self.selects else None)


def bag_of(*worth: float) -> Bag:
    return Bag("s1", torch.tensor(worth)[:, None], torch.zeros(len(worth), 2, dtype=torch.int64), 256)


@pytest.mark.parametrize("selects", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_best_come_first_and_ties_in_the_files_order(selects: bool, training: bool) -> None:
    model, bag = Says(selects=selects).train(training), bag_of(1, 5, 3, 5, 1, 4)
    chosen = [select(model, bag, k).tolist() for k in (1, 3, 5, 6)]
    assert chosen == [[1], [1, 3, 5], [1, 3, 5, 2, 0], [1, 3, 5, 2, 0, 4]]
    assert model.training is training


def test_more_than_there_are_is_all() -> None:
    assert select(Says(selects=True), bag_of(2, 3), 512).tolist() == [1, 0]
    assert select(Says(selects=True), bag_of(2), 512).tolist() == [0]


def test_none_at_all_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="0 patches"):
        select(Says(selects=True), bag_of(2), 0)


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(DataError, match=r"slide s1.*not finite"):
        select(Says(selects=True), bag_of(1, float("nan")), 1)


@pytest.mark.parametrize("name", ["vib", "abmil", "max-pool"])
def test_any_model_can_rank(name: str) -> None:
    model, bag = build_model(name, width=6, n_classes=2, seed=1).train(), random_bag(50, 6, torch.float16)
    before = torch.get_rng_state()
    first: Tensor = select(model, bag, 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.dtype == torch.int64
    assert len(set(first.tolist())) == 10
    assert torch.equal(select(model, bag, 20)[:10], first)
