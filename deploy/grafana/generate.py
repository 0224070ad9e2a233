"""Write the dashboards that Grafana imports, `coordinator.json` and `site.json`, from the Python beside this file.

python deploy/grafana/generate.py [FOLDER]: into this folder by default. The JSON is committed; a test holds it current.
"""

import sys
from pathlib import Path

import coordinator
import hospital

BOARDS = {"coordinator.json": coordinator.board, "site.json": hospital.board}


def main(folder: Path) -> None:
    """Write all dashboards into a folder."""
    for name, board in BOARDS.items():
        (folder / name).write_text(board().json(), encoding="utf-8")
        print(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
