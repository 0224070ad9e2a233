"""Packages of a user's own: written into a folder as pip installs them, found wherever that folder is on the path."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MY_MIL = """
import sys
from pathlib import Path

import torch
from torch import nn

# Who imported this: the hospital that a fedpath process plays, or somebody else.
site = sys.argv[sys.argv.index("--site") + 1] if "--site" in sys.argv else "nobody"
Path(__file__).with_name(f"imported-by-{site}").touch()


class MyMIL(nn.Module):
    def __init__(self, width, n_classes, hidden=8):
        super().__init__()
        self.reduce = nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.score, self.head = nn.Linear(hidden, 1), nn.Linear(hidden, n_classes)

    def forward(self, features):
        hidden = self.reduce(features)
        attention = torch.softmax(self.score(hidden).T, dim=1)
        slide = attention @ hidden
        return self.head(slide), attention, slide
"""


def write_package(
    folder: Path,
    *,
    entry: str = "my-mil",
    target: str = "mymil:MyMIL",
    package: str = "my-package",
    version: str = "1.0",
    source: str | None = MY_MIL,
    group: str = "fedpath.models",
) -> Path:
    """Write a package's module and metadata into ``folder``; return the module's file."""
    metadata = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{entry} = {target}\n")
    module = folder / f"{target.partition(':')[0]}.py"
    if source is not None:
        module.write_text(source)
    return module


@contextmanager
def installed(*folders: Path) -> Iterator[None]:
    """Put the folders on the path, and forget what was imported from them afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in folders:
            patch.syspath_prepend(folder)
        before = set(sys.modules)
        try:
            yield
        finally:
            for name in set(sys.modules) - before:
                file = getattr(sys.modules[name], "__file__", None)
                if file is not None and any(Path(file).is_relative_to(folder) for folder in folders):
                    del sys.modules[name]
