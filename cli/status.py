"""On a terminal, a line below all others that says what a coordinator or a hospital is doing; elsewhere there is none.

It is fed by the same events as the lines above it. rich keeps it below what is printed, warnings and errors included;
when the process ends it is gone.
"""

import atexit
from typing import TYPE_CHECKING

from fedpath.cli import output

if TYPE_CHECKING:
    from rich.console import Console

    from fedpath.core.events import Event, Listener


def shown(say: "Listener") -> "Listener":
    """Return a listener that prints events by ``say``, with a line of status below where there is a terminal."""
    console = output.console()
    return _Status(console, say) if output.moves(console) else say


class _Status:
    """Prints an event, then renews the line."""

    def __init__(self, console: "Console", say: "Listener") -> None:
        from rich.status import Status

        self._say, self._doing = say, Doing()
        self._line = Status("", console=console)
        atexit.register(self._line.stop)

    def __call__(self, event: "Event") -> None:
        from rich.markup import escape

        self._say(event)
        if (words := self._doing.after(event)) is not None:
            self._line.update(escape(words))
            self._line.start()


class Doing:
    """What events say about what is being done."""

    def __init__(self) -> None:
        self._rounds: dict[str, int] = {}
        self._asked: dict[str, set[str]] = {}
        self._answered: dict[str, set[str]] = {}

    def after(self, event: "Event") -> str | None:
        """Return what is being done after an event, in words; None where it does not change that."""
        values = event.values
        run = str(values.get("run", ""))
        # Of several runs side by side, the line is about the one that something happens in.
        where = f"{run}: " if run else ""
        match event.kind:
            case "round_started":
                self._rounds[run], self._asked[run] = values["rounds"], set(values["sites"])
                self._answered[run] = set()
                return where + self._round(run, values["round"])
            case "site_answered" if run in self._rounds:
                self._answered[run].add(values["site"])
                return where + self._round(run, values["round"])
            case "round_finished" if run in self._rounds:
                return f"{where}round {values['round']} of {self._rounds[run]} is done"
            case "step":
                step = f"step {values['done']} of {values['total']}, loss {values['loss']:.3f}"
                return f"round {values['round']}: {step}"
            case "moving":
                of = f"{values['done'] >> 20} of {values['total'] >> 20} MiB"
                return f"{where}{values['way']} arrays: {of}" if values["done"] < values["total"] else None
            case "joined" | "sent" | "coordinator_back":
                return "waiting for the coordinator"
            case "coordinator_away":
                return "the coordinator is away"
            case "listening":
                return "waiting for hospitals"
            case "serving":
                return "waiting for runs"
            case _:
                return None

    def _round(self, run: str, round_: int) -> str:
        answered = f"{len(self._answered[run])} of {len(self._asked[run])} hospitals have answered"
        return f"round {round_} of {self._rounds[run]}: {answered}"
