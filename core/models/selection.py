"""The patches of a slide that matter most to a model: those that a selector keeps, or that attention rests on."""

import torch
from torch import Tensor

from fedpath.core.bags.bag import Bag
from fedpath.core.errors import DataError
from fedpath.core.models.protocol import BagModel


def select(model: BagModel, bag: Bag, k: int) -> Tensor:
    """Return the indices of the ``k`` best patches of a slide, best first: (min(k, N)), int64, on the CPU.

    Ranked by the model's ``selection_N`` where it has one, else by its ``attention_N``; of equal patches the first in
    the file comes first. So the first k' of them are what ``k'`` would have selected. Nothing is drawn: the model runs
    in evaluation mode, and is left in the mode that it was in.

    Raises:
        DataError: the model's numbers for this slide are not finite.
        ValueError: k < 1.
    """
    if k < 1:
        raise ValueError(f"{k} patches cannot be selected")
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            output = model(bag)
            worth_N = (output.attention_N if output.selection_N is None else output.selection_N).cpu()
    finally:
        model.train(was_training)
    if not worth_N.isfinite().all():
        raise DataError(
            f"slide {bag.slide_id}: its patches cannot be ranked, as the selector's numbers are not finite",
            remedy="look at the slide with `fedpath cohort check`; if its features are fine, train the selector again, "
            "at a lower learning rate",
        )
    return worth_N.argsort(descending=True, stable=True)[:k].clone()
