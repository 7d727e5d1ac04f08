"""Plain values, small tensors and calls as source."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.fx.immutable_collections import immutable_dict, immutable_list

from ..errors import RewriteError
from .text import is_name

MOST_NUMBERS = 4096


class Expression(str):
    """A value that is written as it stands."""

    def __repr__(self) -> str:
        return str(self)


# `repr` of these is source where `inf`, `nan` and `device` are imported, as a template does.
_PLAIN = (
    *(Expression, int, float, complex, str, bool, range, type(None), type(...)),
    *(torch.dtype, torch.memory_format, torch.layout, torch.device),
)
_ROWS = (tuple, torch.Size, list, immutable_list)


def source(value: Any) -> str:
    """`value` as an expression. Raises RewriteError for one that has no such form."""
    for leaf in _leaves(value):
        if type(leaf) not in _PLAIN:
            kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
            raise RewriteError(f"a value of type {kind} cannot be written as Python")
    return repr(value)


def _leaves(value: Any) -> Iterator[Any]:
    """What `value` is made of; an instance of a class of tuples or dicts is itself a leaf."""
    if type(value) in _ROWS:
        parts = value
    elif type(value) in (dict, immutable_dict):
        parts = [*value, *value.values()]
    elif isinstance(value, slice):
        parts = [value.start, value.stop, value.step]
    else:
        yield value
        return
    for part in parts:
        yield from _leaves(part)


def counted(numbers: Sequence[int]) -> str:
    """A list of numbers, short where they are all the same."""
    same = len({*numbers}) == 1
    return f"[{numbers[0]}] * {len(numbers)}" if same else f"{list(numbers)}"


def called(head: str, given: Iterable[str], named: Mapping[str, str]) -> str:
    """A call; what has no plain name stands in a dict."""
    plain = [f"{name}={part}" for name, part in named.items() if is_name(name)]
    odd = [f"{name!r}: {part}" for name, part in named.items() if not is_name(name)]
    more = [f"**{{{', '.join(odd)}}}"] if odd else []
    return f"{head}({', '.join([*given, *plain, *more])})"


def listed(items: Sequence[str]) -> str:
    """A list of expressions that make something; what comes several times in a row is counted."""
    runs = [(text, len([*run])) for text, run in groupby(items)]
    if len(runs) == 1 and len(items) > 1:
        return f"[{items[0]} for _ in range({len(items)})]"
    parts = (
        ", ".join([text] * count) if count < 3 else f"*[{text} for _ in range({count})]"
        for text, count in runs
    )
    return f"[{', '.join(parts)}]"


def table(name: str, remark: str, rows: Mapping[str, str]) -> str:
    """A dict of long lists of numbers, which no formatter sets one to a line.

    `rows` gives for each line with a key the numbers that follow it.
    """
    lines = []
    for head, text in rows.items():
        lines += [f"    {head}", textwrap.indent(textwrap.fill(f"{text},", 82), " " * 8)]
    whole = ["", f"# {remark}", "# fmt: off", f"{name} = {{", *lines, "}", "# fmt: on"]
    return "\n".join(whole) if rows else ""


def numbers_of(tensor: Tensor, path: str) -> str:
    """The very numbers of `tensor`. Raises RewriteError where there are more than MOST_NUMBERS."""
    plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
    if not plain or tensor.numel() > MOST_NUMBERS:
        raise RewriteError(
            f"{path} holds {tensor.numel()} numbers that no state_dict holds, and at most "
            f"{MOST_NUMBERS} plain ones are written into a file: make it a persistent buffer"
        )
    return source(tensor.detach().cpu().tolist())
