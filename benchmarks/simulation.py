"""A thousand small hospitals on one machine: does `fedpath simulate` get through, and is its memory flat?

`python simulation.py [--quick]` simulates 100 and 1,000 hospitals, three rounds each (one with `--quick`), as a user
would. Memory is that of the command and of all its processes, Ray's own among them, with shared pages counted once.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from _common import report

from fedpath.server.records import RoundManifest, read_rounds

_WIDTH, _PATIENTS = 64, 6
_SAMPLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Simulated:
    """What one simulation came to."""

    manifests: list[RoundManifest]
    seconds: float
    peak_mb: float
    coordinator_mb: float
    """Of the command's own process, at its peak, without pages that it shares."""

    def completed(self) -> int:
        """Return how many hospitals counted in every round."""
        counted = [set(manifest.counted()) for manifest in self.manifests]
        return len(set.intersection(*counted))

    def pace(self) -> float:
        """Return trainings a second, over all rounds but the first, in which processes import their libraries."""
        manifests = self.manifests[1:] or self.manifests
        return sum(len(manifest.counted()) for manifest in manifests) / sum(manifest.seconds for manifest in manifests)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round")
    quick = parser.parse_args().quick
    rounds = 1 if quick else 3
    with tempfile.TemporaryDirectory() as name:
        few, many = (_simulate(Path(name), sites, rounds) for sites in (100, 1000))
    figures = {
        "seconds_1000_sites": many.seconds,
        "trainings_per_s": many.pace(),
        "rounds_per_minute": 60 * rounds / sum(manifest.seconds for manifest in many.manifests),
        "peak_mb_100_sites": few.peak_mb,
        "peak_mb_1000_sites": many.peak_mb,
        "coordinator_mb_100_sites": few.coordinator_mb,
        "coordinator_mb_1000_sites": many.coordinator_mb,
    }
    ratios = {
        "sites_completed": many.completed(),
        "peak_1000_vs_100_sites": many.peak_mb / few.peak_mb,
    }
    report("simulation", figures, ratios, {"sites_completed": "= 1000", "peak_1000_vs_100_sites": "≤ 1.2"}, quick=quick)


def _simulate(folder: Path, sites: int, rounds: int) -> Simulated:
    """Run `fedpath simulate` and watch its memory."""
    federation, out = folder / "federation.toml", folder / f"{sites}-sites"
    federation.write_text(
        '[federation]\nname = "benchmark"\nsites = ["A", "B"]\n[server]\naddress = "127.0.0.1:1"\n'
        f'[task]\nlabels = ["a", "b"]\n[features]\nencoder = "noise"\nwidth = {_WIDTH}\n'
        f"[model.options]\ninner = 32\nattention = 32\n[training]\nrounds = {rounds}\nlocal_epochs = 1\n"
    )
    options = ["--sites", str(sites), "--patients", str(_PATIENTS), "--out", str(out), "--workers", "2"]
    command = [sys.executable, "-m", "fedpath.cli", "simulate", "--config", str(federation), *options]
    started, peak_mb, coordinator_mb = time.monotonic(), 0.0, 0.0
    with subprocess.Popen(command, stdout=sys.stderr, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        while process.poll() is None:
            peak_mb = max(peak_mb, sum(_memory_mb(pid, "Pss") for pid in _family(process.pid)))
            coordinator_mb = max(coordinator_mb, _memory_mb(process.pid, "Pss_Anon"))
            time.sleep(_SAMPLE_S)
    if process.returncode != 0:
        raise SystemExit(f"{sites} hospitals: `fedpath simulate` ended with code {process.returncode}")
    (run_folder,) = (out / "runs").iterdir()
    return Simulated(read_rounds(run_folder), time.monotonic() - started, peak_mb, coordinator_mb)


def _family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # ended meanwhile
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family


def _memory_mb(pid: int, key: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0) * 1024 / 1e6


if __name__ == "__main__":
    main()
