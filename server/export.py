"""`fedpath run export`: what a run came to, in one file or folder that can be handed on.

```
best.safetensors       the model; its metadata say whose work it is
summary.json           the result
rounds/0001.json, …    the rounds' manifests
config.json            the settings
participation.csv      one line a round and site
encoder.safetensors    of a stage that tuned an encoder
```

Of a pipeline, the stages' files lie in `stages/NAME/`. Nothing else is taken: no update, no message, nothing that a
hospital said about itself. The same run gives the same bytes.
"""

import csv
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fedpath.core.errors import ConfigError, DataError
from fedpath.core.files import replacing
from fedpath.server.folder import SUMMARY_FILE
from fedpath.server.pipeline import ENCODER_FILE
from fedpath.server.records import ROUNDS
from fedpath.server.registry.index import STAGES
from fedpath.server.registry.registry import Registry
from fedpath.server.registry.tables import Part, Run

_EPOCH = (1980, 1, 1, 0, 0, 0)
_COLUMNS = (
    *("stage", "round", "site", "outcome", "reason", "patients", "of_round", "weight"),
    *("training_loss", "validation_auc", "seconds", "sent_bytes", "received_bytes", "sha256"),
)


def export_run(registry: Registry, run: Run, to: Path) -> list[str]:
    """Write a run's results to a file or folder; return the names of what is in it.

    Args:
        registry: has the run's rounds.
        run: of it.
        to: ends with ``.zip`` for a file; it must not be there yet.

    Raises:
        ConfigError: ``to`` is there already.
        DataError: the run's files are not here, or it has no model yet.
    """
    if to.exists():
        raise ConfigError(f"{to}: is there already", remedy="name another file or folder with --to")
    folder = None if run.folder is None else Path(run.folder)
    if folder is None or not folder.is_dir():
        where = f"{folder} is not on this machine" if folder else "it has no folder yet"
        raise DataError(f"run {run.run}: {where}", remedy="export it where its coordinator runs")
    files = dict(_files(folder))
    if not any(name.endswith("best.safetensors") for name in files):
        raise DataError(
            f"run {run.run}: it has no model yet", remedy="wait until its second round, or look at its state"
        )
    made = {
        "config.json": json.dumps(run.config, indent=2).encode(),
        "participation.csv": _participation(registry, run),
    }
    to.parent.mkdir(parents=True, exist_ok=True)
    if to.suffix == ".zip":
        with replacing(to) as temporary:
            _zip(temporary, files, made)
    else:
        _copy(to, files, made)
    return sorted([*files, *made])


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for place in (folder, *sorted((folder / STAGES).glob("*/"))):
        names = ("best.safetensors", ENCODER_FILE, SUMMARY_FILE)
        found = [place / name for name in names if (place / name).is_file()]
        for path in (*found, *sorted((place / ROUNDS).glob("[0-9]*.json"))):
            yield str(path.relative_to(folder)), path


def _participation(registry: Registry, run: Run) -> bytes:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for part in registry.history(run).parts:
        table.writerow([_plain(part, column) for column in _COLUMNS])
    return text.getvalue().encode()


def _plain(part: Part, column: str) -> object:
    """Return a cell. A reason is a site's own text: what a spreadsheet would take for a formula is marked as text."""
    value = getattr(part, column)
    if column == "patients":
        return max(value.values(), default="")
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t"):
        return "'" + value
    return value


def _zip(path: Path, files: dict[str, Path], made: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted([*files, *made]):
            entry = zipfile.ZipInfo(name, _EPOCH)
            # Weights do not get smaller.
            entry.compress_type = zipfile.ZIP_STORED if name.endswith(".safetensors") else zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            with archive.open(entry, "w", force_zip64=True) as target:
                if name in made:
                    target.write(made[name])
                else:
                    with files[name].open("rb") as source:
                        shutil.copyfileobj(source, target, 1 << 20)


def _copy(to: Path, files: dict[str, Path], made: dict[str, bytes]) -> None:
    temporary = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}."))
    try:
        for name, source in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, temporary / name)
        for name, content in made.items():
            (temporary / name).write_bytes(content)
        temporary.chmod(0o755)
        temporary.replace(to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
