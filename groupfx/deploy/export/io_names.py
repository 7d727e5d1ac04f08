"""Names for the inputs and outputs of an exported model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...errors import UsageError
from .known_outputs import parts_of

_SINGLE = "output"


def output_names(structure: Any) -> Iterator[tuple[str, Any]]:
    """Names and leaves of what a forward returns, in the order of `torch.utils._pytree`.

    A single tensor is `output`; those of a tuple are `output_0`, `output_1`, those of a dict, a
    named tuple or a dataclass have the names that they have there; what is nested is joined by `_`.
    """
    yield from _named(structure, "")


def _named(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    parts = _parts(value)
    if parts is None:
        yield prefix or _SINGLE, value
        return
    for key, part in parts.items():
        name = f"{prefix}_{key}" if prefix else key
        if not prefix and key.isdecimal():
            name = f"{_SINGLE}_{key}"
        yield from _named(part, name)


def _parts(value: Any) -> Mapping[str, Any] | None:
    parts = parts_of(value)
    if parts is None:
        return None
    pairs = parts.items() if isinstance(parts, Mapping) else enumerate(parts)
    return {_word(key): part for key, part in pairs}


def _word(key: object) -> str:
    return re.sub(r"\W+", "_", str(key)) or "_"


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """The same names, a number behind those that are there already."""
    taken: set[str] = set()
    result = []
    for name in names:
        candidate, number = name, 2
        while candidate in taken:
            candidate, number = f"{name}_{number}", number + 1
        taken.add(candidate)
        result.append(candidate)
    return tuple(result)


def chosen(given: Sequence[str] | None, found: Sequence[str], side: str) -> tuple[str, ...]:
    """The names that the user gave, else those that were found.

    Raises UsageError where they are not as many, or not different.
    """
    if given is None:
        return tuple(found)
    if len(given) != len(found):
        raise UsageError(
            f"{len(given)} {side} names are given ({', '.join(given) or 'none'}), and the model "
            f"has {len(found)} {side}s: {', '.join(found)}"
        )
    if len(set(given)) != len(given) or not all(given):
        raise UsageError(f"the {side} names {', '.join(given)} are not all different, or one is ''")
    return tuple(given)
