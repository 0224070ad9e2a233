"""The commands of a page of docs/, to be given as they stand there."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def block(page: str, heading: str, *, has: str) -> str:
    """Return the one block of commands under a heading that has some text in it."""
    text = (DOCS / page).read_text()
    (section,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    (found,) = (one for one in re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL) if has in one)
    return str(found)


def as_root(commands: str) -> str:
    """Return commands as root gives them, where there may be no sudo."""
    return commands.replace("sudo -u fedpath", "runuser -u fedpath --").replace("sudo ", "")
