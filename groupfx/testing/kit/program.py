"""A small model as a list of steps: its answer comes from here, and so do its ONNX and torch forms.

An operation is a frozen dataclass of its attributes that says in `define` what it computes, in
numpy and by its definition; no kernel of torch or of a runtime has a part in it. Everything that it
reads is a value by name: inputs, constants (weights among them), results of other steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .known import Array, Known

Size = int | str
"""A fixed size, or the name of an open one."""


class Operation(Protocol):
    """What a step does."""

    @property
    def define(self) -> Callable[..., tuple[Known, ...]]:
        """Its results, of the values that it reads."""


@dataclass(frozen=True)
class Input:
    """An input of the model as it is declared."""

    name: str
    dtype: str
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class Step:
    """One operation on values by name."""

    operation: Operation
    reads: tuple[str, ...]
    gives: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """A model: `feeds` are one or more sets of inputs to run it on, of other sizes where open."""

    inputs: tuple[Input, ...]
    constants: Mapping[str, Array]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    feeds: tuple[Mapping[str, Array], ...]
    opset: int

    def values(self, feeds: Mapping[str, Array]) -> dict[str, Known]:
        """Every value by name, on these inputs."""
        given = {**self.constants, **feeds}
        known = {name: Known.exact(array) for name, array in given.items()}
        for step in self.steps:
            results = step.operation.define(*(known[name] for name in step.reads))
            known |= dict(zip(step.gives, results, strict=True))
        return known

    def answers(self, feeds: Mapping[str, Array]) -> list[Known]:
        """What the outputs are on these inputs."""
        known = self.values(feeds)
        return [known[name] for name in self.outputs]

    def readers(self, name: str) -> Sequence[Step]:
        """The steps that read a value."""
        return [step for step in self.steps if name in step.reads]
