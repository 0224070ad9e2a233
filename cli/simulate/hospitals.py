"""The hospitals of a simulation: their folders, and who of a cohort's patients is at which of them.

```
OUT/simulation.json        what was dealt; written last
OUT/cohort/                the drawn cohort, where none was given
OUT/hospitals/site-001/    a hospital's manifest.csv and state
```

Features are not copied: each hospital's manifest names its own slides in the cohort's folder.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpath.cli.simulate.deal import deal_patients
from fedpath.cli.simulate.planted import draw_bags, manifest
from fedpath.core.cohort.examples import load_site_cohort
from fedpath.core.config import FederationConfig, SiteConfig, load_site
from fedpath.core.config.site import DataSection, SiteSection
from fedpath.core.errors import ConfigError, DataError
from fedpath.core.files import write_json, write_text

SIMULATION_FILE = "simulation.json"
_COHORT, _HOSPITALS = "cohort", "hospitals"
_AT_ONCE = 50
"""Patients that are drawn in one task."""


@dataclass(frozen=True, slots=True)
class Deal:
    """Whose patients are dealt, and how."""

    sites: Sequence[str]
    given: Mapping[str, Path]
    """Real hospitals' site.toml by name, in place of all that follows."""
    data: Path | None
    """Folder of the cohort, or a site.toml; None for one that is drawn."""
    patients: int
    """Of each hospital, where they are drawn."""
    skew: float | None
    seed: int


def check_folder(out: Path) -> None:
    """Check that a simulation may be kept in a folder.

    Raises:
        ConfigError: it holds something else.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (out / SIMULATION_FILE).is_file():
        raise ConfigError(f"--out {out}: exists and holds no simulation", remedy="remove it or name another folder")


def make_hospitals(deal: Deal, config: FederationConfig, out: Path, ray: Any) -> dict[str, SiteConfig]:
    """Make the hospitals, or find them made; return each one's site.toml by name.

    Args:
        deal: who they are.
        config: federation.toml.
        out: the simulation's folder.
        ray: the module, connected; draws the cohort where none is given.

    Raises:
        ConfigError: ``out`` holds another simulation, the cohort has too few patients, or a site.toml is wrong.
        DataError: the cohort is wrong.
    """
    out = out.resolve()
    mark, stated = out / SIMULATION_FILE, _stated(deal, config)
    made = mark.exists() and (out / _HOSPITALS).is_dir()
    if mark.exists() and json.loads(mark.read_text()) != stated:
        raise ConfigError(
            f"--out {out}: holds a simulation of other hospitals", remedy="name another folder, or leave --out out"
        )
    if deal.given:
        hospitals = {name: _given(name, path, out) for name, path in deal.given.items()}
        (out / _HOSPITALS).mkdir(parents=True, exist_ok=True)
    else:
        source = _source(deal, out)
        if not made and deal.data is None:
            _draw(deal, config, source.data, ray)
        if not made:
            _write_manifests(deal, config, source, out)
        hospitals = {name: _hospital(source, out, name) for name in deal.sites}
    write_json(mark, stated)
    return hospitals


def remove_hospitals(out: Path) -> None:
    """Remove what the hospitals have; models and records stay."""
    for name in (_HOSPITALS, _COHORT):
        shutil.rmtree(out / name, ignore_errors=True)


def _given(name: str, path: Path, out: Path) -> SiteConfig:
    """Return a real hospital; what it keeps goes below ``out``, and not where its site.toml says."""
    config = load_site(path)
    if config.site.name != name:
        raise ConfigError(
            f"--site {name}={path}: that file is of site '{config.site.name}'",
            remedy=f"give --site {config.site.name}={path}",
        )
    return config.model_copy(update={"state": _state(out, name)})


def _stated(deal: Deal, config: FederationConfig) -> dict[str, Any]:
    """Return what decides about the hospitals' data, as JSON."""
    if deal.given:
        return {"given": {name: str(path.resolve()) for name, path in sorted(deal.given.items())}}
    whose: dict[str, Any] = {"data": str(deal.data.resolve())} if deal.data is not None else {}
    if deal.data is None:
        whose = {"patients": deal.patients, "features": config.features.model_dump(mode="json")}
    return whose | {"sites": list(deal.sites), "labels": config.task.labels, "skew": deal.skew, "seed": deal.seed}


def _source(deal: Deal, out: Path) -> SiteConfig:
    """Return whose patients are dealt: a folder with manifest.csv and features/, unless a site.toml says otherwise."""
    folder = out / _COHORT if deal.data is None else deal.data.resolve()
    described = folder / "site.toml" if folder.is_dir() else folder
    if deal.data is not None and described.is_file():
        return load_site(described)
    if deal.data is not None and not (folder / "manifest.csv").is_file():
        raise DataError(
            f"{deal.data}: no manifest.csv in it, and no site.toml",
            remedy="name a folder with manifest.csv and features/, or the site.toml that says where they lie",
        )
    data = DataSection(manifest=folder / "manifest.csv", features=folder / "features")
    return SiteConfig(site=SiteSection(name="cohort"), data=data)


def _draw(deal: Deal, config: FederationConfig, data: DataSection, ray: Any) -> None:
    count = deal.patients * len(deal.sites)
    data.features.mkdir(parents=True, exist_ok=True)
    write_text(data.manifest, manifest(config, count))
    draw = ray.remote(draw_bags)
    pieces = [range(start, min(start + _AT_ONCE, count)) for start in range(0, count, _AT_ONCE)]
    ray.get([draw.remote(config, data.features, count, piece, deal.seed) for piece in pieces])


def _write_manifests(deal: Deal, config: FederationConfig, source: SiteConfig, out: Path) -> None:
    cohort = load_site_cohort(source, config.task.labels)
    dealt = deal_patients(cohort, deal.sites, seed=deal.seed, skew=deal.skew)
    rows: dict[str, list[str]] = {name: [] for name in deal.sites}
    for slide in cohort.slides:
        label = _cell(config.task.labels[slide.label])
        row = [_cell(slide.patient_id), _cell(slide.slide_id), label, slide.split]
        rows[dealt[slide.patient_id]].append(",".join(row))
    for name, lines in rows.items():
        write_text(_manifest(out, name), "\n".join(["patient_id,slide_id,label,split", *lines, ""]))


def _hospital(source: SiteConfig, out: Path, name: str) -> SiteConfig:
    data = source.data.model_copy(update={"manifest": _manifest(out, name)})
    site = SiteSection(name=name)
    return source.model_copy(update={"site": site, "data": data, "state": _state(out, name)})


def _manifest(out: Path, name: str) -> Path:
    return out / _HOSPITALS / name / "manifest.csv"


def _state(out: Path, name: str) -> Path:
    return out / _HOSPITALS / name / "state"


def _cell(text: str) -> str:
    """Return a cell of a CSV file."""
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',;\t"') else text
