"""Slides for the studies of attention, and a LongMIL that has learned a little from them.

A slide is tissue in blobs with holes, on a grid of patches. Its features are either smooth random fields over the
tissue plus noise of each patch (``synthetic``), or those of a real slide (``real``). A planted slide holds one or two
nests, areas whose features are shifted in the direction of lesion A or lesion B. It is positive when both lesions
are there, wherever they are, so that no place alone decides, nor does the number of nests.
"""

import math
from collections.abc import Callable

import h5py
import numpy as np
import torch
from _common import shared_data
from numpy.typing import NDArray

from fedpath.core.bags.bag import Bag
from fedpath.core.cohort.examples import Example
from fedpath.core.models import build_model
from fedpath.core.models.longmil import LongMil
from fedpath.core.training.loop import train
from fedpath.core.training.settings import TrainSettings

WIDTH = 64
"""Features of a synthetic patch."""
INNER = 128
"""Inner width of the models: four heads of 32."""
TRAINED_AT = 192
"""Patches of the slides that models learn from."""
_PATCH = 256
_TISSUE, _BLOB = 0.55, 5.0
"""Share of the grid that is tissue; smoothness of its outline in patches."""
_SMOOTH, _SMOOTH_SHARE = 2.0, 0.7
"""Smoothness of the features in patches; share of their variance that is smooth."""
_NEST, _SHIFT = 0.29, (0.5, 3.0)
"""Radius of a nest, times the root of N; smallest and largest shift of each feature in it, in standard deviations."""


def synthetic(n: int, seed: int) -> Bag:
    """Return a slide of ``n`` patches with ``WIDTH`` features of mean 0 and variance 1; the same for the same seed."""
    random = np.random.default_rng([1, seed])
    edge = math.ceil(math.sqrt(n / _TISSUE))
    (outline_EE,) = _fields(random, 1, edge, _BLOB)
    tissue_N = np.sort(np.argpartition(-outline_EE.ravel(), n - 1)[:n])
    smooth_ND = _fields(random, WIDTH, edge, _SMOOTH).reshape(WIDTH, -1)[:, tissue_N].T
    noise_ND = random.standard_normal((n, WIDTH))
    features_ND = math.sqrt(_SMOOTH_SHARE) * smooth_ND + math.sqrt(1 - _SMOOTH_SHARE) * noise_ND
    cells_N2 = np.stack([tissue_N % edge, tissue_N // edge], axis=1)
    return Bag(f"synthetic-{seed}", torch.from_numpy(features_ND).float(), torch.from_numpy(cells_N2 * _PATCH), _PATCH)


def real() -> Bag:
    """Return the real slide of the shared data, 777 patches, each feature with mean 0 and variance 1 over them."""
    (path,) = (shared_data() / "bags").glob("*/features.h5")
    with h5py.File(path) as file:
        features_ND, coords_N2 = torch.from_numpy(file["feats"][:]), torch.from_numpy(file["coords"][:])
    features_ND = (features_ND - features_ND.mean(dim=0)) / features_ND.std(dim=0).clamp(min=1e-6)
    return Bag(path.parent.name, features_ND, coords_N2, patch_size_level0=0)


def crop(bag: Bag, n: int, seed: int) -> Bag:
    """Return the ``n`` patches nearest to one of the slide's; a smaller crop of the same seed lies within a larger."""
    centre = int(np.random.default_rng([2, seed]).integers(len(bag)))
    order_N = _distances(bag, centre).argsort(stable=True)[:n]
    return Bag(bag.slide_id, bag.features_ND[order_N], bag.coords_N2[order_N], bag.patch_size_level0)


def planted(bag: Bag, seed: int) -> Example:
    """Return the slide with nests: of both lesions (target 1), or one or two of the same (target 0)."""
    random = np.random.default_rng([3, seed])
    target = int(random.integers(2))
    lesion = int(random.integers(2))
    lesions = (0, 1) if target else (lesion,) * int(random.integers(1, 3))
    n, width = bag.features_ND.shape
    directions = np.random.default_rng(4).choice([-1.0, 1.0], (2, width))
    first = int(random.integers(n))
    apart_N = _distances(bag, first)
    # The second nest lies in the farther half of the slide's extent.
    second = int(random.choice(torch.nonzero(apart_N >= 0.6 * apart_N.max()).flatten().numpy()))
    features_ND = bag.features_ND.clone()
    step, shift = _step(bag), random.uniform(*_SHIFT)
    for centre, kind in zip((first, second), lesions, strict=False):
        is_nest_N = _distances(bag, centre) <= _NEST * math.sqrt(n) * step
        features_ND[is_nest_N] += shift * torch.from_numpy(directions[kind]).float()
    name = f"{bag.slide_id}-{seed}"
    return Example(Bag(name, features_ND, bag.coords_N2, bag.patch_size_level0), target, name, name)


def longmil(width: int, seed: int, **options: object) -> LongMil:
    """Return a LongMIL of inner width ``INNER`` in eval mode, other options as in the paper unless given."""
    model = build_model("longmil", width=width, n_classes=2, options={"inner": INNER} | options, seed=seed)
    assert isinstance(model, LongMil)
    return model.eval()


def in_form(model: LongMil, **options: object) -> LongMil:
    """Return a LongMIL with the same weights and other options."""
    changed = model.options.model_dump() | options
    sibling = build_model("longmil", width=model.embed.in_features, n_classes=2, options=changed, seed=0)
    sibling.load_state_dict(model.state_dict())
    assert isinstance(sibling, LongMil)
    return sibling.eval()


def train_briefly(model: LongMil, slide: Callable[[int], Bag], *, slides: int, seed: int) -> None:
    """Let ``model`` see each of so many planted slides once; ``slide`` returns them before planting, by their seed."""
    seeds = [10_000 * (seed + 1) + number for number in range(slides)]
    examples = [planted(slide(one), one) for one in seeds]
    train(model, examples, TrainSettings(learning_rate=3e-4, precision="float32"), seed=seed)


def _fields(random: np.random.Generator, count: int, edge: int, smoothness: float) -> NDArray[np.float64]:
    """Return Gaussian random fields (count, edge, edge) of variance 1, smoothed with a Gaussian of that width."""
    frequency_E = np.fft.fftfreq(edge)
    filter_E = np.exp(-2 * (np.pi * smoothness * frequency_E) ** 2)
    spectra = np.fft.fft2(random.standard_normal((count, edge, edge))) * filter_E[:, None] * filter_E
    fields: NDArray[np.float64] = np.fft.ifft2(spectra).real
    return fields / fields.std(axis=(1, 2), keepdims=True)


def _distances(bag: Bag, index: int) -> torch.Tensor:
    """Return each patch's distance (N) to one of them, in pixels."""
    return (bag.coords_N2 - bag.coords_N2[index]).double().norm(dim=1)


def _step(bag: Bag) -> float:
    """Return the distance between neighbouring patches in pixels."""
    return float(torch.unique(bag.coords_N2[:, 0]).diff().min()) if len(bag) > 1 else 1.0
