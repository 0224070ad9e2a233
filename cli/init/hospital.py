"""``site.toml`` from a kit and the answers to a few questions."""

import math
from pathlib import Path

from fedpath.cli.init.coordinator import NAME_WORDS
from fedpath.cli.init.files import Written, check_new, write_new
from fedpath.cli.init.questions import Questions, checked_by
from fedpath.core.config import load_site
from fedpath.core.config.kit import KIT_FILE, KitConfig
from fedpath.core.config.loading import load_toml
from fedpath.core.config.names import FederationName, SiteName
from fedpath.core.errors import ConfigError
from fedpath.core.recipes import toml


def ask_hospital(
    questions: Questions,
    out: Path,
    *,
    kit: Path | None,
    site: str | None,
    federation: str | None,
    data: Path | None,
    slides: Path | None,
    gpu_gb: str | None,
) -> Written:
    """Ask what an option does not say, and write site.toml.

    Raises:
        ConfigError: the file exists, an option is wrong, or nothing may be asked and an answer is missing.
    """
    check_new(out)
    folder = questions.ask(
        "Which folder is the kit from the coordinator's operator (empty: not there yet)?",
        _kit,
        option="--kit",
        given=_text(kit),
        default="",
    )
    known = load_toml(Path(folder) / KIT_FILE, KitConfig) if folder else None
    named = questions.ask(
        "What is this hospital called in the federation?",
        checked_by(SiteName, NAME_WORDS),
        option="--site",
        given=site,
        default=known.site if known else None,
    )
    takes_part = questions.ask(
        "Which federation do you take part in?",
        checked_by(FederationName, NAME_WORDS),
        option="--federation",
        given=federation,
        default=known.federation if known else None,
    )
    for option, answer, stated in (
        ("--site", named, known and known.site),
        ("--federation", takes_part, known and known.federation),
    ):
        if stated is not None and answer != stated:
            raise ConfigError(
                f"{option} is '{answer}', the kit is for '{stated}'", remedy="take the kit's, or another kit"
            )
    where = questions.ask(
        "Which folder has (or will have) manifest.csv and features/?",
        _folder,
        option="--data",
        given=_text(data),
        default=".",
    )
    pictures = questions.ask(
        "Which folder has the slides (empty: not needed, nothing is fine-tuned)?",
        _folder,
        option="--slides",
        given=_text(slides),
        default="",
    )
    memory = questions.ask(
        "How many GB of the GPU's memory may fine-tuning use (empty: all, or no GPU)?",
        _gigabytes,
        option="--gpu-gb",
        given=gpu_gb,
        default="",
    )
    write_new(out, _site_toml(out, named, takes_part, where, pictures, memory), load_site)
    answers = {
        "kit": folder or None,
        "site": named,
        "federation": takes_part,
        "data": where,
        "slides": pictures or None,
        "gpu_gb": float(memory) if memory else None,
    }
    return Written(out, answers, _steps(out, named, where, pictures, folder))


def _site_toml(out: Path, site: str, federation: str, data: str, slides: str, memory: str) -> str:
    """Return the file; what was not answered stands there as a comment."""
    cohort = Path(data)
    pictures = _as_written(Path(slides) if slides else cohort / "slides", out)
    without = "" if slides else "# "
    vram = f"vram_gb = {float(memory)}" if memory else "# vram_gb = 8.0"
    return f"""\
# A hospital's own data, computer and rules. Paths are relative to this file, which never leaves the hospital.

[site]
# As in the kit, and after `fedpath client join --site`.
name = {toml(site)}

[data]
# CSV with a row a slide: patient_id, slide_id, label, and, where you have one, split (train, validation, test).
manifest = {toml(_as_written(cohort / "manifest.csv", out))}
# Folder with <slide_id>.h5 for each slide, from `fedpath slides encode`.
features = {toml(_as_written(cohort / "features", out))}
# Without a split column, shares of the patients:
# validation_share = 0.2
# test_share = 0.2

# Where the slides lie: needed where the federation fine-tunes the encoder.
{without}[slides]
{without}folder = {toml(pictures)}

# The encoder's weights, for fine-tuning one that comes without: the same file as at the other hospitals.
# [encoder]
# weights = "weights/resnet50.pth"

# The clinical table, if there is one: every field that you map is read, no other.
# [clinical]
# table = "clinical.csv"
# patient_column = "patient_id"
# [clinical.columns]
# age = "Age at diagnosis"

[compute]
# "auto" takes a GPU if there is one.
device = "auto"
# What fine-tuning may use of the GPU's memory, in GB; all that the card has where it is not set.
{vram}

[policy]
# Orders of other federations are refused.
federations = [{toml(federation)}]
# Only these models; any of fedpath's own where it is not set.
# models = ["acmil", "longmil", "bd", "vib", "clam-sb"]
# Whether encoders may be fine-tuned here: pixels are read for it, and stay.
fine_tune = {"true" if slides else "false"}
# No figure over fewer patients than this is told to the coordinator.
min_patients = 1
"""


def _steps(out: Path, site: str, data: str, slides: str, kit: str) -> list[str]:
    features = Path(data) / "features"
    return [
        *(
            [f"make features:      fedpath slides encode {slides or 'SLIDES'} --out {features}"]
            if not features.is_dir()
            else []
        ),
        f"what would be read: fedpath cohort check --config federation.toml --site {out}",
        f"take part:          fedpath client join --site {site} --kit {kit or 'KIT'} --config {out}",
    ]


def _kit(answer: str) -> str:
    """Check that a folder is a kit; empty is none."""
    if answer and not (_expanded(answer) / KIT_FILE).is_file():
        raise ValueError(f"no {KIT_FILE} in it: name the folder that the operator's `fedpath provision` made")
    return str(_expanded(answer)) if answer else ""


def _folder(answer: str) -> str:
    """Check that a folder is none, or is a folder; it may come later."""
    path = _expanded(answer)
    if answer and path.exists() and not path.is_dir():
        raise ValueError("is a file: name a folder")
    return str(path) if answer else ""


def _gigabytes(answer: str) -> str:
    try:
        size = float(answer or "1")
    except ValueError:
        size = math.nan
    if not (math.isfinite(size) and size > 0):
        raise ValueError("should be a number above 0, for example 8 or 11.5")
    return answer


def _expanded(answer: str) -> Path:
    return Path(answer).expanduser()


def _as_written(path: Path, out: Path) -> str:
    """Return a path as the file has it: relative to the file where it lies below its folder."""
    path, folder = path.resolve(), out.resolve().parent
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
