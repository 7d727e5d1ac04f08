"""Processes for models that start at once: a process that has loaded torch forks them.

To load torch takes seconds, and most models take less. `multiprocessing` has such a server too, but
its processes outlive a runner that was killed, run the caller's own script once more, and cannot be
started from a process of Dask. Here everything hangs on one socket: the server ends all of its
processes when the other end of that is closed, however that came about.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import NoReturn, Self

if sys.platform != "win32":
    import resource

from ..running.collecting import keep_out_for_good
from .logs import Log
from .processes import die_with_parent, kill_tree

# Of a message of the server: a process that has started (no status yet), or how it ended.
_NEWS = struct.Struct("=i?i")


@dataclass(frozen=True)
class News:
    """A process of the nursery: that it was started (`status` None), or how it ended.

    `status` is the exit code, or minus the signal that ended it.
    """

    pid: int
    status: int | None


@dataclass
class Nursery:
    """The server, as its user sees it. `fileno` is readable when there are news."""

    _control: socket.socket
    _server: subprocess.Popen[bytes] = field(repr=False)
    alive: bool = True
    """whether the server runs, as far as is known"""

    @classmethod
    @contextlib.contextmanager
    def open(cls, log: Log, worker: str, *, onnx: bool) -> Iterator[Self]:
        """Start the server, whose own messages go to `log`; all of its processes end with it.

        The module `worker` says what they do: `prepare(onnx=...)` once in the server, and
        `work_through(channel)` in each.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        # As this process finds modules, so do those.
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from {__name__} import serve; serve({theirs.fileno()}, {worker!r}, onnx={onnx})"
        )
        with ours:
            with theirs:
                server = subprocess.Popen(
                    [sys.executable, "-c", program],
                    stdin=subprocess.DEVNULL,
                    stdout=log.file,
                    stderr=log.file,
                    pass_fds=[theirs.fileno()],
                    # Ctrl-C at a terminal is for us alone.
                    start_new_session=True,
                )
            try:
                yield cls(ours, server)
            finally:
                ours.close()
                _ended(server)

    @property
    def has_ended(self) -> bool:
        """Whether the server has ended, though nobody has heard of it yet."""
        return self._server.poll() is not None

    def fileno(self) -> int:
        return self._control.fileno()

    def start(self, channel: socket.socket, log: Log) -> None:
        """Have a process started that works through `channel`, with its output in `log`.

        The first news of it come when it is there.
        """
        try:
            socket.send_fds(self._control, [b"1"], [channel.fileno(), log.file.fileno()])
        except OSError:
            self.alive = False

    def news(self) -> News | None:
        """The next news; None where the server has ended."""
        data = b""
        with contextlib.suppress(OSError):
            data = self._control.recv(_NEWS.size, socket.MSG_WAITALL)
        if len(data) < _NEWS.size:
            self.alive = False
            return None
        pid, is_end, status = _NEWS.unpack(data)
        return News(pid, status if is_end else None)


def _ended(server: subprocess.Popen[bytes]) -> None:
    try:
        server.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        kill_tree(server.pid)
        server.wait()


# One that still loads torch hears nothing.
_PATIENCE = 1.0


def serve(control: int, worker: str, *, onnx: bool) -> NoReturn:
    """Fork a process for each request that comes through the socket `control`."""
    work = import_module(worker)
    work.prepare(onnx=onnx)
    # torch and ONNX Runtime are loaded, and have not run anything: no thread holds a lock.
    warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
    keep_out_for_good()
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    living: set[int] = set()
    with socket.socket(fileno=control) as requests:
        while True:
            ready, _, _ = select.select([requests, wake], [], [])
            if wake in ready:
                wake.recv(4096)
            for pid, status in _left(living):
                _tell(requests, pid, status)
            if requests not in ready:
                continue
            _, found, _, _ = socket.recv_fds(requests, 1, 2)
            if not found:
                break
            pid = os.fork()
            if not pid:
                # Nothing of the server's may come back to life here.
                try:
                    channel, log = found
                    _become(log, requests, wake, waker)
                    work.work_through(socket.socket(fileno=channel))
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)
            for descriptor in found:
                os.close(descriptor)
            living.add(pid)
            _tell(requests, pid, None)
    for pid in living:
        kill_tree(pid)
    os._exit(0)


def _left(living: set[int]) -> Iterator[tuple[int, int]]:
    """Those that have ended, and how."""
    for pid in tuple(living):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            living.discard(pid)
            yield pid, os.waitstatus_to_exitcode(status)


def _tell(requests: socket.socket, pid: int, status: int | None) -> None:
    with contextlib.suppress(OSError):
        requests.send(_NEWS.pack(pid, status is not None, status or 0))


def _become(log: int, *others: socket.socket) -> None:
    """Make a process of a model of this one: nothing of the server's, and its output to `log`."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for other in others:
        other.close()
    os.setsid()
    die_with_parent()
    # A large model would leave a large file each time that it crashes.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.close(log)
