"""Values, names and remarks as Python source that cannot be read as anything else.

Names in a graph are given by whoever built the model, and a name is text. Only plain ASCII
identifiers are written as such; everything else goes through `repr`, in quotes.
"""

from __future__ import annotations

import keyword as keywords
import math
import re
from collections.abc import Callable
from typing import Any

import torch

from ..errors import RewriteError
from .imports import Imports
from .layout import ATOM, UNARY, Doc, bracket, call, entry, keyword

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PLAIN_REMARK = re.compile(r"[ !#-\[\]-~]*\Z")  # printable, but for quotes and backslashes


def is_name(text: object) -> bool:
    """Whether `text` can be written as an identifier, inside a class too.

    Python turns `__name` inside a class into something else, and compares other scripts after
    normalising them.
    """
    if not isinstance(text, str) or not _NAME.match(text):
        return False
    return not keywords.iskeyword(text) and not text.startswith("__")


def quoted(text: str) -> str:
    """A string literal in ASCII, in double quotes where that needs no escape."""
    shown = ascii(text)
    return shown if '"' in text or shown[0] == '"' else f'"{shown[1:-1]}"'


def attribute(owner: str, name: str) -> str:
    """`owner.name`, or `getattr(owner, "name")` where the name is no identifier."""
    return f"{owner}.{name}" if is_name(name) else f"getattr({owner}, {quoted(name)})"


def one_line(text: str) -> str:
    """`text` for a comment or a docstring: on one line, and unable to end it."""
    return text if _PLAIN_REMARK.match(text) else ascii(text).replace("\\", "/").replace('"', "'")


def named_arguments(values: dict[str, Doc]) -> list[Doc]:
    """`name=value` for each, names that are no identifiers in `**{...}`."""
    plain: list[Doc] = [keyword(name, doc) for name, doc in values.items() if is_name(name)]
    odd = {name: doc for name, doc in values.items() if not is_name(name)}
    if odd:
        display = bracket("", [entry(Doc(quoted(name)), doc) for name, doc in odd.items()], "{")
        plain.append(Doc(f"**{display.flat}"))
    return plain


def literal(
    value: Any, imports: Imports, other: Callable[[Any], Doc | None] = lambda value: None
) -> Doc:
    """`value` as an expression; `other` is asked first, for what only the caller knows.

    Raises RewriteError for a value that has no such form.
    """
    found = other(value)
    if found is not None:
        return found

    def inner(item: Any) -> Doc:
        return literal(item, imports, other)

    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return call(imports.callable(type(value)), [inner(item) for item in value])
    if isinstance(value, torch.Size):
        imports.module("torch")
        return call("torch.Size", [bracket("", [inner(item) for item in value], "[")])
    if isinstance(value, tuple):
        return bracket("", [inner(item) for item in value])
    if isinstance(value, list):
        return bracket("", [inner(item) for item in value], "[")
    if isinstance(value, dict):
        return bracket("", [entry(inner(key), inner(item)) for key, item in value.items()], "{")
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return call("slice", [inner(part) for part in parts])
    return _scalar(value, imports)


def _scalar(value: Any, imports: Imports) -> Doc:
    kind = type(value)
    if value is None or kind in (bool, range):
        return Doc(repr(value))
    if kind is int:
        return Doc(repr(value), ATOM if value >= 0 else UNARY)
    if kind is float:
        return _float(value, imports)
    if kind is complex:
        return call("complex", [_float(value.real, imports), _float(value.imag, imports)])
    if kind is str:
        return Doc(quoted(value))
    if value is Ellipsis:
        return Doc("...")
    return _of_torch(value, imports)


def _of_torch(value: Any, imports: Imports) -> Doc:
    if isinstance(value, torch.device | torch.dtype | torch.memory_format | torch.layout):
        imports.module("torch")
        device = isinstance(value, torch.device)
        return call("torch.device", [Doc(quoted(str(value)))]) if device else Doc(str(value))
    if callable(value):
        return Doc(imports.callable(value))
    kind = type(value)
    raise RewriteError(
        f"a value of type {kind.__module__}.{kind.__qualname__} cannot be written as Python"
    )


def _float(value: float, imports: Imports) -> Doc:
    if math.isfinite(value):
        text = repr(value).replace("e+", "e")
        return Doc(text, ATOM if math.copysign(1, value) > 0 else UNARY)
    imports.module("math")
    text = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return Doc(f"-math.{text[1:]}", UNARY) if text[0] == "-" else Doc(f"math.{text}")


def subscript(value: str, index: Any, write: Callable[[Any], Doc]) -> Doc:
    """`value[index]`, with slices written as such."""
    if not isinstance(index, tuple):
        return bracket(value, [_index(index, write)], "[")
    if not index:
        return Doc(f"{value}[()]")
    parts = [_index(part, write) for part in index]
    return Doc(f"{value}[{parts[0].flat},]") if len(parts) == 1 else bracket(value, parts, "[")


def _index(part: Any, write: Callable[[Any], Doc]) -> Doc:
    if not isinstance(part, slice):
        return write(part)
    ends = [None if end is None else write(end) for end in (part.start, part.stop)]
    simple = all(end is None or _is_simple(end.flat) for end in ends)
    start, stop = ("" if end is None else end.flat for end in ends)
    text = f"{start}:{stop}" if simple else f"{start} : {stop}".strip()
    return Doc(text if part.step is None else f"{text}:{write(part.step).flat}")


def _is_simple(text: str) -> bool:
    return bool(re.match(r"-?[\w.]+\Z", text))
