"""CPU seconds until help is there: `fedpath --help` beside `flwr --help` and `python -c pass`.

Each is a process of its own with a warm file cache; they take turns, and the medians of user and system time together
are printed. Completion is a process a keystroke: `fedpath` completing the name of a command is measured too.
`python startup.py [--quick]`
"""

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median

from _common import report, take_turns_timed

_BAR_S = 0.3
_RUN = "import sys; sys.argv[0] = '{name}'; from {module} import {function}; {function}()"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few turns")
    quick = parser.parse_args().quick
    fedpath = _RUN.format(name="fedpath", module="fedpath.cli.main", function="main")
    flower = _RUN.format(name="flwr", module="flwr.cli.app", function="app")
    completing = {"_FEDPATH_COMPLETE": "complete_bash", "COMP_WORDS": "fedpath ru", "COMP_CWORD": "1"}
    tasks = {
        "fedpath_help_s": partial(_cpu_s, fedpath, ["--help"]),
        "fedpath_server_start_help_s": partial(_cpu_s, fedpath, ["server", "start", "--help"]),
        "fedpath_completion_s": partial(_cpu_s, fedpath, [], completing),
        "flwr_help_s": partial(_cpu_s, flower, ["--help"]),
        "python_s": partial(_cpu_s, "pass", []),
    }
    seconds = {name: median(values) for name, values in take_turns_timed(tasks, 5 if quick else 21).items()}
    ratios = {"fedpath_help_s": seconds["fedpath_help_s"]}
    ratios["flwr_vs_fedpath"] = seconds["flwr_help_s"] / seconds["fedpath_help_s"]
    report("startup", seconds, ratios, {"fedpath_help_s": f"< {_BAR_S}"}, quick=quick)


def _cpu_s(code: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Return user and system seconds of a process that runs ``code``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | (environment or {}), check=False)
    # Completion ends with a code that its shell reads.
    if not environment and done.returncode != 0:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


if __name__ == "__main__":
    main()
