"""A small hospital with drawn slides, for tests of fine-tuning: slides, features, manifest, site.toml."""

from functools import cache
from pathlib import Path

import numpy as np
from slide_files import drawn

from fedpath.client.slides.encode import encode_folder
from fedpath.client.slides.settings import EncodeSettings
from fedpath.client.slides.synthetic.hospital import write_slide

MPP, PATCH_PX, EDGE_PX = 0.5, 64, 384
ENCODER = "seeded-conv"
SPLITS = {"train": 4, "validation": 2, "test": 2}
"""Patients, one slide each; every second one has a tumour."""
LABELS = ["normal", "tumour"]


@cache
def _drawing(look: int) -> np.ndarray:
    return drawn(3, look)


def write_slides(folder: Path, site: str, *, look: int = 0) -> None:
    """Write `slides/` and `manifest.csv`: pieces of one drawn slide, so that all is done in a moment.

    Those with a tumour are darker: what is to be learnt is not the point.
    """
    image = _drawing(look)
    rows = ["patient_id,slide_id,label,split"]
    number = 0
    for split, patients in SPLITS.items():
        for _ in range(patients):
            row, column = divmod(number, 4)
            left, top = 300 + column * EDGE_PX, 400 + row * EDGE_PX
            piece = image[top : top + EDGE_PX, left : left + EDGE_PX]
            slide = f"slide-{site}-{number}"
            shade = 0.7 if number % 2 else 1.0
            write_slide(folder / "slides" / f"{slide}.tif", (piece * shade).astype(np.uint8), MPP, levels=1)
            rows.append(f"patient-{site}-{number},{slide},{LABELS[number % 2]},{split}")
            number += 1
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")


def write_slide_hospital(folder: Path, site: str, *, look: int = 0, more: str = "") -> None:
    """Write all of it; ``more`` is added to site.toml."""
    write_slides(folder, site, look=look)
    encode_folder(folder / "slides", folder / "features", EncodeSettings(MPP, PATCH_PX), encoder=ENCODER)
    (folder / "site.toml").write_text(
        f'[site]\nname = "{site}"\n[data]\nmanifest = "manifest.csv"\nfeatures = "features"\n'
        f'[slides]\nfolder = "slides"\n{more}'
    )
