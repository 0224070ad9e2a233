"""Turn dye maps into colours: Beer–Lambert with a hospital's dyes, on its glass, through its scanner."""

import colorsys
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from fedpath.client.slides.synthetic.draw import Drawing
from fedpath.client.slides.synthetic.knobs import DENSITY_PER_STEP, LOOKS, Look


def look_of(index: int) -> Look:
    """Return how hospital ``index`` (from 0) looks; beyond the listed ones, dyes are drawn from the index."""
    if index < len(LOOKS):
        return LOOKS[index]
    random = np.random.default_rng([index, 7])
    base = LOOKS[index % len(LOOKS)]
    blue, green, red = colorsys.hsv_to_rgb(random.uniform(0.05, 0.25), 0.5, 0.8)
    return replace(
        base,
        mpp=float(random.choice([0.22, 0.25, 0.2738, 0.325, 0.44, 0.46, 0.5])),
        haematoxylin=(red, green, blue),
        eosin=(random.uniform(0.03, 0.3), 0.95, random.uniform(0.1, 0.5)),
        haematoxylin_strength=random.uniform(0.7, 1.3),
        eosin_strength=random.uniform(0.5, 1.3),
    )


def jittered(look: Look, random: np.random.Generator, strength: tuple[float, float], jitter: float) -> Look:
    """Return the look of one slide: dyes and strength vary from batch to batch."""
    overall = random.uniform(*strength)

    def near(colour: tuple[float, float, float]) -> tuple[float, float, float]:
        red, green, blue = (max(0.01, value * (1 + random.normal(scale=jitter))) for value in colour)
        return red, green, blue

    return replace(
        look,
        haematoxylin=near(look.haematoxylin),
        eosin=near(look.eosin),
        haematoxylin_strength=look.haematoxylin_strength * overall * (1 + random.normal(scale=jitter)),
        eosin_strength=look.eosin_strength * overall * (1 + random.normal(scale=2 * jitter)),
    )


def colour(drawing: Drawing, look: Look) -> NDArray[np.uint8]:
    """Return the slide in RGB (S×S×3) at the drawing's resolution."""
    steps = np.arange(256) * DENSITY_PER_STEP
    h_total = np.linalg.norm(look.haematoxylin)
    e_total = np.linalg.norm(look.eosin)
    channels = []
    for h_share, e_share, glass in zip(look.haematoxylin, look.eosin, look.glass, strict=True):
        # Each dye passes a share of the light; shares multiply: look-ups and a product, not 12 million powers.
        h_passes = np.rint(255 * 10 ** (-steps * look.haematoxylin_strength * h_share / h_total)).astype(np.uint8)
        e_passes = np.rint(255 * 10 ** (-steps * look.eosin_strength * e_share / e_total)).astype(np.uint8)
        light = cv2.multiply(
            cv2.LUT(drawing.haematoxylin_SS, h_passes), cv2.LUT(drawing.eosin_SS, e_passes), scale=glass / 255**2
        )
        channels.append(light)
    image: NDArray[np.uint8] = cv2.merge(channels).astype(np.uint8, copy=False)
    return image
