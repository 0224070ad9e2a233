"""What goes on at this hospital, kept from the agent's events; bounded, whatever a federation lasts."""

import threading
from collections.abc import Callable
from typing import Any

from fedpath.core.events import Event

_MOST_ROUNDS = 500
_LONGEST = 500
_PHASES = {
    "describing": "Describing its features to the coordinator",
    "reading": "Reading features",
    "training": "Training",
    "validating": "Validating the model",
    "evaluating": "Evaluating the model",
    "encoding": "Encoding slides",
    "keeping": "Keeping the model",
    "fetching": "Fetching the model",
    "sending": "Sending",
}
"""What the agent does, in words; of waiting the last thing that was done says more."""


class Live:
    """An event listener; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._about: dict[str, Any] = {"connection": "starts", "reason": "", "federation": None, "address": None}
        self._work: dict[str, Any] = {
            "says": "Nothing is asked of this hospital now.",
            "since": None,
            "run": None,
            "trouble": None,
        }
        self._asked: int | None = None
        self._idle()
        self._rounds: dict[int, dict[str, Any]] = {}
        self.version = 0
        """Counts what has changed."""

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        if (take := _TAKES.get(event.kind)) is not None:
            with self._lock:
                take(self, event)
                self.version += 1

    def sections(self) -> dict[str, Any]:
        """Return what the page shows of it: about, work and rounds."""
        with self._lock:
            return {"about": dict(self._about), "work": dict(self._work), "rounds": list(self._rounds.values())}

    def _says(self, event: Event, text: str, **more: Any) -> None:
        self._idle()
        self._work |= {"says": text[:_LONGEST], "since": event.at, **more}

    def _idle(self) -> None:
        self._work |= {"round": None, "done": None, "total": None, "unit": "", "loss": None}

    def _round(self, event: Event) -> dict[str, Any]:
        """Return what is kept of a round; where a round comes again, a new run has begun."""
        number = int(event.values.get("round", 0))
        if number == 1 and max(self._rounds, default=0) > 1:
            self._rounds.clear()
        kept = self._rounds.setdefault(number, {"round": number, "loss": None, "seconds": None, "auc": None})
        while len(self._rounds) > _MOST_ROUNDS:
            del self._rounds[next(iter(self._rounds))]
        return kept

    # --- events -------------------------------------------------------------------------------------------------------

    def _waiting(self, event: Event) -> None:
        self._about |= {"connection": "waiting", "reason": str(event.values.get("reason", ""))[:_LONGEST]}

    def _joined(self, event: Event) -> None:
        names = ("federation", "address")
        self._about |= {name: event.values.get(name) for name in names} | {"connection": "joined", "reason": ""}

    def _away(self, event: Event) -> None:
        self._about |= {"connection": "away", "reason": str(event.values.get("reason", ""))[:_LONGEST]}

    def _back(self, _event: Event) -> None:
        self._about |= {"connection": "joined", "reason": ""}

    def _order(self, event: Event) -> None:
        self._work |= {"run": event.values.get("run"), "trouble": None}
        self._asked = event.values.get("round")

    def _phase(self, event: Event) -> None:
        phase = str(event.values.get("phase"))
        if phase in _PHASES and not (phase == "training" and self._work["done"] is not None):
            of = f" in round {self._asked}" if self._asked and phase in ("training", "validating") else ""
            self._says(event, f"{_PHASES[phase]}{of}")

    def _described(self, event: Event) -> None:
        self._says(event, f"Told the coordinator how {event.values.get('slides')} slides were encoded.", trouble=None)

    def _step(self, event: Event) -> None:
        values = event.values
        text = f"Training in round {values.get('round')}"
        if self._work["says"] != text:
            self._says(event, text, trouble=None)
        self._work |= {name: values.get(name) for name in ("round", "done", "total", "loss")} | {"unit": "steps"}

    def _validated(self, event: Event) -> None:
        number = int(event.values.get("round", 0)) + 1
        kept = self._round(Event("", event.at, {"round": number}))
        kept["auc"] = event.values.get("auc")  # of the model that the round begins with
        self._says(event, f"Validated the model that round {number} begins with.")

    def _trained(self, event: Event) -> None:
        kept = self._round(event)
        kept |= {"loss": event.values.get("loss"), "seconds": event.values.get("seconds")}
        self._says(event, f"Trained round {event.values.get('round')}.")

    def _evaluated(self, event: Event) -> None:
        self._says(event, f"Evaluated the model on its {event.values.get('split')} patients.")

    def _encoding(self, event: Event) -> None:
        if "done" not in event.values:
            return
        self._says(event, "Encoding slides", done=event.values["done"], total=event.values.get("total"), unit="slides")

    def _reading(self, event: Event) -> None:
        values = event.values
        self._says(event, "Reading patches", done=values.get("done"), total=values.get("total"), unit="slides")

    def _moving(self, event: Event) -> None:
        values = event.values
        what = "Fetching the model" if values.get("way") == "fetching" else "Sending the update"
        self._says(event, what, done=values.get("done"), total=values.get("total"), unit="bytes")

    def _sent(self, event: Event) -> None:
        self._says(event, f"Sent its {event.values.get('what')}; waiting for the next order.")

    def _finished(self, event: Event) -> None:
        text = f"Stage {event.values.get('stage')} is over." if event.values.get("more") else "The run is over."
        self._says(event, text)

    def _failed(self, event: Event) -> None:
        values = event.values
        said = str(values.get("error") or values.get("reason") or "")[:_LONGEST]
        self._says(event, "Waiting for the next order.", trouble=said)


_TAKES: dict[str, Callable[[Live, Event], None]] = {
    "waiting": Live._waiting,
    "joined": Live._joined,
    "coordinator_away": Live._away,
    "coordinator_back": Live._back,
    "order": Live._order,
    "phase": Live._phase,
    "described": Live._described,
    "step": Live._step,
    "validated": Live._validated,
    "trained": Live._trained,
    "evaluated": Live._evaluated,
    "encoding": Live._encoding,
    "reading_patches": Live._reading,
    "moving": Live._moving,
    "sent": Live._sent,
    "finished": Live._finished,
    "order_failed": Live._failed,
    "training_failed": Live._failed,
    "refused": Live._failed,
}
"""What takes each kind of event in; other kinds change nothing that is shown."""
