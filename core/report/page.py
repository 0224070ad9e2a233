"""``render_report``: one self-contained HTML page. No script, font or image from elsewhere; it opens without a network.

Words and layout are in report.html.j2 (autoescaped: every name that comes from a site is text, never markup), looks in
report.css, numbers in ``wording``.
"""

import base64
from importlib.resources import files
from typing import Any

from fedpath.core.report import figures, palette, progress, wording
from fedpath.core.report.canvas import Picture
from fedpath.core.report.data import Heatmap, ReportData, Round, display_name

_FOLDER = files("fedpath.core.report")


def render_report(data: ReportData) -> str:
    """Return the report as one HTML document; the same data give the same bytes."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(
        auc=wording.auc,
        auc_label=wording.auc_label,
        bounds=wording.bounds,
        fixed=wording.fixed,
        size=wording.size,
        duration=wording.duration,
        listed=wording.listed,
        unbroken=_unbroken,
        figure=lambda picture: Markup(picture.svg),
        data_url=_data_url,
    )
    environment.globals.update(counted=wording.counted, display_name=display_name, unknown=wording.UNKNOWN)
    template = environment.from_string((_FOLDER / "report.html.j2").read_text(encoding="utf-8"))
    style = (_FOLDER / "report.css").read_text(encoding="utf-8")
    return template.render(data=data, style=Markup(style), **_shown(data))


def _shown(data: ReportData) -> dict[str, Any]:
    """Return what the page shows beyond the data themselves: sentences, figures, colours, sums."""
    headline, *proportion = wording.verdict(data)
    return {
        "headline": headline,
        "proportion": proportion,
        "forest": figures.forest(data),
        "rates": _drawn(
            figures.roc_by_model(data),
            figures.roc_by_hospital(data),
            figures.precision_recall(data),
            figures.every_slide(data),
        ),
        "progress": _drawn(progress.validation_by_round(data), progress.training_by_round(data)),
        "colours": {site: f"--site-{index % len(palette.SITES)}" for index, site in enumerate(data.sites)},
        "participation": participation(data),
        "incomplete": [
            (round_, _silent(round_))
            for round_ in data.rounds
            if round_.refused or set(round_.asked) - set(round_.answered)
        ],
        "columns": {
            name for name in ("patches", "mpp_level0", "note") if any(getattr(h, name) for h in data.hospitals)
        },
        "facts": _facts(data),
    }


def _silent(round_: Round) -> list[str]:
    """Return the hospitals of which nothing is known but that they did not answer."""
    told = {*round_.answered, *(refusal.site for refusal in (*round_.refused, *round_.late))}
    return [site for site in round_.asked if site not in told]


def _drawn(*pictures: Picture | None) -> list[Picture]:
    return [picture for picture in pictures if picture is not None]


def participation(data: ReportData) -> str:
    """Return in one sentence who took part."""
    if not data.rounds:
        return "No round was closed."
    rounds = wording.counted(len(data.rounds), "round")
    full = [r for r in data.rounds if set(r.asked) == set(r.answered) == set(data.sites) and not r.refused]
    if len(full) == len(data.rounds):
        everyone = f"All {len(data.sites)} hospitals" if len(data.sites) > 1 else f"Hospital {data.sites[0]}"
        return f"{everyone} took part in every one of {rounds}; no update was refused."
    return (
        f"All hospitals took part in {len(full)} of {rounds}. In the others the model was averaged over those that "
        "answered and passed the checks; a result never claims a hospital that did not contribute."
    )


def _facts(data: ReportData) -> list[tuple[str, str]]:
    """Return the settings as (name, value), in the order a reader would ask."""
    federation = data.federation
    width = f"{federation.encoder}, {federation.feature_width} numbers a patch"
    facts = [
        ("Federation", federation.name),
        ("Classes", ", ".join(federation.labels)),
        ("Model", f"{federation.model}, {federation.parameters:,} parameters"),
        (
            "Encoder",
            width if federation.mpp is not None else f"{federation.encoder}, {federation.feature_width} numbers",
        ),
    ]
    if federation.encoder_sha256:
        facts.append(("Encoder weights", f"SHA-256 {federation.encoder_sha256}"))
    if federation.mpp is not None and federation.patch_px is not None:
        edge = federation.mpp * federation.patch_px
        facts.append(("Patches", f"{federation.patch_px} px at {federation.mpp:g} µm/px ({edge:.0f} µm wide)"))
    facts += [("Rounds", str(federation.rounds)), ("Seed", str(federation.seed)), *federation.settings]
    if federation.model_sha256:
        facts.append(("Model weights", f"SHA-256 {federation.model_sha256}"))
    if federation.finished:
        facts.append(("Finished", federation.finished))
    return facts


def _unbroken(text: str) -> str:
    """Keep a number and its percent sign on one line."""
    return text.replace(" %", "\u00a0%")


def _data_url(heatmap: Heatmap) -> str:
    return "data:image/png;base64," + base64.b64encode(heatmap.png).decode("ascii")
