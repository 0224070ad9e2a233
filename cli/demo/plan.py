"""Where the demo puts things, and the two configuration files it writes: all a real federation would need too."""

import socket
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from fedpath.core.errors import ConfigError
from fedpath.core.files import write_text

ENCODER = "seeded-conv"
MPP = 0.5
PATCH_PX = 128
LABELS = ("normal", "tumour")
LOCAL_EPOCHS = 4
LEARNING_RATE = 3e-3
MAX_SITES = 26


@dataclass(frozen=True, slots=True)
class Hospital:
    """One hospital's folder."""

    name: str
    index: int
    folder: Path

    @property
    def slides(self) -> Path:
        """Its slides."""
        return self.folder / "slides"

    @property
    def truth(self) -> Path:
        """Where nests were planted, a file a slide."""
        return self.folder / "truth"

    @property
    def features(self) -> Path:
        """Its feature files."""
        return self.folder / "features"

    @property
    def config(self) -> Path:
        """Its site.toml."""
        return self.folder / "site.toml"

    @property
    def state(self) -> Path:
        """Audit log, events and received models."""
        return self.folder / "state"


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole demo: what the user chose and where everything lies."""

    folder: Path
    rounds: int
    seed: int
    slides: int
    hospitals: tuple[Hospital, ...]

    @property
    def federation(self) -> Path:
        """The coordinator's federation.toml."""
        return self.folder / "federation.toml"

    @property
    def server_state(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "server"

    @property
    def credentials(self) -> Path:
        """What `fedpath provision` made."""
        return self.folder / "credentials"

    @property
    def comparison(self) -> Path:
        """The models trained without a federation."""
        return self.folder / "comparison"

    @property
    def logs(self) -> Path:
        """What each process printed."""
        return self.folder / "logs"


def make_plan(folder: Path, *, rounds: int, sites: int, seed: int, slides: int) -> Plan:
    """Lay out a demo in ``folder``.

    Raises:
        ConfigError: the folder holds something else, or a number is out of range.
    """
    if not 2 <= sites <= MAX_SITES:
        raise ConfigError(f"--sites {sites}: a federation needs 2 to {MAX_SITES}", remedy="choose another number")
    if rounds < 1:
        raise ConfigError(f"--rounds {rounds}: at least 1 is needed", remedy="choose another number")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--dir {folder}: exists and is not empty", remedy="remove it or name another folder")
    names = [chr(ord("A") + index) for index in range(sites)]
    folder = folder.resolve()
    hospitals = tuple(Hospital(name, index, folder / "hospitals" / name) for index, name in enumerate(names))
    return Plan(folder, rounds, seed, slides, hospitals)


def free_folder(name: str = "fedpath-demo") -> Path:
    """Return a folder of that name here, or NAME-2, -3, … when there are some already."""
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(folder for folder in map(Path, names) if not folder.exists())


def write_configuration(plan: Plan) -> None:
    """Write federation.toml and a site.toml a hospital."""
    from fedpath.client.slides.encoders import describe

    sites = ", ".join(f'"{hospital.name}"' for hospital in plan.hospitals)
    labels = ", ".join(f'"{label}"' for label in LABELS)
    write_text(
        plan.federation,
        f"""\
# The coordinator's configuration: docs/configuration.md explains every key.
[federation]
name = "demo"
sites = [{sites}]
seed = {plan.seed}

[server]
address = "127.0.0.1:{_free_port()}"
join_timeout_s = 120
round_timeout_s = 300

[task]
labels = [{labels}]

[features]
encoder = "{ENCODER}"
width = {describe(ENCODER).width}
mpp = {MPP}
patch_px = {PATCH_PX}

[model]
name = "acmil"
[model.options]
input_norm = "layer"

[training]
rounds = {plan.rounds}
local_epochs = {LOCAL_EPOCHS}
learning_rate = {LEARNING_RATE}
""",
    )
    for hospital in plan.hospitals:
        write_text(
            hospital.config,
            f"""\
# This hospital's configuration; it never leaves the hospital.
state = "state"

[site]
name = "{hospital.name}"

[data]
manifest = "manifest.csv"
features = "features"

[policy]
federations = ["demo"]
models = ["acmil"]
max_local_epochs = 10
""",
        )


def _free_port() -> int:
    """Return a port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
