"""Which run of the queue begins next, and why one that waits does not.

In the order of the queue: what has begun once goes on first, then by priority, then by the time of submission. Nothing
overtakes: where the first that may begin finds no hospitals, later ones wait with it. Only runs that wait for another
one (`--after`) are passed over.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from fedpath.server.registry.tables import Run


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do now."""

    begin: Run | None = None
    waits: dict[int, str] = field(default_factory=dict)
    """By row, why a run does not begin yet."""


def choose(
    queue: Sequence[Run],
    states: Mapping[str, str],
    running: Collection[str],
    parallel: int,
    busy: Mapping[str, Sequence[str]],
) -> Choice:
    """Return the run to begin now, if any.

    Args:
        queue: the runs that wait, the next one first.
        states: of all runs of the federation, by name.
        running: names of the runs that are served now.
        parallel: how many may be.
        busy: hospitals whose policy leaves no room for a further run, with the runs that they take part in.
    """
    waits: dict[int, str] = {}
    first: Run | None = None
    place = 0
    for run in queue:
        if run.after is not None and states.get(run.after) != "finished":
            waits[run.id] = _waits_for(run.after, states.get(run.after))
            continue
        place += 1
        if first is None:
            first = run
        else:
            waits[run.id] = f"place {place} in the queue"
    if first is None:
        return Choice(None, waits)
    if len(running) >= parallel:
        waits[first.id] = f"next, after {', '.join(sorted(running))}"
    elif running and (short := _short_of_hospitals(first, busy)):
        waits[first.id] = short
    else:
        return Choice(first, waits)
    return Choice(None, waits)


def _waits_for(after: str, state: str | None) -> str:
    match state:
        case "failed" | "stopped":
            return (
                f"waits for run {after}, which has {'failed' if state == 'failed' else 'been stopped'}: resume that one"
            )
        case None:
            return f"waits for run {after}, which is not in the registry"
        case _:
            return f"waits for run {after}"


def _short_of_hospitals(run: Run, busy: Mapping[str, Sequence[str]]) -> str:
    """Return why a run cannot begin beside those that are served; "" where it can."""
    sites = run.config["federation"]["sites"]
    needed = run.config["server"]["min_sites"] or len(sites)
    if len(sites) - len(busy) >= needed:
        return ""
    said = "; ".join(f"{site} takes part in {', '.join(runs)}" for site, runs in sorted(busy.items()))
    return f"needs {needed} hospitals, whose policies leave {len(sites) - len(busy)}: {said}"
