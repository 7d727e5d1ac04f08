"""Jobs in processes of this machine, each watched: its time, its memory, and how it ended."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import psutil

from ..errors import InternalError, UsageError
from .failures import OF_A_PROCESS, Environment, Failure, FailureClass, Stage
from .logs import Log
from .nursery import Nursery
from .processes import (
    available_memory,
    cores,
    end_session,
    kill_tree,
    killed_for_memory,
    resident,
    tree,
)
from .results import Outcome
from .task import Job, Task, send_job

Stop = Callable[[], bool]
"""Asked again and again whether to stop."""

# How often the memory of a process is looked at, and that of all that it started: to find those
# takes a look at every process of the machine.
_LOOK, _LOOK_AT_ALL = 0.05, 0.5


@dataclass
class _Running:
    """A process at work on a job; `place` is that of the task that it is at."""

    job: Job
    channel: socket.socket
    log: Log
    pid: int = 0
    place: int = 0
    begun: float | None = None
    stage: Stage | None = None
    peak: int = 0
    looked: float = 0.0
    rest: bytes = b""
    status: int | None = None
    failure: Failure | None = None
    """why it was ended, if we did that"""

    done: bool = field(default=False)
    """whether the task at `place` has its outcome"""

    @property
    def task(self) -> Task:
        return self.job.tasks[self.place]

    @property
    def rest_of_job(self) -> Job | None:
        """What it leaves to another process where it ended before its last task."""
        left = self.job.tasks[self.place + 1 :]
        return replace(self.job, tasks=left) if left else None


@dataclass
class Engine:
    """So many processes at a time. `memory` is the limit of those that have none of their own."""

    workers: int
    memory: int
    worker: str = "groupfx.fleet.worker"
    """the module that says what the processes do"""

    @classmethod
    def of(cls, workers: int) -> Engine:
        """Each may take its share of the memory that is free."""
        return cls(workers, available_memory() // workers)

    @property
    def threads(self) -> int:
        """Of each process: those of the machine, shared out."""
        return max(1, cores() // self.workers)

    def run(self, jobs: Sequence[Job], stop: Stop) -> Iterator[tuple[Task, Outcome]]:
        """The outcome of each task as it comes; jobs start in their order.

        Ends early where `stop` says so. Whatever ends this, no process is left. Raises
        InternalError where none can be started.
        """
        waiting = deque(jobs)
        onnx = any(task.entry.work.onnx for job in jobs for task in job.tasks)
        while waiting and not stop():
            # Once more where the server itself was killed.
            with self.opened(onnx=onnx) as ready:
                yield from ready.run(waiting, stop)

    @contextmanager
    def opened(self, *, onnx: bool) -> Iterator[OpenEngine]:
        """The engine with its server, which takes seconds to start; `onnx`: to export.

        Raises UsageError where the system cannot fork.
        """
        if not hasattr(os, "fork"):
            raise UsageError(f"a fleet forks its processes, and {sys.platform} cannot")
        log = Log()
        with closing(log), Nursery.open(log, self.worker, onnx=onnx) as nursery:
            yield OpenEngine(self, nursery, log)


@dataclass(frozen=True)
class OpenEngine:
    """An engine whose server runs: for jobs now, and for others later."""

    engine: Engine
    nursery: Nursery
    log: Log

    def run(self, waiting: deque[Job], stop: Stop) -> Iterator[tuple[Task, Outcome]]:
        """Take jobs from `waiting`, and give the outcomes of their tasks.

        Some are left there where `stop` says so, or the server was killed.
        """
        work = _Work(self.engine, self.nursery, self.log, waiting)
        try:
            yield from work.run(stop)
        finally:
            work.close()


@dataclass
class _Work:
    engine: Engine
    nursery: Nursery
    log: Log
    waiting: deque[Job]
    running: list[_Running] = field(default_factory=list)
    unnamed: deque[_Running] = field(default_factory=deque)
    has_begun: bool = False
    """whether any process was started"""

    out_of_memory: int = field(default_factory=killed_for_memory)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def run(self, stop: Stop) -> Iterator[tuple[Task, Outcome]]:
        self.selector.register(self.nursery, selectors.EVENT_READ)
        while (self.waiting or self.running) and self.nursery.alive and not stop():
            while self.waiting and len(self.running) < self.engine.workers:
                self._start(self.waiting.popleft())
            for key, _ in self.selector.select(_LOOK):
                if key.data is None:
                    self._hear_of_processes()
                else:
                    yield from self._hear(key.data)
            for process in tuple(self.running):
                self._watch(process)
                if process.status is not None:
                    yield from self._ended(process)
        if not self.nursery.alive:
            yield from self._without_server()

    def close(self) -> None:
        """End what runs."""
        for process in self.running:
            if process.pid:
                kill_tree(process.pid)
            self._forget(process)
        self.selector.close()

    def _forget(self, process: _Running) -> None:
        process.channel.close()
        process.log.close()

    def _start(self, job: Job) -> None:
        ours, theirs = socket.socketpair()
        process = _Running(job, ours, Log())
        with theirs:
            self.nursery.start(theirs, process.log)
        self.running.append(process)
        self.unnamed.append(process)
        self.selector.register(ours, selectors.EVENT_READ, process)

    def _without_server(self) -> Iterator[tuple[Task, Outcome]]:
        """All processes have ended with their server. Raises InternalError where none has begun."""
        if not self.has_begun:
            said = self.log.last_words or "no reason given"
            raise InternalError(f"no process of a model can be started: {said}")
        for process in tuple(self.running):
            if process.pid:
                process.status = -signal.SIGKILL
                yield from self._ended(process)
            else:
                self.waiting.appendleft(process.job)

    def _hear_of_processes(self) -> None:
        news = self.nursery.news()
        if news is None:
            return
        if news.status is None:
            process = self.unnamed.popleft()
            process.pid, self.has_begun = news.pid, True
            # It may have ended before it read.
            with suppress(OSError):
                send_job(process.channel, process.job)
            return
        for process in self.running:
            if process.pid == news.pid:
                process.status = news.status

    def _hear(self, process: _Running) -> Iterator[tuple[Task, Outcome]]:
        data = _received(process.channel)
        if not data:
            self.selector.unregister(process.channel)
            return
        *lines, process.rest = (process.rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "begin" in message:
                process.place, process.done = message["begin"], False
                process.begun, process.peak, process.stage = time.monotonic(), 0, "open"
            elif "stage" in message:
                process.stage = message["stage"]
            elif process.failure is None:
                process.done, process.begun = True, None
                yield process.task, self._outcome(process, message["outcome"])

    def _outcome(self, process: _Running, plain: dict[str, Any]) -> Outcome:
        outcome = Outcome.from_dict(plain)
        return replace(outcome, peak_memory=max(outcome.peak_memory or 0, process.peak))

    def _watch(self, process: _Running) -> None:
        """End a process that takes more than it may."""
        if not process.pid or process.begun is None or process.failure is not None:
            return
        limits, now = process.task.entry.limits, time.monotonic()
        process.peak = max(process.peak, self._resident(process, now))
        memory = self.engine.memory if limits.memory is None else limits.memory
        if process.peak > memory:
            text = f"it took {_size(process.peak)} of memory, of {_size(memory)} that it may take"
            self._end(process, "memory", text, "out of memory")
        elif limits.time is not None and now - process.begun > limits.time:
            self._end(process, "time", f"it took longer than the {limits.time:g} s that it may")

    def _resident(self, process: _Running, now: float) -> int:
        if now - process.looked < _LOOK_AT_ALL:
            with suppress(psutil.Error):
                return resident((psutil.Process(process.pid),))
            return 0
        process.looked = now
        process.log.keep_small()
        return resident(tree(process.pid))

    def _end(
        self,
        process: _Running,
        kind: FailureClass,
        text: str,
        environment: Environment | None = None,
    ) -> None:
        process.failure = Failure(kind, text, OF_A_PROCESS, process.stage, environment)
        kill_tree(process.pid)

    def _ended(self, process: _Running) -> Iterator[tuple[Task, Outcome]]:
        """What becomes of the task that a process was at, and of those that it has not begun."""
        if process.channel in self.selector.get_map():
            # What it said last; what it started may hold the other end, and say nothing any more.
            yield from self._hear(process)
        if process.channel in self.selector.get_map():
            self.selector.unregister(process.channel)
        self.running.remove(process)
        end_session(process.pid)
        if not process.done:
            seconds = None if process.begun is None else time.monotonic() - process.begun
            outcome = Outcome(
                failure=process.failure or self._crash(process),
                seconds=seconds,
                peak_memory=process.peak or None,
            )
            yield process.task, outcome
        rest = process.rest_of_job
        if rest is not None:
            self.waiting.appendleft(rest)
        self._forget(process)

    def _crash(self, process: _Running) -> Failure:
        """Of a process that ended by itself, or that somebody else ended."""
        status, said = process.status or 0, process.log.last_words
        words = f": {said}" if said else ""
        kind: FailureClass = "crash"
        environment: Environment | None = None
        if status == -signal.SIGKILL:
            text, environment = f"its process was killed from outside{words}", "lost worker"
            before, self.out_of_memory = self.out_of_memory, killed_for_memory()
            if self.out_of_memory > before:
                text = "the system had no memory left, and ended its process"
                kind, environment = "memory", "out of memory"
        elif status < 0:
            text = f"its process ended with {signal.Signals(-status).name}{words}"
        else:
            text = f"its process ended by itself with exit code {status}{words}"
        return Failure(kind, text, OF_A_PROCESS, process.stage, environment)


def _received(channel: socket.socket) -> bytes:
    """All that has come; nothing where the other end is closed, or has not said anything."""
    found = bytearray()
    with suppress(OSError):
        while part := channel.recv(1 << 16, socket.MSG_DONTWAIT):
            found += part
    return bytes(found)


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
