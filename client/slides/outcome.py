"""What an encode run tells: where it is, and what became of every slide."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EncodeProgress:
    """Where the run is."""

    slide_id: str
    index: int
    """Of this slide, from 0."""
    total: int
    """Slides in all."""
    tiles_done: int
    tiles_total: int
    """Patches of this slide; 0 while it is hashed and searched for tissue."""
    seconds_left: float | None = None
    """Of the whole run, estimated; None while nothing is known."""


@dataclass(frozen=True, slots=True)
class SlideResult:
    """A slide that has its feature file."""

    slide_id: str
    patches: int
    failed: int
    """Patches in tissue that could not be read."""
    mpp_level0: float
    seconds: float | None = None
    """From opening to the whole file; None for a slide that was skipped."""
    tissue: str = ""
    """How tissue was found, as the feature file has it."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A slide without a feature file."""

    slide_id: str
    path: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What became of every file in the slides folder."""

    done: tuple[SlideResult, ...]
    skipped: tuple[SlideResult, ...]
    quarantined: tuple[Quarantined, ...]
    ignored: tuple[str, ...]
    """Files that no suffix marks as slides."""
    seconds: float = 0.0
    """The run took."""
