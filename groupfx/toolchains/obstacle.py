"""One operation that a toolchain would not take, or would take for something else."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

WHOLE_MODEL = "the model"
"""What the operation of an obstacle is, where it is about all of a model."""


@dataclass(frozen=True)
class Obstacle:
    """An operation of a model that a toolchain stops at, or gets wrong.

    `operation` is written as in the model's source, `name` the path of the module in whose forward
    it stands, and `line` its file and line, where they are known. `methods` are the parts of the
    toolchain that it concerns. `refused`: they raise an error; else they go on and are wrong.
    """

    operation: str
    name: str
    line: str | None
    methods: tuple[str, ...]
    refused: bool
    reason: str
    remedy: str | None = None

    def __str__(self) -> str:
        """In one line."""
        where = f"{self.name}, {self.line}" if self.line else self.name
        verb = "refused by" if self.refused else "got wrong by"
        told = f"{self.operation} ({where}): {verb} {', '.join(self.methods)}: {self.reason}"
        return f"{told}; {self.remedy}" if self.remedy else told

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in the JSON report."""
        return {**vars(self), "methods": list(self.methods)}


def told_together(obstacles: Iterable[Obstacle]) -> Iterator[str]:
    """A line for each reason, with the places that it concerns."""
    alike: dict[tuple[object, ...], list[Obstacle]] = defaultdict(list)
    for each in obstacles:
        key = (each.operation, each.methods, each.refused, each.reason, each.remedy, each.line)
        alike[key].append(each)
    for group in alike.values():
        first = group[0]
        more = f" (and {len(group) - 1} more)" if len(group) > 1 else ""
        yield str(first).replace(f"({first.name}", f"({first.name}{more}", 1)
