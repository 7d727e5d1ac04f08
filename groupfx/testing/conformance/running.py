"""Run a tool on the cases, each within a time limit; what dies or hangs costs one case."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InternalError, UsageError
from ..kit import Case, all_cases
from .adapter import Adapter, Crashed, Told
from .judging import VERDICTS, WRONG, Judged, judge
from .worker import OUTPUTS, Reply, Worker, reply_of

Progress = Callable[[int, int], None]
DEFAULT_SECONDS = 20.0


@dataclass(frozen=True)
class Row:
    """The cases of one kind: how many of each verdict, and the worst error by its bound."""

    kind: str
    counts: Mapping[str, int]
    worst: float | None

    @property
    def cases(self) -> int:
        """How many there are."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Conformance:
    """What a tool made of the cases."""

    tool: str
    versions: Mapping[str, str]
    judged: tuple[Judged, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing came out wrong, crashed or hung; refusing is allowed."""
        return not any(each.verdict in WRONG for each in self.judged)

    @property
    def compared(self) -> bool:
        """Whether there was any answer to compare."""
        return any(each.verdict not in ("refused", "skipped") for each in self.judged)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Kind by kind, in the order of the kit."""
        kinds = dict.fromkeys(each.kind for each in self.judged)
        return tuple(_row(kind, [j for j in self.judged if j.kind == kind]) for kind in kinds)

    @property
    def total(self) -> Row:
        """All kinds together."""
        return _row("all", self.judged)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what the command line writes for each tool."""
        return {
            "tool": self.tool,
            "versions": dict(self.versions),
            "ok": self.ok,
            "seconds": self.seconds,
            "kinds": [_row_dict(row) for row in self.rows],
            "cases": [
                {
                    "case": each.case,
                    "kind": each.kind,
                    "verdict": each.verdict,
                    "reason": each.reason,
                    "error_by_bound": each.ratio,
                    "seconds": each.seconds,
                }
                for each in self.judged
            ],
        }


def conformance(
    tool: Adapter | str,
    cases: Sequence[Case] | None = None,
    *,
    seconds: float = DEFAULT_SECONDS,
    progress: Progress | None = None,
) -> Conformance:
    """Run `tool` on `cases`, by default all that it takes, and judge what it computed.

    A name, `module:attribute`, `file.py:attribute` or a command line runs in a process of its own,
    with at most so many seconds a case; an `Adapter` runs in this process, without a limit. Raises
    `UsageError` for a tool that there is not, `MissingDependencyError` for one that is not
    installed.
    """
    started = time.perf_counter()
    given = all_cases() if cases is None else tuple(cases)
    runs = _Here(tool, given) if isinstance(tool, Adapter) else _Apart(tool, given, seconds)
    chosen = [case for case in given if case.name in runs.told.takes]
    judged = []
    try:
        for position, case in enumerate(chosen):
            judged.append(_judged(case, runs))
            if progress is not None:
                progress(position + 1, len(chosen))
    finally:
        runs.close()
    passed = time.perf_counter() - started
    return Conformance(runs.told.name, runs.told.versions, tuple(judged), passed)


class _Here:
    """In this process, on cases of any origin."""

    def __init__(self, adapter: Adapter, cases: Sequence[Case]) -> None:
        self._adapter, self.told = adapter, Told.by(adapter, cases)

    def run(self, case: Case) -> Reply:
        return reply_of(self._adapter, case)

    def close(self) -> None:
        pass


class _Apart:
    """In another process, and in a new one behind each that died or hung."""

    def __init__(self, tool: str, cases: Sequence[Case], seconds: float) -> None:
        from ..adapters import require_known

        require_known(tool)
        known = {case.name for case in all_cases()}
        for case in cases:
            if case.name not in known:
                raise UsageError(
                    f"{case.name} is no case of the kit: give an Adapter, not its name"
                )
        self._tool, self._seconds = tool, seconds
        self._worker: Worker | None = Worker(tool)
        self.told = self._worker.told

    def run(self, case: Case) -> Reply:
        try:
            self._worker = self._worker or Worker(self._tool)
            return self._worker.run(case, self._seconds)
        except Crashed as error:
            self.close()
            return "crash", str(error)
        except TimeoutError as error:
            self.close()
            return "time", str(error)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def _judged(case: Case, runs: _Here | _Apart) -> Judged:
    started = time.perf_counter()
    kind, value = runs.run(case)
    passed = time.perf_counter() - started
    if kind == OUTPUTS:
        verdict, reason, ratio = judge(case, value)
        return Judged(case.name, case.kind, verdict, reason, ratio, passed)
    if kind not in VERDICTS:
        raise InternalError(f"a worker replied {kind!r} to {case.name}")
    return Judged(case.name, case.kind, kind, str(value), None, passed)


def _row(kind: str, judged: Sequence[Judged]) -> Row:
    counts: dict[str, int] = {
        word: sum(each.verdict == word for each in judged) for word in VERDICTS
    }
    ratios = [each.ratio for each in judged if each.ratio is not None]
    return Row(kind, counts, max(ratios, default=None))


def _row_dict(row: Row) -> dict[str, Any]:
    return {"kind": row.kind, "cases": row.cases, **row.counts, "error_by_bound": row.worst}
