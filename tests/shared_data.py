"""Real slides, bags and tables for tests; they belong to no repository, so tests skip where they are absent."""

import os
from pathlib import Path


def shared_data() -> Path | None:
    """The folder named by FEDPATH_SHARED_DATA, else ../shared/data beside the repository; None if it is not there."""
    stated = os.environ.get("FEDPATH_SHARED_DATA")
    folder = Path(stated) if stated else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None
