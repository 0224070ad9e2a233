"""Updates as the coordinator has them: in files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedpath.core.exchange.stored import ArrayFile, write_arrays
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation import Counted


def stored(folder: Path, site: str, arrays: Arrays, metadata: Mapping[str, str] | None = None) -> ArrayFile:
    """Write arrays as a site's update."""
    path = folder / f"{site}.safetensors"
    with path.open("wb") as file:
        write_arrays(file, arrays, metadata)
    return ArrayFile(path)


def counted(folder: Path, site: str, arrays: Arrays, patients: Mapping[str, float] | float, **more: object) -> Counted:
    """An update that counts: patients by group, or as many for each group."""
    if not isinstance(patients, Mapping):
        patients = {name.partition("/")[0]: float(patients) for name in arrays}
    return Counted(site, stored(folder, site, arrays), patients, **more)  # type: ignore[arg-type]


def drawn(seed: int, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Arrays of normal numbers."""
    random = np.random.default_rng(seed)
    return {name: np.asarray(random.normal(size=shape), dtype=np.float32) for name, shape in shapes.items()}
