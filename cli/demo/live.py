"""The demo's live view: a line a hospital, a line for the coordinator, read from the files the processes write."""

import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedpath.cli import output
from fedpath.cli.demo.plan import Plan
from fedpath.cli.demo.processes import Processes
from fedpath.core.events import Event, EventReader

_REFRESH_S = 0.25


class LiveView:
    """Draws where everybody is while processes run.

    On a terminal it is one table that changes in place; elsewhere (a log file) a line is printed when a phase changes.
    As JSON, each phase and each event of the coordinator and the hospitals is a line; ``of`` says whose it is.
    """

    def __init__(self, plan: Plan, console: Console, *, as_json: bool = False) -> None:
        self._plan, self._console, self._as_json = plan, console, as_json
        self._state = {hospital.name: "" for hospital in plan.hospitals}
        self._coordinator = self._round = ""
        self._readers = {hospital.name: EventReader(hospital.state / "events.jsonl") for hospital in plan.hospitals}
        self._server = EventReader(plan.server_state / "events.jsonl")
        self._printed = ""
        self.peak_mb = 0.0

    def watch(self, processes: Processes, phase: str) -> None:
        """Follow ``processes`` until all have ended, under the headline ``phase``.

        Raises:
            FedpathError: a process failed.
        """
        live = Live(console=self._console, auto_refresh=False, transient=True)
        plain = not output.moves(self._console)
        if plain:
            self.say(phase)
        else:
            live.start()
        try:
            while busy := processes.busy():
                self._read()
                self.peak_mb = max(self.peak_mb, processes.memory_mb())
                if plain:
                    self._print_change()
                else:
                    live.update(self._table(phase, busy), refresh=True)
                time.sleep(_REFRESH_S)
            self._read()
            if plain:
                self._print_change()
        finally:
            live.stop()

    def say(self, phase: str) -> None:
        """Say that a phase begins."""
        if self._as_json:
            output.line("phase", phase=phase)
        self._console.print(phase)

    def _prepare(self) -> None:
        """Show what the folders say about slides and features, before any process reports."""
        for hospital in self._plan.hospitals:
            made, total = len(list(hospital.slides.glob("*.tif"))), self._plan.slides
            encoded = len(list(hospital.features.glob("*.h5")))
            self._state[hospital.name] = (
                f"slides {made}/{total}" if encoded == 0 else f"slides {made}/{total}, encoded {encoded}/{total}"
            )

    def _read(self) -> None:
        if self._plan.server_state.exists():
            for event in self._server.new():
                self._tell("coordinator", event)
                if event.kind == "round_started":
                    self._round = f"round {event.values['round']} of {event.values['rounds']}"
                self._coordinator = _of_coordinator(event, self._round) or self._coordinator
            for name, reader in self._readers.items():
                for event in reader.new():
                    self._tell(name, event)
                    self._state[name] = _of_site(event) or self._state[name]
        else:
            self._prepare()

    def _tell(self, of: str, event: Event) -> None:
        if self._as_json:
            output.event(Event(event.kind, event.at, {"of": of} | event.values))

    def _table(self, phase: str, busy: list[str]) -> Group:
        table = Table(box=None, show_header=False, padding=(0, 2))
        for name, state in self._state.items():
            table.add_row(f"hospital {name}", state)
        if self._coordinator:
            table.add_row("coordinator", self._coordinator)
        table.add_row("running", ", ".join(busy))
        return Group(Text(phase), table)

    def _print_change(self) -> None:
        if self._coordinator != self._printed:
            self._printed = self._coordinator
            self._console.print(f"  {self._coordinator}")


def _of_site(event: Event) -> str:
    values = event.values
    match event.kind:
        case "joined":
            return "joined"
        case "validated":
            return f"round {values['round'] + 1}: validation AUC {_figure(values['auc'])} before training"
        case "step":
            return f"round {values['round']}: step {values['done']}/{values['total']}, loss {values['loss']:.3f}"
        case "trained":
            return f"round {values['round']}: trained, loss {values['loss']:.3f}"
        case "finished":
            return "done; has the federated model"
    return ""


def _of_coordinator(event: Event, round_: str) -> str:
    values = event.values
    match event.kind:
        case "waiting":
            return f"waiting for {', '.join(values['missing'])}"
        case "round_started":
            return round_
        case "judged" if values["round"] > 0:
            return f"{round_}; validation AUC after round {values['round']}: {_figure(values['auc'])}"
        case "run_finished":
            return f"run over; best model is that of round {values['best_round']}"
    return ""


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
