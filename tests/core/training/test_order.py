"""Which bags each step learns from."""

import torch

from fedpath.core.training import TrainSettings
from fedpath.core.training.order import bags_in, course


def settings(epochs: int = 1, steps: int | None = None, accumulate_bags: int = 1) -> TrainSettings:
    return TrainSettings(epochs, accumulate_bags=accumulate_bags, steps=steps)


def test_epochs_are_whole_passes_in_an_order_of_their_own() -> None:
    generator = torch.Generator().manual_seed(3)
    orders = [torch.randperm(5, generator=generator).tolist() for _ in range(2)]
    assert course(5, settings(2), seed=3) == [[[index] for index in order] for order in orders]
    assert course(5, settings(2, accumulate_bags=2), seed=3) == [[o[:2], o[2:4], o[4:]] for o in orders]


def test_steps_go_through_pass_after_pass_and_stop_within_one() -> None:
    # 5 bags in twos: three steps a pass.
    whole = course(5, settings(3, accumulate_bags=2), seed=3)
    for steps in range(1, 10):
        got = course(5, settings(99, steps, accumulate_bags=2), seed=3)
        flat = [step for one in got for step in one]
        assert flat == [step for one in whole for step in one][:steps]
        assert [len(one) for one in got] == [3] * (steps // 3) + ([steps % 3] if steps % 3 else [])
    assert bags_in(course(5, settings(steps=4, accumulate_bags=2), seed=3)) == 7


def test_one_bag_is_learnt_from_again_and_again() -> None:
    assert course(1, settings(steps=3), seed=0) == [[[0]], [[0]], [[0]]]
