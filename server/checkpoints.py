"""The models of a run on disk: those of the last rounds, and the names `last` and `best` for two of them.

```
models/0004.safetensors         the global model after round 4; 0000 is the initial one
models/0004.state.safetensors   what the coordinator's optimizer, and SCAFFOLD, carry on from there
last.safetensors, best.safetensors   the same files under the names that people look for
```

A file is whole or absent, and which model it holds is told by its hash in the round's manifest. Where the newest one is
damaged, the run goes on from the one before.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from fedpath.core.config import FederationConfig
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.stored import F32, ArrayFile, write_unhashed
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.core.files import replacing
from fedpath.core.models.checkpoint import model_metadata

_FOLDER = "models"


class Checkpoints:
    """Of one run, or of one stage of a pipeline.

    Args:
        folder: of the run.
        config: of the run.
        kept: how many rounds' models are kept.
    """

    def __init__(self, folder: Path, config: FederationConfig, *, kept: int) -> None:
        self._folder, self._config, self._kept = folder, config, kept

    def keep(
        self,
        round_: int,
        model: Arrays,
        state: Arrays,
        rest: Arrays | None = None,
        contributions: Mapping[str, list[int]] | None = None,
    ) -> None:
        """Keep the model of a round.

        Args:
            round_: after which it is the global model.
            model: arrays named "group/parameter".
            state: what the coordinator carries on; no file where there is none.
            rest: parameters that every site keeps for itself, as they were before round 1: a model on disk is whole.
            contributions: the sites whose work it is, with the rounds in which each counted.
        """
        config = self._config
        metadata = model_metadata(
            config.federation.name, config.model, config.features, config.task.labels, config.clinical
        )
        metadata |= {"round": str(round_), "contributions": json.dumps(contributions or {}, sort_keys=True)}
        if config.local.personal:
            metadata["personal"] = json.dumps(config.local.personal)
        if state:
            with replacing(self._state_file(round_)) as temporary, temporary.open("wb") as file:
                write_unhashed(file, state)
        # On disk a model has its own names; the group is a matter of the exchange.
        own = {_own_name(key): array for key, array in (model | (rest or {})).items()}
        with replacing(self._file(round_)) as temporary, temporary.open("wb") as file:
            write_unhashed(file, own, metadata)

    def read(self, round_: int, names: Mapping[str, object], wanted: str | None) -> Arrays | None:
        """Return the model of a round; None where it is not there or not what it was.

        Args:
            round_: after which it was the global model.
            names: the arrays' names, "group/parameter".
            wanted: its hash; None to take what is there.
        """
        return _read(self._file(round_), {_own_name(key): key for key in names}, wanted)

    def read_state(self, round_: int, wanted: str | None) -> Arrays | None:
        """Return what was carried on from a round; None where it is not what it was."""
        return {} if wanted is None else _read(self._state_file(round_), None, wanted)

    def read_named(self, name: str, names: Mapping[str, object], wanted: str | None) -> Arrays | None:
        """Return the model called ``name``; None where it is not there or not the one that is wanted."""
        return _read(self._named(name), {_own_name(key): key for key in names}, wanted)

    def call(self, name: str, round_: int) -> None:
        """Give the model of a round the name ``name``, in place of the one that had it."""
        target, temporary = self._named(name), self._folder / f".{name}.safetensors.tmp"
        source = self._file(round_)
        if target.exists() and target.samefile(source):
            return
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(source, temporary)
        temporary.replace(target)

    def forget_before(self, round_: int) -> None:
        """Remove models that are too old to be needed."""
        for path in (self._folder / _FOLDER).glob("*.safetensors"):
            if int(path.name.partition(".")[0]) <= round_ - self._kept:
                path.unlink(missing_ok=True)

    def _named(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def _file(self, round_: int) -> Path:
        return self._folder / _FOLDER / f"{round_:04d}.safetensors"

    def _state_file(self, round_: int) -> Path:
        return self._folder / _FOLDER / f"{round_:04d}.state.safetensors"


def _read(path: Path, names: Mapping[str, str] | None, wanted: str | None) -> Arrays | None:
    """Return the arrays of a file in memory, under other names; of a whole model, only those that are named."""
    if not path.is_file():
        return None
    try:
        with ArrayFile(path) as file:
            named = {name: name for name in file.names} if names is None else names
            if not named.keys() <= file.names:
                return None
            arrays = {key: _own(file.array(own)) for own, key in named.items()}
    except RefusedError:
        return None
    return arrays if wanted is None or hash_arrays(arrays) == wanted else None


def _own(array: F32) -> F32:
    """Return an array in memory: a small file's are views of it."""
    return array if array.flags.writeable else array.copy()


def _own_name(key: str) -> str:
    return key.partition("/")[2]
