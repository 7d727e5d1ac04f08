"""A side of a validation as a graph of values: operators that can be run one by one, in float64.

A value has a name. What depends on no input is a constant: it is no value of the graph, and belongs
to the operators that read it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Values = dict[str, Any]
Key = tuple[tuple[str, tuple[int, ...], bytes], ...]
"""What a run is told by: the names, shapes and numbers of its inputs."""
Jitter = Callable[[Array], Array]
"""Moves the numbers of a constant by a rounding."""

# Of the values that are kept: 256 MB in float64.
_MOST_KEPT = 1 << 25
# An integer tensor of fewer elements says how large something is, more often than what it is.
_LEAST_INTEGERS = 16


@dataclass(frozen=True)
class Operator:
    """One operator: what it is called, its kind, and the values that go in and come out.

    `site` is the site that it belongs to, where the graph says so.
    """

    index: int
    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    site: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class ValueGraph(ABC):
    """Operators in the order in which they run; `outputs` gives the value of each output."""

    operators: tuple[Operator, ...]
    inputs: tuple[str, ...]
    outputs: Mapping[str, str]

    @abstractmethod
    def run(self, operator: Operator, values: Mapping[str, Any], jitter: Jitter | None) -> Values:
        """The values that an operator gives; `jitter` moves its constants."""

    @abstractmethod
    def array(self, value: Any) -> Array | None:
        """A tensor as an array, None for anything else."""

    @abstractmethod
    def value(self, array: Array) -> Any:
        """The value that holds what an array holds."""

    def holds(self, name: str, array: Array) -> Array:
        """The nearest numbers that a value can hold: after a dequantization not every one."""
        return array

    def lies(self, name: str) -> bool:
        """Whether the channels of a value lie as they are shown here."""
        return True

    @property
    def lowers(self) -> bool:
        """Whether it rounds to half precision on its way, although it is of another dtype."""
        return False

    def known(self, runs: Sequence[Mapping[str, Array]], work: Callable[..., Any]) -> Any:
        """What `work` makes of the graph and these runs, done once: many are compared with it."""
        key = [_key(feeds) for feeds in runs]
        if self._known is None or self._known[0] != key:
            self._known = key, work(self, runs)
        return self._known[1]

    _known: tuple[Any, Any] | None = None

    def keep(self, runs: Sequence[Mapping[str, Array]]) -> None:
        """Keep the values of these runs, outputs first of all, as far as there is room."""
        self._kept, self._room = {_key(feeds): {} for feeds in runs}, _MOST_KEPT

    _kept: dict[Key, dict[str, Array]] | None = None
    _room = 0

    @cached_property
    def producer(self) -> Mapping[str, Operator]:
        """The operator that gives a value."""
        return {name: op for op in self.operators for name in op.outputs}

    @cached_property
    def last_use(self) -> Mapping[str, int]:
        """Position of the last operator that reads a value."""
        return {name: op.index for op in self.operators for name in op.inputs}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Operator, ...]]:
        """The operators that read a value."""
        found: dict[str, list[Operator]] = {}
        for op in self.operators:
            for name in op.inputs:
                found.setdefault(name, []).append(op)
        return {name: tuple(ops) for name, ops in found.items()}

    @cached_property
    def _before(self) -> Mapping[str, int]:
        """For each value those that it is computed from, itself included, as bits."""
        bits = {name: 1 << position for position, name in enumerate(self._names)}
        before = {name: bits[name] for name in self.inputs}
        for op in self.operators:
            all_of_them = 0
            for name in op.inputs:
                all_of_them |= before[name]
            before.update({name: all_of_them | bits[name] for name in op.outputs})
        return before

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return (*self.inputs, *(name for op in self.operators for name in op.outputs))

    @cached_property
    def place(self) -> Mapping[str, int]:
        """Where a value stands in the order of the graph."""
        return {name: position for position, name in enumerate(self._names)}

    def depends(self, value: str, on: str) -> bool:
        """Whether `value` is `on` or computed from it."""
        return bool(self._before[value] >> self.place[on] & 1)

    def forward(
        self, feeds: Mapping[str, Array], instead: Mapping[str, Array] | None = None
    ) -> Iterator[tuple[Operator, Values]]:
        """Each operator and all values that are alive behind it.

        `instead` are values that are put in the place of those that are computed. An operator that
        does not run gives no values, nor do those that read them.
        """
        put = {name: self.value(array) for name, array in (instead or {}).items()}
        values: Values = {name: self.value(feeds[name]) for name in self.inputs}
        kept = self._kept.get(_key(feeds)) if self._kept else None
        ends = set(self.outputs.values())
        for op in self.operators:
            known = kept is not None and all(
                n in kept and not any(self.depends(n, other) for other in put) for n in op.outputs
            )
            if known and kept is not None:
                values.update({name: self.value(kept[name]) for name in op.outputs})
            else:
                values.update(self._ran(op, values))
            values.update({name: put[name] for name in op.outputs if name in put})
            if kept is not None and not (known or put):
                self._add(kept, {name: values[name] for name in op.outputs if name in values}, ends)
            yield op, values
            for name in op.inputs:
                if self.last_use[name] == op.index and name not in ends:
                    values.pop(name, None)

    def _add(self, kept: dict[str, Array], made: Values, ends: Collection[str]) -> None:
        for name, value in made.items():
            array = self.array(value)
            if array is not None and (name in ends or array.size <= self._room):
                kept[name] = array
                self._room -= array.size

    def _ran(self, op: Operator, values: Mapping[str, Any]) -> Values:
        if not all(name in values for name in op.inputs):
            return {}
        try:
            return self.run(op, values, None)
        except Exception:
            # Each operator fails in its own way; what it gives is then missing, which is seen.
            return {}

    def compute(
        self,
        operators: Iterable[Operator],
        given: Mapping[str, Array],
        wanted: str,
        jitter: Jitter | None = None,
    ) -> Array:
        """One value, by these operators in their order. Raises what an operator raises."""
        values: Values = {name: self.value(array) for name, array in given.items()}
        for op in sorted(operators, key=lambda op: op.index):
            made = self.run(op, values, jitter)
            values.update({name: made[name] for name in made if name not in given})
        found = self.array(values[wanted])
        assert found is not None
        return found

    def values_at(
        self, names: Collection[str], feeds: Mapping[str, Array]
    ) -> Mapping[str, Array | None]:
        """The values of these names, None for what is no tensor; what does not run is missing."""
        kept = self._kept.get(_key(feeds), {}) if self._kept else {}
        found: dict[str, Array | None] = {n: feeds[n] for n in names if n in self.inputs}
        found.update({name: kept[name] for name in names if name in kept})
        if len(found) == len(names):
            return found
        for op, values in self.forward(feeds):
            for name in op.outputs:
                if name in names and name in values:
                    found[name] = self.array(values[name])
        return found


def _key(feeds: Mapping[str, Array]) -> Key:
    return tuple((name, array.shape, array.tobytes()) for name, array in feeds.items())


class Part(ValueGraph):
    """Some operators of a graph as one of its own, from `inputs` to one output called END."""

    def __init__(
        self, whole: ValueGraph, operators: Sequence[Operator], inputs: Sequence[str], end: str
    ) -> None:
        self.whole = whole
        self.inputs = tuple(inputs)
        known = {*inputs, *(name for op in operators for name in op.outputs)}
        self.operators = tuple(
            replace(op, index=place, inputs=tuple(name for name in op.inputs if name in known))
            for place, op in enumerate(sorted(operators, key=lambda op: op.index))
        )
        self.originals = tuple(sorted(operators, key=lambda op: op.index))
        self.outputs = {END: end}

    def run(self, operator: Operator, values: Mapping[str, Any], jitter: Jitter | None) -> Values:
        """As in the whole."""
        return self.whole.run(self.originals[operator.index], values, jitter)

    def array(self, value: Any) -> Array | None:
        """As in the whole."""
        return self.whole.array(value)

    def value(self, array: Array) -> Any:
        """As in the whole."""
        return self.whole.value(array)


END = "end"


def is_anchor(array: Array | None) -> bool:
    """Whether a value says by its numbers which one it is."""
    if array is None or not array.size:
        return False
    if array.dtype.kind == "f":
        return array.ndim > 0
    return array.dtype.kind in "iu" and array.size >= _LEAST_INTEGERS


def names_of(operators: Sequence[Operator]) -> str:
    """Operators in words."""
    shown = ", ".join(map(str, operators[:4]))
    return shown if len(operators) <= 4 else f"{shown} and {len(operators) - 4} more"


def jittered(unit: float, generator: np.random.Generator) -> Jitter:
    """A jitter that moves each float by `unit` times itself, up or down."""

    def move(array: Array) -> Array:
        if array.dtype.kind != "f":
            return array
        signs = generator.integers(0, 2, array.shape, dtype=np.int8) * 2.0 - 1.0
        moved: Array = array.astype(np.float64) * (1.0 + unit * signs)
        return moved

    return move
