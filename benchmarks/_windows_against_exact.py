"""Train LongMILs on a small task and hold windows against exact attention: the layer's output, and the verdicts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from _tissue import TRAINED_AT, WIDTH, crop, in_form, longmil, planted, real, synthetic, train_briefly
from numpy.typing import NDArray
from torch import Tensor

from fedpath.core.bags.bag import Bag
from fedpath.core.models.longmil import LongMil
from fedpath.core.models.spatial import Windows, grid_cells
from fedpath.core.training.evaluation import predict

DEFAULT = 512
LIMITS = (16, 64, 256, DEFAULT, 1024)
VERDICT_LIMITS = (16, 64, DEFAULT)
"""Values of ``max_windows`` for the layer's output, and for verdicts, whose slides have few windows anyway."""
FIRST_TEST = 9_000_000
"""Seeds of slides that no model was trained on start here."""


@dataclass(frozen=True, slots=True)
class Case:
    """What to train and to compare."""

    source: str
    """``synthetic`` or ``real``."""
    seed: int
    slides: int
    """How many it is trained on."""
    test: Mapping[int, int]
    """Number of test slides by their patches."""
    errors_at: tuple[int, ...]
    """Sizes of the slides on which the layer's output is compared."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """The layer's output in windows against the exact one, over the patches of a slide."""

    source: str
    is_trained: bool
    n: int
    limit: int
    windows: int
    median: float
    """Of each patch's |windows − exact| / |exact|."""
    p95: float
    of_variation: float
    """Root mean square of windows − exact, over that of exact − its mean over the patches."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Probabilities of the positive class for the same slides, by how they were trained and read."""

    source: str
    n: int
    targets: list[int]
    exact: NDArray[np.float64]
    read_in_windows: Mapping[int, NDArray[np.float64]]
    """The same weights, by ``max_windows``."""
    trained_in_windows: NDArray[np.float64]


def compare(case: Case) -> tuple[list[LayerError], list[Verdicts]]:
    """Train a model in each form and return how far windows are from exact attention."""
    torch.set_num_threads(1)
    whole = real() if case.source == "real" else None
    ground: Callable[[int, int], Bag] = synthetic if whole is None else partial(crop, whole)
    width = WIDTH if whole is None else whole.features_ND.shape[1]
    exact, windows = longmil(width, case.seed), longmil(width, case.seed, global_form="windows")
    errors = [
        error for n in case.errors_at for error in _layer_errors(case.source, False, exact, ground(n, FIRST_TEST))
    ]
    for model in (exact, windows):
        train_briefly(model, partial(ground, TRAINED_AT), slides=case.slides, seed=case.seed)
    print(f"{case.source}, seed {case.seed}: trained in both forms", flush=True)
    errors += [
        error for n in case.errors_at for error in _layer_errors(case.source, True, exact, ground(n, FIRST_TEST))
    ]
    verdicts = []
    for n, count in case.test.items():
        examples = [planted(ground(n, FIRST_TEST + index), FIRST_TEST + index) for index in range(count)]
        bags = [example.bag for example in examples]
        read = {
            limit: _positive(in_form(exact, global_form="windows", max_windows=limit), bags) for limit in VERDICT_LIMITS
        }
        verdicts.append(
            Verdicts(
                case.source,
                n,
                [example.target for example in examples],
                _positive(exact, bags),
                read,
                _positive(windows, bags),
            )
        )
        print(f"{case.source}, seed {case.seed}: compared on {count} slides of {n} patches", flush=True)
    return errors, verdicts


def _positive(model: LongMil, bags: list[Bag]) -> NDArray[np.float64]:
    return predict(model, bags)[:, 1]


def _layer_errors(source: str, is_trained: bool, exact: LongMil, bag: Bag) -> list[LayerError]:
    right_NL = attention_output(exact, bag)
    spread = (right_NL - right_NL.mean(dim=0)).norm()
    cells_N2 = grid_cells(bag.coords_N2, bag.patch_size_level0)
    found = []
    for limit in LIMITS:
        off_NL = attention_output(in_form(exact, global_form="windows", max_windows=limit), bag) - right_NL
        relative_N = off_NL.norm(dim=1) / right_NL.norm(dim=1)
        found.append(
            LayerError(
                source,
                is_trained,
                len(bag),
                limit,
                windows=len(Windows(cells_N2, limit)),
                median=float(relative_N.median()),
                p95=float(relative_N.quantile(0.95)),
                of_variation=float(off_NL.norm() / spread),
            )
        )
    return found


def attention_output(model: LongMil, bag: Bag) -> Tensor:
    """Return what the global block's attention gives for each patch, all heads side by side (N, L), in float64."""
    kept: list[Tensor] = []
    hook = model.blocks[-1].proj.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        model(bag)
    hook.remove()
    return kept[0].double()
