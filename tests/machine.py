"""A machine whose first process is systemd itself, in namespaces: units run as they would, and change nothing here."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from federation import wait_until
from sealed import Root, Sealed, network

_GROUPS = Path("/sys/fs/cgroup")
_SYSTEMD = Path("/lib/systemd/systemd")


class Machine:
    """What runs in it is asked for as on any machine: `systemctl`, `journalctl`."""

    def __init__(self, process: Sealed) -> None:
        self._process = process

    def __call__(self, *words: str, fails: bool = False) -> str:
        """Run a command as root; what it prints."""
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_PAGER": "", "LC_ALL": "C"}
        done = self._process.run(*words, environment=environment)
        assert (done.returncode != 0) == fails, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if fails else "")

    def install(self, source: Path, at: str, *, owner: str = "root", mode: str = "644") -> None:
        """Put a file of ours somewhere."""
        inside = Path(f"/proc/{self._process.first()}/root{at}")
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, inside)
        self("chown", owner, at)
        self("chmod", mode, at)

    def journal(self, unit: str) -> str:
        """What a unit's processes have printed."""
        return self("journalctl", "--no-pager", "-o", "cat", "-u", unit)

    def wait_for_line(self, unit: str, text: str) -> None:
        """Wait until a unit's process has printed ``text``, and see that it goes on."""

        def there() -> bool:
            said = self.journal(unit)
            assert text in said or self.state(unit) in ("active", "activating"), said
            return text in said

        wait_until(there, f"{unit} says {text!r}")

    def state(self, unit: str) -> str:
        """systemd's word for a unit's state."""
        return self.show(unit, "ActiveState")

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self("systemctl", "show", "--value", "-p", name, unit).strip()


@contextmanager
def machine(folder: Path, root: Root) -> Iterator[Machine]:
    """Start systemd in a root and a network of its own; it ends with the context, with all that it started."""
    hybrid = (_GROUPS / "unified").is_dir()
    groups = [_GROUPS / name / f"fedpath-test-{os.getpid()}" for name in (["unified", "systemd"] if hybrid else [""])]
    mounts = (
        "mount -t tmpfs none /sys/fs/cgroup && mkdir /sys/fs/cgroup/unified /sys/fs/cgroup/systemd\n"
        "mount -t cgroup2 none /sys/fs/cgroup/unified\n"
        "mount -t cgroup -o none,name=systemd none /sys/fs/cgroup/systemd"
        if hybrid
        else "mount -t cgroup2 none /sys/fs/cgroup"
    )
    for group in groups:
        group.mkdir()
    then = "\n".join(
        [
            *(f"echo 0 > {group}/cgroup.procs" for group in groups),
            "exec unshare --cgroup sh -ec '",
            mounts,
            "mount -t tmpfs none /run && mkdir /run/lock && mount -t tmpfs none /tmp",
            "mount --make-rshared /",  # as a machine has it; credentials reach a unit that way
            f"exec env -i container=fedpath PATH=/usr/sbin:/usr/bin:/sbin:/bin {_SYSTEMD} --unit=sysinit.target'",
        ]
    )
    try:
        with network() as net, Sealed(root, net, folder / "systemd.log", then) as process:
            made = Machine(process)
            wait_until(lambda: "running" in process.run("systemctl", "is-system-running").stdout, "systemd runs")
            try:
                yield made
            finally:
                print(process.run("journalctl", "--no-pager", "-o", "short-monotonic", "-u", "fedpath-*").stdout)
    finally:
        for group in groups:
            wait_until(lambda group=group: _removed(group), f"{group} is empty")


def _removed(group: Path) -> bool:
    """Remove a group of processes that have ended; some take a moment."""
    for path in sorted([group, *group.rglob("*/")], reverse=True):
        with suppress(OSError):
            path.rmdir()
    return not group.exists()
