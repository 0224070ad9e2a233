"""Run `fedpath` as its users do, each role a process of its own, on cohorts of a few tiny bags."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from forked import SEARCH_PATH, Forked

from fedpath.core.bags.store import FeatureMeta, write_features
from fedpath.core.config import load_federation
from fedpath.server.provision import provision

WIDTH = 8
DEADLINE_S = 240.0
"""For what hangs: no test waits so long on a machine that does other work too."""
LABELS = ("normal", "tumour")
CLINICAL = """
[clinical.fields.age]
type = "number"
unit = "years"
minimum = 18
maximum = 110
outcome_derived = false
[clinical.fields.er]
type = "binary"
positive = "positive"
negative = "negative"
outcome_derived = false
"""
"""The fields of ``write_clinical``, for ``Federation.configure``."""
BD = '[model]\nname = "bd"\noptions = { hidden = 8, prompt = 4, dropout = 0.1 }'


_PORTS = range(20_000, 32_000)
"""Below those that the system deals out by itself: no outgoing connection is in the way between choice and use."""
_held: list[socket.socket] = []


def free_port() -> int:
    """A port that nobody uses, and that no other test takes before this process has ended.

    Tests run side by side, and between choosing a port and listening on it others choose too. A name in the kernel that
    only one process can have marks a port as dealt; it goes when its process ends, however it does.
    """
    for port in _PORTS:
        mark, probe = socket.socket(socket.AF_UNIX), socket.socket()
        with probe:
            try:
                mark.bind(f"\0fedpath-test-port-{port}")
                probe.bind(("127.0.0.1", port))
            except OSError:
                mark.close()
                continue
        _held.append(mark)
        return port
    raise AssertionError("no port is free")


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition; fail when it does not come true in time."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {deadline_s:.0f} s: {what}"
        time.sleep(0.05)


def write_cohort(folder: Path, site: str, *, seed: int, encoder: str = "noise", patients: int = 12) -> None:
    """Write a manifest and bags: tumour bags hold a few instances that are shifted."""
    random = np.random.default_rng(seed)
    rows = ["patient_id,slide_id,label,split"]
    for number in range(patients):
        slide, label = f"slide-{site}-{number:02d}", number % 2
        split = ("train", "train", "train", "train", "validation", "test")[number // 2 % 6]
        rows.append(f"patient-{site}-{number:02d},{slide},{LABELS[label]},{split}")
        features = random.normal(size=(20, WIDTH))
        features[:4, 0] += 3.0 * label
        write_bag(folder / "features" / f"{slide}.h5", slide, features, encoder)
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")


def write_bag(path: Path, slide: str, features: np.ndarray, encoder: str) -> None:
    """Write one feature file."""
    meta = FeatureMeta(
        slide_id=slide, encoder=encoder, encoder_sha256="0" * 64, mpp_level0=0.25, mpp=0.5, patch_px=128,
        patch_size_level0=256, level0_width=10_000, level0_height=10_000, transform="none", reader="test",
        slide_sha256="0" * 64, failed_tiles=0,
    )  # fmt: skip
    coords = np.stack([np.arange(len(features)) * 256, np.zeros(len(features), dtype=int)], axis=1)
    write_features(path, features, coords, meta)


def write_clinical(folder: Path, site: str, *, seed: int, patients: Iterable[int] = range(12)) -> None:
    """Write a table with age and receptor status of some of the patients of ``write_cohort``, and map it in site.toml.

    Every third patient's status is not known.
    """
    random = np.random.default_rng(seed)
    rows = [f"Pat-ID;Alter-{site};Rezeptor-{site}"]
    for number in patients:
        status = ("", f"pos-{site}", f"neg-{site}")[number % 3]
        rows.append(f"patient-{site}-{number:02d};{random.integers(30, 90) + number / 128};{status}")
    (folder / f"clinical-{site}.csv").write_text("\n".join(rows) + "\n")
    with (folder / "site.toml").open("a") as file:
        file.write(
            f'[clinical]\ntable = "clinical-{site}.csv"\npatient_column = "Pat-ID"\n'
            f'[clinical.columns]\nage = "Alter-{site}"\ner.column = "Rezeptor-{site}"\n'
            f'er.codes = {{ "pos-{site}" = "positive", "neg-{site}" = "negative" }}\n'
        )


class Federation:
    """A coordinator's and the hospitals' folders, and the processes on them.

    Args:
        folder: everything goes below it.
        sites: names of the hospitals.
        host: the coordinator's address.
    """

    def __init__(self, folder: Path, sites: Sequence[str], *, host: str = "127.0.0.1") -> None:
        self.folder, self.sites, self.host = folder, list(sites), host
        self.state = folder / "coordinator"
        self.credentials = folder / "credentials"
        self.port = free_port()
        self.toml = folder / "federation.toml"
        self._processes: dict[str, subprocess.Popen[bytes] | Forked] = {}
        for index, site in enumerate(self.sites):
            write_cohort(self.site(site), site, seed=index)
            (self.site(site) / "site.toml").write_text(
                f'[site]\nname = "{site}"\n[data]\nmanifest = "manifest.csv"\nfeatures = "features"\n'
            )
        self.configure()
        provision(load_federation(self.toml), self.credentials)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        # Shown where the test has failed.
        for name in self._processes:
            print(f"--- {name}\n{self.output(name)}")

    def site(self, site: str) -> Path:
        """A hospital's folder."""
        return self.folder / "hospitals" / site

    def configure(
        self,
        *,
        rounds: int = 3,
        min_sites: int | None = None,
        server: str = "",
        model: str = "[model.options]\ninner = 8\nattention = 8",
        training: str = "",
        clinical: str = "",
        seed: int = 0,
    ) -> None:
        """Write federation.toml."""
        sites = ", ".join(f'"{site}"' for site in self.sites)
        quorum = f"min_sites = {min_sites}\n" if min_sites is not None else ""
        self.toml.write_text(
            f'[federation]\nname = "test"\nsites = [{sites}]\nseed = {seed}\n'
            f'[server]\naddress = "{self.host}:{self.port}"\n{quorum}{server}\n'
            '[task]\nlabels = ["normal", "tumour"]\n'
            f'[features]\nencoder = "noise"\nwidth = {WIDTH}\nmpp = 0.5\npatch_px = 128\n'
            f"{clinical}\n{model}\n"
            f"[training]\nrounds = {rounds}\nlearning_rate = 0.003\n{training}\n"
        )

    def start(self, name: str, arguments: Sequence[str | Path], *, before: Sequence[str] = ()) -> None:
        """Start ``fedpath ARGUMENTS`` (after the words in ``before``)."""
        self._start(name, before, None, arguments)

    def start_script(
        self, name: str, script: str, arguments: Sequence[str | Path], *, before: Sequence[str] = ()
    ) -> None:
        """Start a Python script with `fedpath`'s arguments (after the words in ``before``): a site that misbehaves."""
        self._start(name, before, script, arguments)

    def _start(self, name: str, before: Sequence[str], script: str | None, arguments: Sequence[str | Path]) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
        words, path = [str(word) for word in arguments], self.folder / f"{name}.log"
        path.write_bytes(b"")
        # What is forked off has the search path that this process began with.
        if not before and environment.get("PYTHONPATH") == SEARCH_PATH:
            self._processes[name] = Forked(script, words, path, environment)
            return
        what = ["-m", "fedpath.cli"] if script is None else ["-c", script]
        with path.open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [*before, sys.executable, *what, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def start_server(self, *, state: Path | None = None, name: str = "server", before: Sequence[str] = ()) -> None:
        """Start the coordinator."""
        self.start(name, self.server_arguments(state), before=before)

    def readdress(self, host: str) -> None:
        """Move the coordinator to another address: federation.toml, certificate and kits anew."""
        self.toml.write_text(self.toml.read_text().replace("127.0.0.1", host))
        shutil.rmtree(self.credentials)
        provision(load_federation(self.toml), self.credentials)

    def lead_through(self, site: str, port: int) -> None:
        """Let a hospital reach the coordinator by another port of this machine."""
        kit = self.credentials / "kits" / site / "kit.toml"
        kit.write_text(kit.read_text().replace(f":{self.port}", f":{port}"))

    def start_sites(self, *sites: str, before: Sequence[str] = ()) -> None:
        """Start the hospitals' agents, all by default."""
        for site in sites or self.sites:
            self.start(site, self.join_arguments(site), before=before)

    def server_arguments(self, state: Path | None = None) -> list[str | Path]:
        """The arguments with which the coordinator starts."""
        return ["server", "start", "--config", self.toml, "--dir", state or self.state]

    def join_arguments(self, site: str, *, kit: Path | None = None) -> list[str | Path]:
        """The arguments with which a hospital joins."""
        kit = kit or self.credentials / "kits" / site
        return ["client", "join", "--site", site, "--kit", kit, "--config", self.site(site) / "site.toml"]

    def wait(self, name: str, deadline_s: float = DEADLINE_S) -> int:
        """Wait for a process to end; its exit code."""
        return self._processes[name].wait(deadline_s)

    def ended(self, name: str) -> int | None:
        """A process's exit code, None while it runs."""
        return self._processes[name].poll()

    def wait_for_output(self, name: str, text: str) -> None:
        """Wait until a process has printed ``text``."""

        def there() -> bool:
            assert text in self.output(name) or self._processes[name].poll() is None, self.output(name)
            return text in self.output(name)

        wait_until(there, f"{name} prints {text!r}")

    def output(self, name: str) -> str:
        """What a process has printed so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process."""
        self._processes[name].send_signal(number)

    def run_folder(self, state: Path | None = None) -> Path:
        """The folder of the only run."""
        (folder,) = ((state or self.state) / "runs").iterdir()
        return folder
