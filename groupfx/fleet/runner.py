"""A fleet from its models to their results: what is known is kept, the rest runs, longest first."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import quote

from ..errors import FileError, GroupfxError, UsageError, first_line
from .digests import Digests
from .engine import Engine, Stop
from .entries import Entry, Fleet, Limits, Refused
from .failures import Failure
from .processes import cores
from .results import Journal, ModelResult, Outcome, read_results
from .task import Job, Task

SCHEMA = "groupfx.zoo/1"
Again = Literal["new", "failed", "environment", "all"]
"""Which models run: those without a result, those that failed too, those alone that the environment
failed, or all.
"""

_RESULTS, _MODELS, _DIGESTS = "results", "models", "digests.json"
_LINES = ".jsonl"
# Seconds of a model of so many bytes, where no other was measured.
_SECONDS, _SECONDS_A_BYTE = 1.0, 1 / 20e6
# Linux takes names of 255 bytes.
_LONGEST = 200


class Runs(Protocol):
    """Who does the jobs, so many at a time: processes of this machine, or a cluster."""

    @property
    def workers(self) -> int: ...

    @property
    def threads(self) -> int:
        """Of each process."""

    def run(self, jobs: Sequence[Job], stop: Stop) -> Iterator[tuple[Task, Outcome]]: ...


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """How a fleet runs.

    `workers` at a time: one a core, or one alone where models are tuned, whose times another would
    disturb. `again` says which. `shard` is (place, number): every number-th model from
    the place-th on. `joined` are results of other runs, files or folders, which count as well.
    `scheduler` is the address of a Dask cluster, whose workers then do it.
    """

    workers: int | None = None
    again: Again = "new"
    shard: tuple[int, int] | None = None
    joined: Sequence[Path] = ()
    scheduler: str | None = None


@dataclass(frozen=True)
class FleetResult:
    """The results of a fleet, in its order; None for a model that has none yet.

    `kept` names those that were known before. `notes` say what is wrong with files of results.
    """

    folder: Path
    names: tuple[str, ...]
    results: Mapping[str, ModelResult]
    kept: frozenset[str]
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def models(self) -> tuple[ModelResult, ...]:
        """The results that there are."""
        return tuple(self.results[name] for name in self.names if name in self.results)

    @property
    def missing(self) -> tuple[str, ...]:
        """The models without a result."""
        return tuple(name for name in self.names if name not in self.results)

    @property
    def failures(self) -> Mapping[str, int]:
        """How many failed of each class that there is, the most first."""
        found = (result.outcome.failure for result in self.models)
        return dict(Counter(failure.kind for failure in found if failure).most_common())

    @property
    def ok(self) -> bool:
        """Whether every model is done."""
        return not self.failures and not self.missing

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        done = sum(result.outcome.ok for result in self.models)
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "interrupted": self.interrupted,
            "folder": str(self.folder),
            "counts": {
                "models": len(self.names),
                "done": done,
                "failed": len(self.models) - done,
                "missing": len(self.missing),
                "kept": len(self.kept),
                "classes": dict(self.failures),
            },
            "missing": list(self.missing),
            "notes": list(self.notes),
            "models": [
                {**result.to_dict(), "kept": result.name in self.kept} for result in self.models
            ],
        }


Told = Callable[[ModelResult], None]


def run_fleet(
    fleet: Fleet,
    folder: Path,
    options: FleetOptions | None = None,
    *,
    engine: Runs | None = None,
    told: Told = lambda result: None,
    stop: Stop = lambda: False,
) -> FleetResult:
    """Run the models of `fleet` that have no result in `folder` yet; results and files go there.

    `engine` does the jobs in place of what `options` say. `told` is called with each result as it
    comes. Where `stop` says so it ends early; what it was at is lost, and nothing else, as when it
    is killed. Raises FileError where the folder cannot be
    written, UsageError for options that make no sense, and MissingDependencyError for a scheduler
    without Dask.
    """
    options = options or FleetOptions()
    if options.workers is not None and options.workers < 1:
        raise UsageError(f"workers={options.workers}: it must be at least 1")
    chosen = fleet if options.shard is None else fleet.shard(*options.shard)
    engine = engine or _engine(options, chosen)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder} cannot be made: {first_line(error)}") from error
    with Journal.open(folder / _own_file(options.shard)) as journal:
        known = _Known.read(folder, options.joined)
        run = _Run(chosen, folder, options, journal, known, told)
        interrupted = run.run(engine, stop)
    names = tuple(entry.name for entry in chosen.entries)
    results = {name: known.latest[name] for name in names if name in known.latest}
    kept = frozenset(results) - run.new
    return FleetResult(folder, names, results, kept, tuple(known.notes), interrupted)


def _own_file(shard: tuple[int, int] | None) -> str:
    part = "" if shard is None else f"-{shard[0]}-of-{shard[1]}"
    return f"{_RESULTS}{part}{_LINES}"


def _engine(options: FleetOptions, fleet: Fleet) -> Runs:
    if options.scheduler is None:
        alone = any(isinstance(entry, Entry) and entry.work.tune for entry in fleet.entries)
        engine: Runs = Engine.of(options.workers or (1 if alone else cores()))
        return engine
    from .cluster import Cluster

    return Cluster.of(options.scheduler)


@dataclass
class _Known:
    """Results by name, the latest of each, and by what they depend on."""

    latest: dict[str, ModelResult] = field(default_factory=dict)
    by_key: dict[str, ModelResult] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, joined: Sequence[Path]) -> _Known:
        """Those of a folder, of all shards, and of others."""
        found = cls()
        results: list[ModelResult] = []
        for place in (*joined, folder):
            for path in _files_of_results(place):
                own, lost = read_results(path)
                results += own
                if lost:
                    lines = "line was cut off, and is" if lost == 1 else "lines are"
                    found.notes.append(f"{path}: {lost} {lines} no result: not counted")
        # Of two runs the later one counts, whichever file is read first.
        for result in sorted(results, key=lambda result: result.finished):
            found.add(result)
        return found

    def add(self, result: ModelResult) -> None:
        self.latest[result.name] = result
        if result.key is not None:
            self.by_key[result.key] = result


def _files_of_results(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(place.glob(f"{_RESULTS}*{_LINES}"))
    if not place.is_file():
        raise FileError(f"{place} is neither a folder of results nor a file of them")
    return [place]


@dataclass
class _Run:
    fleet: Fleet
    folder: Path
    options: FleetOptions
    journal: Journal
    known: _Known
    told: Told
    new: set[str] = field(default_factory=set)
    twins: dict[str, list[Task]] = field(default_factory=dict)

    def run(self, engine: Runs, stop: Stop) -> bool:
        """Whether it was interrupted."""
        tasks = self._sized(list(self._to_do()))
        jobs = self._jobs(tasks, engine)
        left = {task.entry.name for task in tasks}
        for task, outcome in engine.run(jobs, stop):
            left.discard(task.entry.name)
            self._done(task.entry, task.key, outcome)
            for twin in self.twins.pop(task.key, ()):
                self._done(twin.entry, twin.key, outcome, same_as=task.entry.name)
        return bool(left) and stop()

    def _to_do(self) -> Iterator[Task]:
        """The tasks without a result; what cannot even be read gets its own at once."""
        digests = Digests.open(self.folder / _DIGESTS)
        seen: dict[str, str] = {}
        for entry in self.fleet.entries:
            if isinstance(entry, Refused):
                self._refuse(entry.name, entry.model, entry.message, UsageError.exit_code)
                continue
            try:
                key = digests.key(entry)
            except GroupfxError as error:
                self._refuse(entry.name, str(entry.model), str(error), error.exit_code)
                continue
            if not self._wanted(entry, key):
                continue
            # Code of a model may go to another folder.
            folder = self.folder.resolve() / _MODELS / folder_name(entry.name)
            task = Task(entry, key, folder)
            if key in seen and not entry.work.writes:
                self.twins.setdefault(key, []).append(task)
                continue
            seen[key] = entry.name
            yield task
        digests.save()

    def _wanted(self, entry: Entry, key: str) -> bool:
        """Whether a model is to run; a result under another name that holds for it is taken."""
        again, own = self.options.again, self.known.latest.get(entry.name)
        if own is not None and own.key != key:
            own = None
        if own is None and not entry.work.writes and key in self.known.by_key:
            own = self.known.by_key[key]
        failure = None if own is None else own.outcome.failure
        if again == "environment":
            return failure is not None and failure.environment is not None
        if own is None or again == "all" or (again == "failed" and failure is not None):
            return True
        if not _holds(own, entry, self.folder):
            return True
        if own.name != entry.name:
            self._done(entry, key, own.outcome, same_as=own.name)
        return False

    def _refuse(self, name: str, model: str, message: str, code: int) -> None:
        if self.options.again == "environment":
            return
        outcome = Outcome(failure=Failure("cannot open", message, code, stage="open"))
        before = self.known.latest.get(name)
        if before is None or before.outcome != outcome:
            self._add(name, model, Limits(), None, outcome)

    def _done(self, entry: Entry, key: str, outcome: Outcome, same_as: str | None = None) -> None:
        self._add(entry.name, str(entry.model), entry.limits, key, outcome, same_as)

    def _add(
        self,
        name: str,
        model: str,
        limits: Limits,
        key: str | None,
        outcome: Outcome,
        same_as: str | None = None,
    ) -> None:
        result = ModelResult(
            name=name,
            model=model,
            key=key,
            finished=datetime.now(UTC).isoformat(timespec="microseconds"),
            limits=limits,
            outcome=outcome,
            same_as=same_as,
        )
        self.journal.append(result)
        self.known.add(result)
        self.new.add(name)
        self.told(result)

    def _sized(self, tasks: Sequence[Task]) -> list[Task]:
        """Tasks with what they took before, or else by the size of their files."""
        rates = [
            result.outcome.seconds / size
            for result in self.known.latest.values()
            if result.outcome.seconds and (size := _bytes(Path(result.model)))
        ]
        rate = statistics.median(rates) if rates else _SECONDS_A_BYTE
        return [replace(task, size=self._size(task.entry, rate)) for task in tasks]

    def _size(self, entry: Entry, rate: float) -> float:
        before = self.known.latest.get(entry.name)
        if before is not None and before.outcome.seconds:
            return before.outcome.seconds
        size = _bytes(entry.model)
        # What a factory makes may be of any size: it must not be the last to start.
        return float("inf") if size is None else _SECONDS + rate * size

    def _jobs(self, tasks: Sequence[Task], engine: Runs) -> list[Job]:
        """Jobs, the longest first; checkpoints of one network together, a part for each worker."""
        groups: dict[object, list[Task]] = {}
        for place, task in enumerate(tasks):
            entry = task.entry
            together = entry.reading.arch is not None and not entry.work.tune
            key = (entry.reading, entry.work, entry.limits) if together else place
            groups.setdefault(repr(key), []).append(task)
        workers = engine.workers
        jobs = [
            Job(tuple(group[start::workers]), engine.threads)
            for group in groups.values()
            for start in range(min(workers, len(group)))
        ]
        return sorted(jobs, key=lambda job: -job.size)


def _holds(result: ModelResult, entry: Entry, folder: Path) -> bool:
    """Whether a result still says what a run would: with its files, and within its limits."""
    failure, then, now = result.outcome.failure, result.limits, entry.limits
    if failure is not None and failure.kind == "time":
        return not _more(then.time, now.time)
    if failure is not None and failure.kind == "memory":
        return not _more(then.memory, now.memory)
    return all(_bytes(folder / file.path) == file.bytes for file in result.outcome.files)


def _more(then: float | None, now: float | None) -> bool:
    """Whether a limit allows what it did not; one that is not given is another one than given."""
    return then != now and (then is None or now is None or now > then)


def _bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None


def folder_name(name: str) -> str:
    """A name of a folder for the model `name`, in one piece, and another one for every other."""
    text = "".join(c if _is_plain(c) else quote(c, safe="", errors="surrogateescape") for c in name)
    # Neither hidden, nor a way up.
    text = f"%2E{text[1:]}" if text.startswith(".") else text
    if len(text.encode()) <= _LONGEST:
        return text
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    start = text.encode()[: _LONGEST - len(digest) - 1].decode("utf-8", "ignore")
    return f"{start}%{digest}"


def _is_plain(character: str) -> bool:
    return character.isprintable() and character not in "/\\%"
