"""One call of `fedpath simulate`, from its options to its tables."""

import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from fedpath.cli import output
from fedpath.cli.simulate.coordinate import coordinate
from fedpath.cli.simulate.federation import simulated, site_names
from fedpath.cli.simulate.hospitals import Deal, check_folder, make_hospitals, remove_hospitals
from fedpath.cli.simulate.processes import Processes, processes_on
from fedpath.cli.simulate.show import View, show_result
from fedpath.cli.simulate.talk import Failures, RayTalk
from fedpath.cli.stopping import stop_on_signals
from fedpath.core.cluster import LOCAL
from fedpath.core.config import FederationConfig, SiteConfig
from fedpath.core.errors import ConfigError
from fedpath.core.events import EventLog
from fedpath.server.runs import open_run
from fedpath.server.stages import check_models

EVENTS_FILE = "events.jsonl"
_ANSWERS = "answers"


@dataclass(frozen=True, slots=True)
class Options:
    """What `fedpath simulate` was asked for."""

    config: FederationConfig
    out: Path
    sites: int | None = None
    given: Mapping[str, Path] = field(default_factory=dict)
    """Real hospitals' site.toml, by name."""
    data: Path | None = None
    patients: int = 10
    skew: float | None = None
    keep: bool = True
    """What the hospitals have stays in ``out``."""
    seed: int | None = None
    failures: float = 0.0
    workers: int | None = None
    address: str = LOCAL
    gpus: float = 0.0
    new: bool = False


def run(options: Options, console: Console, *, as_json: bool = False) -> dict[str, Any]:
    """Simulate; return the summary.

    Args:
        options: of the command.
        console: where progress and tables go.
        as_json: print events as lines of JSON too.

    Raises:
        ConfigError: the options, federation.toml or the folder do not allow it.
        DataError: the cohort is wrong.
        FederationError: too few hospitals answered.
        StoppedError: somebody asked for it; what was finished is kept.
    """
    began = time.monotonic()
    config = check_models(simulated(options.config, _names(options), seed=options.seed))
    check_folder(options.out)
    view = View(console)
    with processes_on(options.address, options.workers, options.gpus) as processes:
        # After Ray has set its own handlers.
        stop = stop_on_signals()
        seed = config.federation.seed
        deal = Deal(config.federation.sites, options.given, options.data, options.patients, options.skew, seed)
        hospitals = make_hospitals(deal, config, options.out, processes.ray)
        view.begin(len(hospitals), processes.at_once, options.out)
        events = EventLog(options.out / EVENTS_FILE, output.event if as_json else view.event)
        with view.shown():
            folder, summary = _simulate(options, config, hospitals, processes, events, stop, view)
    if not options.keep:
        remove_hospitals(options.out)
    seconds = time.monotonic() - began
    if as_json:
        output.result(folder=folder, summary=summary, seconds=seconds)
    else:
        show_result(console, folder, summary, seconds)
    return summary


def _names(options: Options) -> list[str]:
    """Return the simulated hospitals: those given, or as many as are asked for, or the file's."""
    if options.given and (options.sites is not None or options.data is not None):
        other = "--sites" if options.data is None else "--data"
        raise ConfigError(f"{other} deals a cohort, --site names hospitals that have one", remedy="give one of them")
    if options.given:
        return sorted(options.given)
    return options.config.federation.sites if options.sites is None else site_names(options.sites)


def _simulate(
    options: Options,
    config: FederationConfig,
    hospitals: Mapping[str, SiteConfig],
    processes: Processes,
    events: EventLog,
    stop: threading.Event,
    view: View,
) -> tuple[Path, dict[str, Any]]:
    """Run it, or what is left of it; return the run's folder and its summary."""
    run = open_run(config, options.out, new=options.new)
    answers = options.out / _ANSWERS
    shutil.rmtree(answers, ignore_errors=True)
    answers.mkdir()
    talk = RayTalk(
        hospitals,
        config.federation.name,
        processes,
        answers.resolve(),
        events,
        failures=Failures(options.failures, config.federation.seed),
        # Where the order of the answers has a say in the result, it is not left to the machine's load.
        in_order=config.asynchronous is not None or config.aggregation.order == "arrival",
        keep_models=options.keep,
        progress=view.progress,
    )
    try:
        return run.folder, coordinate(config, run.name, run.folder, talk, events, stop)
    finally:
        shutil.rmtree(answers, ignore_errors=True)
