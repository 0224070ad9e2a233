"""Every number that makes the drawn cohort easy or hard, in one place.

Lengths in micrometres, densities of nuclei per mm², optical densities on a scale where 255 is 2.0 (1 % transmission).
"""

from dataclasses import dataclass, field

DRAW_MPP = 0.5
"""Slides are drawn at this resolution, then resized to the hospital's own."""
EDGE_UM = 1024.0
"""Edge of a slide."""
TILE_PX = 256
JPEG_QUALITY = 85
DENSITY_PER_STEP = 2.0 / 255
"""Optical density (base 10) of one step of the drawn maps."""


@dataclass(frozen=True, slots=True)
class Cells:
    """A population of nuclei."""

    per_mm2: float
    radius_um: tuple[float, float]
    """Smallest and largest mean radius."""
    elongation: tuple[float, float]
    darkness: tuple[int, int]
    vesicular: bool = False
    """Open chromatin with a nucleolus, as in tumour cells."""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """What is planted, how much of it, and how like the harmless structures it is."""

    stroma: Cells = Cells(1500, (2.2, 3.4), (1.6, 3.2), (70, 115))
    lymphocytes: Cells = Cells(14000, (2.2, 2.9), (1.0, 1.2), (100, 140))
    glands: Cells = Cells(6500, (2.8, 3.8), (1.1, 1.6), (75, 115))
    tumour: Cells = Cells(5200, (3.9, 6.2), (1.0, 1.7), (75, 135), vesicular=True)
    hyperplasia: Cells = Cells(6500, (3.0, 4.2), (1.0, 1.5), (80, 130))
    nests: tuple[int, int] = (1, 4)
    """Nests in a positive slide, both ends included."""
    nest_radius_um: tuple[float, float] = (52.0, 112.0)
    small_share: float = 0.1
    """Positive slides with a single nest of the smallest size."""
    lymphoid_radius_um: tuple[float, float] = (45.0, 100.0)
    gland_radius_um: tuple[float, float] = (30.0, 70.0)
    hyperplasia_radius_um: tuple[float, float] = (40.0, 85.0)
    strength: tuple[float, float] = (0.65, 1.15)
    """Staining strength of a slide relative to its hospital: the lower end is a pale slide."""
    stain_jitter: float = 0.06
    """Standard deviation of a slide's stain colours around its hospital's."""


@dataclass(frozen=True, slots=True)
class CaseMix:
    """How many harmless structures any slide of a hospital holds, fewest and most.

    Hospitals see different cases. One that knows no lymphoid aggregates takes those of others for tumour: what it lacks
    for a good model is what the others have.
    """

    lymphoid: tuple[int, int]
    """Dense and dark like nests, but of small round nuclei."""
    glands: tuple[int, int]
    """Rims of regular nuclei around a lumen."""
    hyperplasia: tuple[int, int]
    """Solid like nests, but of regular nuclei of middling size without nucleoli."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a hospital's slides look: its dyes and its scanner."""

    mpp: float
    """µm/px of level 0."""
    haematoxylin: tuple[float, float, float]
    """Absorption in red, green, blue; unit length."""
    eosin: tuple[float, float, float]
    haematoxylin_strength: float
    eosin_strength: float
    glass: tuple[int, int, int]
    """RGB of clean glass."""
    mix: CaseMix


LOOKS = (
    # A: the textbook; 40x.
    Look(0.25, (0.65, 0.70, 0.29), (0.09, 0.95, 0.28), 1.0, 0.6, (244, 243, 245), CaseMix((0, 1), (3, 7), (0, 0))),
    # B: strong violet haematoxylin over much reddish eosin; 20x.
    Look(0.50, (0.52, 0.76, 0.40), (0.08, 0.88, 0.47), 1.2, 0.85, (249, 246, 243), CaseMix((1, 4), (1, 4), (0, 1))),
    # C: faded and bluish, little eosin; a scanner in between.
    Look(0.325, (0.78, 0.58, 0.24), (0.20, 0.90, 0.36), 0.78, 0.42, (236, 240, 238), CaseMix((0, 2), (0, 3), (1, 3))),
)


@dataclass(frozen=True, slots=True)
class Splits:
    """Shares of a hospital's patients."""

    train: float = 0.4
    validation: float = 0.2
    two_slides: float = 0.2
    """Share of the patients with a second slide."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """All of it."""

    difficulty: Difficulty = field(default_factory=Difficulty)
    splits: Splits = field(default_factory=Splits)
