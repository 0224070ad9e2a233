"""Roots of their own: what an image or a unit gives a process, made with mount namespaces and no container engine.

The root is this machine's, under an overlay that is thrown away, with this environment at /opt/fedpath: a process can
be given folders of its own at /etc/fedpath and /var/lib/fedpath, a read-only root, a user, a network; what it changes
elsewhere is in the overlay. Only root can make them.
"""

import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from federation import wait_until

PREFIX = "/opt/fedpath"
"""Where images and units have fedpath; in a root of these tests, the environment that runs them."""
BASE = "/opt/python"
"""Where such a root has the interpreter."""


@dataclass(frozen=True, slots=True)
class Root:
    """What a root has.

    Args:
        work: an empty folder for the overlay.
        folders: what lies where; those below a path that is read-only in `read_only`.
        read_only: targets that cannot be written to.
        memory: file systems in memory, by where they are, with options of mount.
        hosts: addresses of other machines, by name.
        sealed: nothing else can be written to.
    """

    work: Path
    folders: Mapping[str, Path] = field(default_factory=dict)
    read_only: frozenset[str] = frozenset()
    memory: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)
    sealed: bool = False

    def script(self, then: str) -> str:
        """Return a shell script that makes the root, moves there and goes on with ``then``."""
        work = shlex.quote(str(self.work))
        lines = [
            "set -e",
            "mount --make-rprivate /",
            f"mount -t tmpfs -o mode=755 none {work}",
            f"cd {work}",
            "mkdir up work root",
            "mount -t overlay -o lowerdir=/,upperdir=up,workdir=work overlay root",
            "cd root",
            "mount -t proc proc proc",
            "mount --rbind /sys sys",
            "mount --rbind /dev dev",
        ]
        for at, options in self.memory.items():
            lines += [f"mkdir -p .{at}", f"mount -t tmpfs -o {shlex.quote(options)} none .{at}"]
        # The environment, with its interpreter where everybody may go; what is changed in it is in an overlay, too.
        python = f"{PREFIX}/bin/{Path(sys.executable).resolve().name}"
        base = Path(sys.base_prefix)
        lines += [
            f"mkdir -p .{PREFIX} .{BASE} {work}/venv-up {work}/venv-work",
            f"mount --bind {shlex.quote(str(base))} .{BASE}",
            f"mount -t overlay -o lowerdir={shlex.quote(sys.prefix)},upperdir={work}/venv-up,workdir={work}/venv-work "
            f"overlay .{PREFIX}",
            f"ln -sfn {BASE}/bin/{Path(python).name} .{python}",
            f"sed -i 's|^home = .*|home = {BASE}/bin|' .{PREFIX}/pyvenv.cfg",
            f"printf '#!{PREFIX}/bin/python\\nimport sys\\nfrom fedpath.cli.main import main\\n'"
            "'if __name__ == \"__main__\":\\n    sys.exit(main())\\n'"
            f" > .{PREFIX}/bin/fedpath",
        ]
        for at, folder in self.folders.items():
            lines += [f"mkdir -p .{at}", f"mount --bind {shlex.quote(str(folder))} .{at}"]
            if at in self.read_only:
                lines.append(f"mount -o remount,bind,ro .{at}")
        lines += [f"echo '{address} {name}' >> etc/hosts" for name, address in self.hosts.items()]
        lines += ["mkdir -p .old", "pivot_root . .old", "cd /", "umount -l /.old", "rmdir /.old"]
        lines += [f"echo {BASE}/lib > /etc/ld.so.conf.d/python.conf", "ldconfig"]
        if self.sealed:
            lines += ["mount -o remount,ro /", f"mount -o remount,ro {PREFIX}"]
        return "\n".join([*lines, then])


@contextmanager
def network() -> Iterator[Path]:
    """A network of its own with nothing but a loopback: any port is free there, and nothing outside is reached."""
    with _namespace() as process:
        yield Path(f"/proc/{process}/ns/net")


@contextmanager
def bridged(names: Sequence[str]) -> Iterator[dict[str, tuple[Path, str]]]:
    """A network for each name, all of them on one bridge, as containers of one project have them.

    Yields:
        Of each name the network and its address.
    """
    with ExitStack() as stack:
        hub = ("nsenter", f"--net=/proc/{stack.enter_context(_namespace())}/ns/net", "ip")
        _run(*hub, "link", "add", "bridge", "type", "bridge")
        _run(*hub, "link", "set", "bridge", "up")
        made = {}
        for number, name in enumerate(names, 2):
            process = stack.enter_context(_namespace())
            inside = ("nsenter", f"--net=/proc/{process}/ns/net", "ip")
            address, end = f"10.215.1.{number}", f"end{number}"
            _run(*hub, "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", str(process))
            _run(*hub, "link", "set", end, "master", "bridge", "up")
            _run(*inside, "address", "add", f"{address}/24", "dev", "eth0")
            _run(*inside, "link", "set", "eth0", "up")
            made[name] = (Path(f"/proc/{process}/ns/net"), address)
        yield made


@contextmanager
def _namespace() -> Iterator[int]:
    """A network namespace with a loopback; the number of the process that holds it."""
    script = "ip link set lo up && echo up && cat >/dev/null"
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )  # ends with this process, however that ends: its standard input is then closed
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        yield holder.pid
    finally:
        holder.kill()
        holder.communicate()


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


class Sealed:
    """A process in a root of its own, the first of its process namespace: what it started ends with it.

    Args:
        root: what it has.
        network: of `network`.
        log: file for what it prints.
        then: shell script to go on with in the root; its last command is ``exec``.
    """

    def __init__(self, root: Root, network: Path, log: Path, then: str) -> None:
        self.log = log
        root.work.mkdir(parents=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),  # also where a test run is killed, nothing stays
                    *("nsenter", f"--net={network}"),
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
                    *("bash", "-c", root.script(then)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> "Sealed":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        print(f"--- {self.log.name}\n{self.output()}")

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def wait_for_output(self, text: str) -> None:
        """Wait until it has printed ``text``."""

        def there() -> bool:
            assert text in self.output() or self._process.poll() is None, self.output()
            return text in self.output()

        wait_until(there, f"{self.log.name} has {text!r}")

    def first(self) -> int:
        """The process, as this machine numbers it."""
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        wait_until(lambda: bool(path.read_text().split()), "it is there")
        return int(path.read_text().split()[0])

    def run(self, *words: str, environment: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a command beside it, as root, in its root, network and process namespace."""
        inside = ("nsenter", "--target", str(self.first()), "--mount", "--net", "--pid", "--root", "--wd")
        return subprocess.run(
            [*inside, *words], capture_output=True, text=True, timeout=120, env=environment, check=False
        )

    def wait(self, deadline_s: float = 60) -> int:
        """Wait for its end; the exit code."""
        return self._process.wait(deadline_s)

    def ended(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.poll()
