"""What a hospital carries from round to round of a stage: personal layers, its control variate, errors of encoding.

One file a round, written before the update of that round leaves. An order says which of this hospital's updates counted
last (`Train.counted`), and the next round goes on from what was kept with that one: an update that was refused, dropped
or asked for again leaves nothing behind, and an agent that was killed answers the same order with the same bits.
"""

from pathlib import Path

from fedpath.core.errors import DataError, RefusedError
from fedpath.core.exchange.stored import ArrayFile, write_arrays
from fedpath.core.exchange.wire import Arrays
from fedpath.core.files import replacing

_KEPT = 4
"""Rounds: a coordinator whose newest model was damaged goes back by one or a few."""


class SiteMemory:
    """Named float32 arrays by round.

    Args:
        folder: of the run, or of its stage, at this hospital.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "kept"

    def load(self, counted: int) -> Arrays:
        """Return what was kept with the update of a round; nothing for round 0, or where it is not here any more.

        Raises:
            DataError: the file is damaged.
        """
        path = self._path(counted)
        if counted == 0 or not path.is_file():
            return {}
        try:
            with ArrayFile(path) as file:
                return {name: file.array(name).copy() for name in file.names}
        except RefusedError as error:
            raise DataError(
                f"{path}: what was kept with round {counted} is damaged: {error.message}",
                remedy="remove the file: personal layers and control variates then start from the beginning",
            ) from None

    def has(self, counted: int) -> bool:
        """Return whether something was kept with the update of a round and is here."""
        return self._path(counted).is_file()

    def keep(self, round_: int, arrays: Arrays, *, counted: int, best: int = 0) -> None:
        """Keep what the update of a round leaves; of rounds before ``counted`` the last few stay, in case.

        Args:
            round_: of the order.
            arrays: what is carried on from it.
            counted: round of the last order whose update counted.
            best: the same of the best model so far; what was kept with it stays, however long ago it was.
        """
        with replacing(self._path(round_)) as temporary, temporary.open("wb") as file:
            write_arrays(file, arrays)
        for path in self._folder.glob("*.safetensors"):
            if int(path.stem) <= counted - _KEPT and int(path.stem) != best:
                path.unlink(missing_ok=True)

    def _path(self, round_: int) -> Path:
        return self._folder / f"{round_:04d}.safetensors"
