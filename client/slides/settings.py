"""With what settings slides are encoded."""

from dataclasses import dataclass
from pathlib import Path

from fedpath.core.errors import ConfigError

BATCH = 64
READERS = 2


@dataclass(frozen=True, slots=True)
class EncodeSettings:
    """What decides a slide's features, and how much is done at a time."""

    mpp: float
    """Resolution of the patches, µm/px."""
    patch_px: int
    """Edge of a patch in pixels at `mpp`."""
    slide_mpp: float | None = None
    """µm/px of level 0 for slides that state none."""
    outlines: Path | None = None
    """Folder with people's outlines of tissue; None where it is found automatically."""
    max_failed: float = 0.5
    """A slide with more than this share of unreadable patches is quarantined instead of encoded in part."""
    batch: int = BATCH
    """Patches that are encoded at a time."""
    readers: int = READERS
    """Threads that read patches."""
    threads: int = 1
    """Threads of the encoder, where it runs on the CPU."""

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ConfigError: naming the option and what it takes.
        """
        least = {"mpp": 0.05, "patch": 16, "batch": 1, "readers": 1, "threads": 1}
        given = {"mpp": self.mpp, "patch": self.patch_px, "batch": self.batch}
        for name, value in (given | {"readers": self.readers, "threads": self.threads}).items():
            if not value >= least[name]:
                raise ConfigError(f"--{name} is {value}", remedy=f"give at least {least[name]}")
        if self.slide_mpp is not None and not self.slide_mpp > 0:
            raise ConfigError(f"--slide-mpp is {self.slide_mpp}", remedy="give µm/px of level 0, for example 0.25")
        if not 0 <= self.max_failed <= 1:
            raise ConfigError(f"--max-failed is {self.max_failed}", remedy="give a share from 0 to 1, for example 0.5")
        if self.outlines is not None and not self.outlines.exists():
            raise ConfigError(f"--outlines {self.outlines}: no such file or folder", remedy="check the path")
