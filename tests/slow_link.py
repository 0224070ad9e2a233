"""A way to the coordinator that breaks: a proxy that cuts connections, and a slow link between network namespaces."""

import json
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_RESET = struct.pack("ii", 1, 0)
_UNREAD, _PATIENCE_S = 1 << 18, 10.0


class CuttingProxy:
    """Passes TCP connections on to a port of this machine, counts what goes up and down, and cuts.

    Args:
        port: where to.
        cut_up: numbers of bytes towards that port, over all connections, after which all of these are reset.
        cut_down: likewise, of bytes from it.
        hold_up: number of bytes towards that port after which nothing is passed on any more until `release`.
        connects: it is an HTTP proxy, which has to be asked (CONNECT); `requests` are what it was asked.
    """

    def __init__(
        self,
        port: int,
        *,
        cut_up: Sequence[int] = (),
        cut_down: Sequence[int] = (),
        hold_up: int | None = None,
        connects: bool = False,
    ) -> None:
        self._target, self._hold_up, self._connects = port, hold_up, connects
        self.requests: list[str] = []
        self.held, self._released = threading.Event(), threading.Event()
        self._cuts = {"up": list(cut_up), "down": list(cut_down)}
        self.passed = {"up": 0, "down": 0}
        self.cut = 0
        """How often connections were reset."""
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # not connected, which it never is; this wakes the thread that accepts
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.release()

    def release(self) -> None:
        """Reset what was held up; new connections pass."""
        self._hold_up = None
        self._reset()
        self._released.set()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                there = socket.create_connection(("127.0.0.1", self._target))
            except OSError:  # nobody listens there at this moment
                here.close()
                continue
            if self._connects:
                request = b""
                while not request.endswith(b"\r\n\r\n"):
                    request += here.recv(1)
                self.requests.append(request.decode())
                here.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with self._lock:
                self._open += [here, there]
            for source, sink, way in ((here, there, "up"), (there, here, "down")):
                threading.Thread(target=self._pass_on, args=(source, sink, way), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with suppress(OSError):  # one side is closed, or was reset by the other thread
            while data := source.recv(1 << 16):
                cuts = self._cuts[way]
                if cuts and self.passed[way] + len(data) > cuts[0]:
                    cuts.pop(0)
                    self.cut += 1
                    _wait_until_read(sink)
                    self._reset()
                    return
                if way == "up" and self._hold_up is not None and self.passed[way] > self._hold_up:
                    self.held.set()
                    self._released.wait()
                sink.sendall(data)
                self.passed[way] += len(data)
            sink.shutdown(socket.SHUT_WR)

    def _reset(self) -> None:
        with self._lock:
            for connection in self._open:
                with suppress(OSError):  # closed already
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            self._open.clear()


def _wait_until_read(sink: socket.socket) -> None:
    """Wait until the other end of a connection on this machine has read most of what was passed on to it.

    A reset throws away what lies in its system's buffer, which is megabytes where the machine is busy: what a cut costs
    is to be what was on the way, and not how slow the reader was.
    """
    near, far = (f"{end[1]:04X}" for end in (sink.getsockname(), sink.getpeername()))

    def unread() -> int:
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, _, queues, *_ = line.split()
            if (local.partition(":")[2], remote.partition(":")[2]) == (far, near):
                return int(queues.partition(":")[2], 16)
        return 0

    deadline = time.monotonic() + _PATIENCE_S
    while unread() > _UNREAD and time.monotonic() < deadline:
        time.sleep(0.01)


class SlowLink:
    """Two network namespaces, joined by nothing but a slow link that can be cut and mended.

    A token bucket limits both directions (tc tbf). What does not fit into its short queue is dropped, so TCP loses
    packets all the time, as over a real narrow line. (Kernels without the netem module know no other loss.)

    Args:
        rate_here: on the way here, as tc has it: "8mbit".
        rate_there: on the way there.
    """

    here, there = "10.213.0.1", "10.213.0.2"

    def __init__(self, rate_here: str, rate_there: str) -> None:
        self._rates = (rate_there, rate_here)  # each end limits what it sends
        self._here, self._there = (f"fedpath-{os.getpid()}-{end}" for end in ("here", "there"))

    def __enter__(self) -> Self:
        try:
            for name in (self._here, self._there):
                _do(f"ip netns add {name}")
                _do(f"ip -n {name} link set lo up")
            _do(f"ip -n {self._here} link add link0 type veth peer name link0 netns {self._there}")
            ends = ((self._here, self.here), (self._there, self.there))
            for (name, address), rate in zip(ends, self._rates, strict=True):
                _do(f"ip -n {name} addr add {address}/24 dev link0")
                _do(f"ip -n {name} link set link0 up")
                _do(f"tc -n {name} qdisc add dev link0 root tbf rate {rate} burst 16kb limit 64kb")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in (self._here, self._there):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    @property
    def on_this_side(self) -> list[str]:
        """Words before a command that is to run at `here`."""
        return ["ip", "netns", "exec", self._here]

    @property
    def on_the_far_side(self) -> list[str]:
        """Words before a command that is to run at `there`."""
        return ["ip", "netns", "exec", self._there]

    def cut(self) -> None:
        """Let nothing through any more."""
        _do(f"ip -n {self._here} link set link0 down")

    def mend(self) -> None:
        """Let it through again."""
        _do(f"ip -n {self._here} link set link0 up")

    def dropped(self) -> int:
        """How many packets the link has dropped on the way here."""
        text = _do(f"tc -n {self._there} -s qdisc show dev link0")
        return int(text.partition("dropped ")[2].split(",")[0])

    def arrived(self) -> int:
        """How many bytes have come here over the link, with all that surrounds them."""
        (link,) = json.loads(_do(f"ip -n {self._here} -s -j link show dev link0"))
        return int(link["stats64"]["rx"]["bytes"])


def why_no_links() -> str | None:
    """Say why this machine cannot make such links; None if it can."""
    try:
        with SlowLink("8mbit", "8mbit"):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here: {getattr(error, 'stderr', None) or error}"


def _do(command: str) -> str:
    return subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout
