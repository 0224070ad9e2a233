"""What the fault tests share: a run to disturb, and the verdict on what became of it."""

import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from federation import Federation, wait_until

from fedpath.core.models import load_model
from fedpath.server.records import read_rounds

ROUNDS = 3
DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True)
class Whole:
    """What a run ended with."""

    results: list[str]
    """Hash of the model after each round."""
    last: dict[str, bytes]
    best: dict[str, bytes]
    counted: dict[str, list[int]]


def configure(federation: Federation, *, min_sites: int | None = None, more: str = "") -> None:
    """Make the run the one that all these tests disturb.

    Args:
        federation: the hospitals.
        min_sites: how many of them have to answer; all by default.
        more: further tables of federation.toml.
    """
    federation.configure(
        rounds=ROUNDS,
        min_sites=min_sites,
        training=f"local_epochs = 20\n{more}",
        server="grace_s = 2\nround_timeout_s = 120",
    )


def whole_run(federation: Federation, odd: Mapping[str, str] | None = None) -> Whole:
    """Run it without a fault, and keep its files out of the way of the run that is disturbed.

    Args:
        federation: the hospitals; their state folders are empty again afterwards: see `undisturbed_state`.
        odd: the scripts of sites that are not as they should be, by name.
    """
    state = federation.folder / "undisturbed"
    federation.start_server(state=state)
    start_sites(federation, odd)
    names = ("server", *federation.sites)
    assert [federation.wait(name) for name in names] == [0] * len(names)
    for site in federation.sites:
        (federation.site(site) / "state").rename(undisturbed_state(federation, site))
    return read_whole(federation.run_folder(state))


def undisturbed_state(federation: Federation, site: str) -> Path:
    """The state folder that a hospital had in the undisturbed run."""
    return federation.folder / f"undisturbed-{site}"


def start_sites(federation: Federation, odd: Mapping[str, str] | None = None) -> None:
    """Start all agents, some of them as their scripts say."""
    for site in federation.sites:
        if script := (odd or {}).get(site):
            federation.start_script(site, script, federation.join_arguments(site))
        else:
            federation.start_sites(site)


def read_whole(run: Path) -> Whole:
    """Read what a run ended with."""
    summary = json.loads((run / "summary.json").read_text())
    results = [manifest.result for manifest in read_rounds(run)]
    return Whole(results, _state(run / "last.safetensors"), _state(run / "best.safetensors"), summary["rounds_counted"])


def finish(federation: Federation, whole: Whole, names: Sequence[str]) -> str:
    """Wait for the end; check that it is that of the undisturbed run, and return so in words.

    Args:
        federation: the hospitals.
        whole: the undisturbed run.
        names: the processes that end well.
    """
    codes = {name: federation.wait(name, DEADLINE_S) for name in names}
    assert codes == dict.fromkeys(names, 0), {name: federation.output(name)[-2000:] for name in names if codes[name]}
    for name in names:
        assert "Traceback" not in federation.output(name), federation.output(name)
    end = read_whole(federation.run_folder())
    assert end.results == whole.results
    assert end == whole
    # No update was lost, and none counted twice.
    assert all(rounds == sorted(set(rounds)) for rounds in end.counted.values())
    assert not any((federation.run_folder() / "updates").glob("*/*"))
    return "completed, same bits"


def killed(federation: Federation, name: str) -> float:
    """Wait until a process has died by SIGKILL; return when."""
    assert federation.wait(name, DEADLINE_S) == -signal.SIGKILL, federation.output(name)[-2000:]
    return time.monotonic()


def round_done(federation: Federation, round_: int = 2) -> Callable[[], bool]:
    """Return whether a round's manifest is there, as a condition."""
    return lambda: any((federation.state / "runs").glob(f"*/rounds/{round_:04d}.json"))


def recovered_after(federation: Federation, since: float) -> float:
    """Wait until one more round is done than there was, or the run; return the seconds since a fault was mended."""

    runs = federation.state / "runs"

    def done() -> int:
        return len([path for path in runs.glob("*/rounds/*.json") if path.stem.isdigit()])

    def ended() -> bool:
        return any(runs.glob("*/summary.json"))

    before = done()
    wait_until(lambda: done() > before or ended(), f"more than {before} rounds are done", DEADLINE_S)
    return time.monotonic() - since


def _state(path: Path) -> dict[str, bytes]:
    model, _ = load_model(path)
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
