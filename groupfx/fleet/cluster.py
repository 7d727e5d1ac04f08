"""Jobs on the workers of a Dask cluster, which see the same files as we do.

Each worker of the cluster runs a job as this machine would: in a process of its own, within its
limits. Where a worker is lost, Dask gives its job to another one; a job that loses several is
given up. Dask is an extra, and imported here alone.
"""

from __future__ import annotations

import atexit
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from ..errors import MissingDependencyError, UsageError, kind_and_line
from ..version import __version__
from .engine import Engine, OpenEngine, Stop
from .failures import OF_A_PROCESS, Failure
from .processes import available_memory
from .results import Outcome
from .task import Job, Task

_PATIENCE = 10.0
_LOOK = 0.2


@dataclass
class Cluster:
    """The workers behind a scheduler. A context is opened for each run."""

    address: str
    workers: int
    threads: int = 1
    worker: str = Engine.worker
    """the module that says what the processes of jobs do"""

    @classmethod
    def of(cls, address: str) -> Cluster:
        """Ask who is there.

        Raises MissingDependencyError without Dask, and UsageError where nobody answers, nobody
        works there, or some have another version of groupfx.
        """
        client = _client(address)
        try:
            workers = client.scheduler_info(n_workers=-1)["workers"]
            if not workers:
                raise UsageError(f"--scheduler {address}: it has no workers: start some first")
            versions = client.run(_version)
            others = {name: found for name, found in versions.items() if found != __version__}
            if others:
                name, found = next(iter(others.items()))
                raise UsageError(
                    f"--scheduler {address}: the worker {name} has "
                    f"{f'groupfx {found}' if found else 'no groupfx'}, and this is {__version__}: "
                    "install the same everywhere"
                )
            number = sum(int(each["nthreads"]) for each in workers.values())
            return cls(address, number)
        finally:
            client.close()

    def run(self, jobs: Sequence[Job], stop: Stop) -> Iterator[tuple[Task, Outcome]]:
        """The outcomes as they come; what runs elsewhere is cancelled where `stop` says so."""
        if not jobs:
            return
        from distributed import wait

        client = _client(self.address)
        try:
            left = {
                # The first is the longest. Of two equal jobs each is done.
                client.submit(run_job, job, self.worker, pure=False, priority=-place): job
                for place, job in enumerate(jobs)
            }
            while left and not stop():
                with suppress(TimeoutError), client.as_current():
                    wait(left, timeout=_LOOK, return_when="FIRST_COMPLETED")
                for future in [future for future in left if future.done()]:
                    yield from _outcomes(future, left.pop(future))
            client.cancel(list(left))
        finally:
            client.close()


def _client(address: str) -> Any:
    try:
        from distributed import Client
        from distributed.comm.addressing import get_address_host_port
    except ImportError as error:
        raise MissingDependencyError.of("--scheduler needs", "Dask distributed", "dask") from error
    try:
        # A client that could not even begin complains for long when it is given up.
        get_address_host_port(address)
    except ValueError as error:
        raise UsageError(f"--scheduler {address!r} is no address: {error}; {_EXAMPLE}") from error
    try:
        return Client(address, timeout=_PATIENCE, set_as_default=False)
    except Exception as error:
        # A host that is not there, a port where something else listens.
        raise UsageError(
            f"--scheduler {address}: no scheduler of Dask answers there within {_PATIENCE:g} s "
            f"({kind_and_line(error)}); start one with 'dask scheduler', and {_EXAMPLE}"
        ) from error


_EXAMPLE = "give its address, such as tcp://host:8786"


def _outcomes(future: Any, job: Job) -> Iterator[tuple[Task, Outcome]]:
    if future.status == "finished":
        # Plain data, as from a process of ours.
        outcomes = [Outcome.from_dict(plain) for plain in future.result()]
        yield from zip(job.tasks, outcomes, strict=True)
        return
    reason = "it was cancelled" if future.status != "error" else kind_and_line(future.exception())
    failure = Failure(
        "crash", f"its worker was lost: {reason}", OF_A_PROCESS, environment="lost worker"
    )
    yield from ((task, Outcome(failure=failure)) for task in job.tasks)


def _version() -> str:
    return __version__


_Ready = tuple[OpenEngine, ExitStack]

# Of a process of Dask: servers that wait for another job of their kind.
_IDLE: defaultdict[tuple[str, bool], list[_Ready]] = defaultdict(list)


def run_job(job: Job, worker: str = Engine.worker) -> list[dict[str, Any]]:
    """On a worker: do a job in a process of its own, and give what came of each task."""
    onnx = any(task.entry.work.onnx for task in job.tasks)
    waiting, found = deque([job]), dict[str, Outcome]()
    while waiting:
        engine, opened = _ready(worker, onnx)
        try:
            found |= {task.key: outcome for task, outcome in engine.run(waiting, lambda: False)}
        finally:
            if engine.nursery.alive and not waiting:
                _IDLE[worker, onnx].append((engine, opened))
            else:
                opened.close()
    return [found[task.key].to_dict() for task in job.tasks]


def _ready(worker: str, onnx: bool) -> _Ready:
    idle = _IDLE[worker, onnx]
    with suppress(IndexError):
        while True:
            engine, opened = idle.pop()
            if not engine.nursery.has_ended:
                return engine, opened
            opened.close()
    opened = ExitStack()
    atexit.register(opened.close)
    return opened.enter_context(Engine(1, _memory(), worker).opened(onnx=onnx)), opened


def _memory() -> int:
    """What a job may take on this worker: its share of what Dask gives the worker."""
    from distributed import get_worker

    own = get_worker()
    limit = own.memory_manager.memory_limit or available_memory()
    return int(limit) // int(own.state.nthreads)
