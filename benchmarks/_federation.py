"""Run a whole federation through the command line, each role a process, for benchmarks."""

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fedpath.cli.demo.processes import Processes

_DEADLINE_S = 900.0


def free_port() -> int:
    """Return a port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_site(folder: Path, name: str, *, data: str = "") -> None:
    """Write the site.toml of a cohort folder (manifest.csv, features/); ``data`` is added to its [data]."""
    (folder / "site.toml").write_text(
        f'[site]\nname = "{name}"\n[data]\nmanifest = "manifest.csv"\nfeatures = "features"\n{data}\n'
    )


def write_federation(folder: Path, sites: Sequence[str], *, seed: int, body: str) -> Path:
    """Write federation.toml: who and where, followed by ``body`` (task, features, model, training)."""
    names = ", ".join(f'"{site}"' for site in sites)
    path = folder / "federation.toml"
    path.write_text(
        f'[federation]\nname = "benchmark"\nsites = [{names}]\nseed = {seed}\n'
        f'[server]\naddress = "127.0.0.1:{free_port()}"\njoin_timeout_s = 120\nround_timeout_s = 300\n{body}'
    )
    return path


def run(
    federation: Path, cohorts: dict[str, Path], folder: Path, watch: Callable[[int], None] = lambda pid: None
) -> Path:
    """Provision and run ``federation`` with the hospitals of ``cohorts``; return the run's folder.

    Args:
        federation: federation.toml.
        cohorts: the hospitals' folders.
        folder: where the coordinator's goes.
        watch: called every 0.1 s with the number of the coordinator's process.
    """
    credentials = federation.parent / "credentials"
    run_commands(folder / "logs", provision=["provision", "--config", federation, "--out", credentials])
    with Processes(folder / "logs") as processes:
        sites = {site: cohort / "site.toml" for site, cohort in cohorts.items()}
        processes.start_federation(federation, folder / "server", credentials, sites)
        _wait(processes, lambda: watch(processes.pid("server")))
    (run_folder,) = (folder / "server" / "runs").iterdir()
    return run_folder


def run_commands(logs: Path, **commands: Sequence[str | Path]) -> None:
    """Run `fedpath` commands side by side and wait for all of them."""
    with Processes(logs) as processes:
        for name, arguments in commands.items():
            processes.start(name, arguments)
        _wait(processes)


def _wait(processes: Processes, watch: Callable[[], None] = lambda: None) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while processes.busy():
        watch()
        if time.monotonic() > deadline:
            raise SystemExit(f"not done after {_DEADLINE_S:.0f} s: {', '.join(processes.busy())}")
        time.sleep(0.1)
