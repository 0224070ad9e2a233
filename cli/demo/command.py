"""`fedpath demo`: three hospitals and a coordinator on this machine, from slides to a report."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpath.cli.examples import examples
from fedpath.cli.output import AsLines

EXAMPLES = examples("fedpath demo", "fedpath demo --sites 4 --rounds 10 --dir demo")

if TYPE_CHECKING:
    from rich.console import Console

    from fedpath.cli.demo.live import LiveView
    from fedpath.cli.demo.plan import Plan
    from fedpath.cli.demo.processes import Processes
    from fedpath.core.report.data import ReportData


def demo_command(
    rounds: Annotated[int, typer.Option(help="Rounds of training.")] = 15,
    sites: Annotated[int, typer.Option(help="How many hospitals.")] = 3,
    seed: Annotated[int, typer.Option(help="The same seed gives the same slides and weights.")] = 0,
    slides: Annotated[int, typer.Option(help="Slides a hospital.")] = 36,
    dir: Annotated[  # noqa: A002
        Path | None, typer.Option(help="Where everything goes, empty or new; by default fedpath-demo, then -2, -3, …")
    ] = None,
    as_json: AsLines = False,
) -> None:
    """Try everything on this machine: draw slides, train one model across hospitals, write a report.

    Every hospital is a process of its own (`fedpath client join`), the coordinator another (`fedpath server start`);
    they talk over TLS with keys made on the spot.
    """
    from fedpath.cli import output
    from fedpath.cli.demo.plan import free_folder, make_plan

    plan = make_plan(dir or free_folder(), rounds=rounds, sites=sites, seed=seed, slides=slides)
    console, clock = output.console(quiet=as_json), _Clock()
    data, peak_mb = _run(plan, console, clock, as_json=as_json)
    if as_json:
        output.result(report=plan.folder / "report.html", models=plan.server_state / "runs", summary=_summary(plan))
    else:
        _show(data, console, plan, clock, peak_mb)


def _run(plan: "Plan", console: "Console", clock: "_Clock", *, as_json: bool) -> tuple["ReportData", float]:
    """Go through the phases; return the report's data and the peak memory in MB."""
    from fedpath.cli.demo.live import LiveView
    from fedpath.cli.demo.plan import ENCODER, MPP, PATCH_PX, write_configuration
    from fedpath.cli.demo.processes import Processes

    view = LiveView(plan, console, as_json=as_json)
    write_configuration(plan)
    with Processes(plan.logs) as processes:
        with clock.phase("drawing the slides"):
            for hospital in plan.hospitals:
                place = ["--site", hospital.name, "--index", str(hospital.index)]
                amount = ["--seed", str(plan.seed), "--slides", str(plan.slides)]
                processes.start(f"draw-{hospital.name}", ["slides", "draw", hospital.folder, *place, *amount])
            view.watch(processes, "1/5 drawing slides, each hospital with its own stain and scanner")
        with clock.phase("slides to features"):
            for hospital in plan.hospitals:
                how = ["--encoder", ENCODER, "--mpp", str(MPP), "--patch", str(PATCH_PX)]
                processes.start(
                    f"encode-{hospital.name}", ["slides", "encode", hospital.slides, "--out", hospital.features, *how]
                )
            view.watch(processes, "2/5 finding tissue, cutting and encoding patches")
        with clock.phase("federated training"):
            run_folder = _federate(plan, processes, view)
        with clock.phase("comparison"):
            _train_apart(plan, processes)
            view.watch(processes, "4/5 for comparison: each hospital alone, and all data in one place")
    with clock.phase("report"):
        view.say("5/5 testing, heatmaps, report")
        data = _report(plan, run_folder, clock, view.peak_mb)
    return data, view.peak_mb


def _federate(plan: "Plan", processes: "Processes", view: "LiveView") -> Path:
    """Provision, start the coordinator and the hospitals, wait for the end; return the run's folder."""
    from fedpath.core.config import load_federation
    from fedpath.server.provision import provision

    provision(load_federation(plan.federation), plan.credentials)
    sites = {hospital.name: hospital.config for hospital in plan.hospitals}
    processes.start_federation(plan.federation, plan.server_state, plan.credentials, sites)
    view.watch(processes, "3/5 training together: parameters travel, slides stay")
    (run_folder,) = (plan.server_state / "runs").iterdir()
    return run_folder


def _train_apart(plan: "Plan", processes: "Processes") -> None:
    """Start the trainings the federated model is compared with."""
    groups = {hospital.name: [hospital] for hospital in plan.hospitals} | {"pooled": list(plan.hospitals)}
    for name, hospitals in groups.items():
        sites = [part for hospital in hospitals for part in ("--site", str(hospital.config))]
        out = plan.comparison / name
        processes.start(f"train-{name}", ["train", "--config", plan.federation, *sites, "--out", out])


def _report(plan: "Plan", run_folder: Path, clock: "_Clock", peak_mb: float) -> "ReportData":
    """Test every model, draw the heatmaps, write report.html and summary.json."""
    from fedpath.cli.demo import compare
    from fedpath.cli.demo.assemble import assemble
    from fedpath.core.files import write_json, write_text
    from fedpath.core.report.page import render_report
    from fedpath.core.report.summary import summary

    cohorts = compare.load_cohorts(plan)
    best = run_folder / "best.safetensors"
    names = [hospital.name for hospital in plan.hospitals]
    models = (
        compare.judge("federated", "federated", best, cohorts),
        *(
            compare.judge(f"local-{name}", "local", plan.comparison / name / "best.safetensors", cohorts, site=name)
            for name in names
        ),
        compare.judge("pooled", "pooled", plan.comparison / "pooled" / "best.safetensors", cohorts),
    )
    heatmaps = compare.draw_heatmaps(plan, best, cohorts)
    data = assemble(plan, run_folder, cohorts, models, heatmaps, clock.durations)
    write_text(plan.folder / "report.html", render_report(data))
    resources = {"resources": {"seconds": round(clock.total, 1), "peak_memory_mb": round(peak_mb)}}
    write_json(plan.folder / "summary.json", summary(data) | resources)
    return data


def _summary(plan: "Plan") -> dict[str, Any]:
    """Return what summary.json says."""
    import json

    return dict(json.loads((plan.folder / "summary.json").read_text(encoding="utf-8")))


def _show(data: "ReportData", console: "Console", plan: "Plan", clock: "_Clock", peak_mb: float) -> None:
    """Print the table at the end and where things lie."""
    from rich.table import Table

    from fedpath.core.report.data import display_name

    table = Table(title=f"AUC on the {len(data.models[0].predictions)} test slides of all hospitals")
    table.add_column("model")
    table.add_column("AUC [95 % CI]")
    for site in data.sites:
        table.add_column(f"at {site}", justify="right")
    for model in data.models:
        interval = model.test_auc
        text = "–" if interval is None else f"{interval.value:.3f}"
        if interval is not None and interval.bounds is not None:
            text += f" [{interval.bounds[0]:.2f}–{interval.bounds[1]:.2f}]"
        places = (model.auc_at(site) for site in data.sites)
        table.add_row(display_name(model), text, *("–" if place is None else f"{place.value:.2f}" for place in places))
    console.print(table)
    for departure in data.departures:
        console.print(f"left hospital {departure.site}: {departure.entries} messages, {departure.bytes / 1e6:.1f} MB")
    console.print(f"report   {plan.folder / 'report.html'}", soft_wrap=True)
    console.print(f"figures  {plan.folder / 'summary.json'}", soft_wrap=True)
    console.print(f"models   {plan.server_state / 'runs'}", soft_wrap=True)
    console.print(f"took {clock.total:.0f} s, at most {peak_mb / 1000:.1f} GB of memory")


class _Clock:
    """How long each phase took."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._durations: list[tuple[str, float]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block under ``name``."""
        began = time.monotonic()
        yield
        self._durations.append((name, time.monotonic() - began))

    @property
    def durations(self) -> tuple[tuple[str, float], ...]:
        """Name and seconds of the phases that are over."""
        return tuple(self._durations)

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started
