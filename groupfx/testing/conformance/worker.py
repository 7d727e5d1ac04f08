"""A process that runs cases for the one that judges them; it may die or hang, and is replaced.

    python -m groupfx.testing.conformance.worker TOOL FD

FD is one end of a pair of sockets. In come names of cases; out go ("outputs", arrays) or a word why
there are none, with a reason.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import GroupfxError, InternalError, ModelError, UsageError, kind_and_line
from ..kit import Case, all_cases
from .adapter import Adapter, Crashed, NotJudged, Outputs, Told, WrongResult

Reply = tuple[str, Any]
OUTPUTS, ERROR, TOLD = "outputs", "error", "told"
_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (WrongResult, "fail"),
    (NotJudged, "skipped"),
    (Crashed, "crash"),
)
# Importing a large tool on a busy machine.
START_SECONDS = 180.0
# From the end of the connection to that of the process.
_LAST_SECONDS = 10.0


def reply_of(adapter: Adapter, case: Case) -> Reply:
    """The outputs, or a verdict and its reason. Raises what is a mistake of the user or of ours."""
    try:
        outputs: Outputs = adapter.run(case)
    except tuple(kind for kind, _ in _KINDS) as error:
        (verdict,) = (word for kind, word in _KINDS if isinstance(error, kind))
        return verdict, kind_and_line(error).partition(": ")[2]
    except (UsageError, InternalError):
        raise
    except Exception as error:
        return "refused", kind_and_line(error)
    try:
        # Whatever holds numbers; and plain, for it goes through a pipe.
        return OUTPUTS, [{str(k): np.asarray(v) for k, v in each.items()} for each in outputs]
    except Exception as error:
        return "fail", f"its outputs are no arrays by name, for each set of inputs: {error}"


class Worker:
    """One process. Raises `ModelError` where it does not start.

    The tool is imported there alone, and says of itself what is `told`. `run` raises `Crashed` or
    `TimeoutError`; after either it is of no use any more.
    """

    def __init__(self, tool: str) -> None:
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, tool, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_search_path())},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        theirs.close()
        self._pipe = Connection(ours.detach())
        self.told = self._start(tool)

    def _start(self, tool: str) -> Told:
        try:
            told: Told = self._reply(START_SECONDS)[1]
        except (Crashed, TimeoutError) as error:
            self.close()
            raise ModelError(f"{tool} cannot be started: {error}") from error
        except GroupfxError:
            self.close()
            raise
        return told

    def run(self, case: Case, seconds: float) -> Reply:
        """The reply to a case."""
        self._pipe.send(case.name)
        return self._reply(seconds)

    def close(self) -> None:
        """End it, with whatever it started."""
        self._pipe.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _reply(self, seconds: float) -> Reply:
        if not self._pipe.poll(seconds):
            raise TimeoutError(f"no answer after {seconds:g} s")
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise Crashed(self._end()) from error
        if kind == ERROR:
            raise value
        return kind, value

    def _end(self) -> str:
        """How the process ended, and the last thing that it said."""
        try:
            code = self._process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its end, and went on"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        try:
            how = signal.Signals(-code).name
        except ValueError:
            how = f"exit code {code}"
        return f"{how}: {said}"


def _search_path() -> list[str]:
    """Where this process finds modules, the folder of this package first."""
    return [str(Path(__file__).resolve().parents[3]), *(path for path in sys.path if path)]


def _serve(tool: str, pipe: Connection) -> None:
    from ..adapters import adapter_for

    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    cases = {case.name: case for case in all_cases()}
    try:
        adapter = adapter_for(tool)
        pipe.send((TOLD, Told.by(adapter, cases.values())))
        while True:
            pipe.send(reply_of(adapter, cases[pipe.recv()]))
    except GroupfxError as error:
        pipe.send((ERROR, type(error)(str(error))))
    except EOFError:
        return


if __name__ == "__main__":
    _serve(sys.argv[1], Connection(int(sys.argv[2])))
