"""Trees of source that are alike but for a few places, merged into one.

The branches of a split convolution are the same expression, with the next numbers in it; repeated
blocks of a model are the same class, with other numbers in it. Both are found by walking the trees
side by side.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .text import parsed

Tree = TypeVar("Tree", bound=ast.AST)
Differ = Callable[[Sequence[Any]], ast.expr]


class Unlike(Exception):
    """The trees differ in more than what can be told by a name."""


def merged(trees: Sequence[Tree], differ: Differ) -> Tree:
    """One tree for all of them; where they differ, what `differ` makes of their expressions.

    Raises Unlike where they differ in anything but expressions.
    """
    found: Tree = _merged(list(trees), differ)
    return found


def _merged(values: list[Any], differ: Differ) -> Any:
    first = values[0]
    if any(type(value) is not type(first) for value in values) or _are_whole(values):
        return _expression(values, differ)
    if isinstance(first, ast.Constant):
        same = all(repr(value.value) == repr(first.value) for value in values)
        return first if same else differ(values)
    if isinstance(first, ast.AST):
        inner = _for_numbers(differ) if isinstance(first, ast.ListComp) else differ
        try:
            fields = {
                name: _merged([getattr(value, name) for value in values], inner)
                for name in first._fields
                if hasattr(first, name)
            }
        except Unlike:
            return _expression(values, differ)
        return type(first)(**fields)
    if isinstance(first, list):
        if len({len(value) for value in values}) > 1:
            raise Unlike
        return [_merged(list(column), differ) for column in zip(*values, strict=True)]
    if any(value != first for value in values):
        raise Unlike
    return first


def _are_whole(values: Sequence[Any]) -> bool:
    """Whether trees of one type say something as a whole only: tables, calls of two classes."""
    parts: tuple[type[ast.AST], ...]
    if isinstance(values[0], ast.List):
        found, parts = values, (ast.Constant, ast.Tuple, ast.List, ast.UnaryOp, ast.USub, ast.Load)
    elif isinstance(values[0], ast.Call):
        found, parts = [value.func for value in values], (ast.Name, ast.Attribute, ast.Load)
    else:
        return False
    plain = all(isinstance(node, parts) for tree in found for node in ast.walk(tree))
    return plain and len({ast.dump(tree) for tree in found}) > 1


def _for_numbers(differ: Differ) -> Differ:
    """What differs inside a loop must be a number: a module made outside would be there often."""

    def told(values: Sequence[Any]) -> ast.expr:
        if not all(isinstance(value, ast.Constant) for value in values):
            raise Unlike
        return differ(values)

    return told


def _expression(values: list[Any], differ: Differ) -> ast.expr:
    if not all(isinstance(value, ast.expr) for value in values):
        raise Unlike
    return differ(values)


def counted(trees: Sequence[ast.expr], variable: str) -> ast.expr | None:
    """The expression that gives tree k where `variable` is k; None where there is no such one."""
    steps = 0

    def differ(values: Sequence[Any]) -> ast.expr:
        nonlocal steps
        numbers: list[Any] = [v.value for v in values if isinstance(v, ast.Constant)]
        if len(numbers) < len(values) or any(type(number) is not int for number in numbers):
            raise Unlike
        start, step = numbers[0], numbers[1] - numbers[0]
        if numbers != [start + step * k for k in range(len(numbers))] or step < 1:
            raise Unlike
        steps += 1
        text = variable if step == 1 else f"{step} * {variable}"
        return parsed(f"{text} + {start}" if start else text)

    try:
        found = merged(trees, differ)
    except Unlike:
        return None
    return found if steps else None


def listed(trees: Sequence[ast.expr], variables: Sequence[str]) -> ast.expr:
    """A list of these expressions, as a comprehension where they are alike."""
    variable = next(name for name in ("k", "i", "j", "index") if name not in variables)
    element = counted(trees, variable) if len(trees) > 1 else None
    if element is None:
        return ast.List(list(trees))
    return ast.ListComp(element, [_range(variable, len(trees))])


def repeated(trees: Sequence[ast.expr]) -> ast.List | ast.ListComp:
    """A list of calls that make modules; several that are alike are a loop."""
    runs: list[list[ast.expr]] = []
    for tree in trees:
        if runs and ast.dump(runs[-1][0]) == ast.dump(tree):
            runs[-1].append(tree)
        else:
            runs.append([tree])
    whole = _with_numbers(trees) if len(runs) > 2 else None
    if whole is not None:
        return whole
    items: list[ast.expr] = []
    for run in runs:
        loop = ast.ListComp(run[0], [_range("_", len(run))])
        if len(runs) == 1 and len(run) > 1:
            return loop
        items += run if len(run) < 3 else [ast.Starred(loop)]
    return ast.List(items)


def _with_numbers(trees: Sequence[ast.expr]) -> ast.ListComp | None:
    """`[nn.Conv2d(i, o, 1) for i, o in [(2, 3), (4, 5)]]`, where at most three numbers differ."""
    columns: list[list[ast.expr]] = []

    def differ(values: Sequence[Any]) -> ast.expr:
        plain = all(isinstance(v, ast.Constant) and type(v.value) is int for v in values)
        if not plain or len(columns) == len(_NUMBERS):
            raise Unlike
        columns.append(list(values))
        return ast.Name(_NUMBERS[len(columns) - 1])

    try:
        element = merged(trees, differ)
    except Unlike:
        return None
    names: list[ast.expr] = [ast.Name(name) for name in _NUMBERS[: len(columns)]]
    if len(columns) == 1:
        target, rows = names[0], columns[0]
    else:
        target = ast.Tuple(names)
        rows = [ast.Tuple(list(row)) for row in zip(*columns, strict=True)]
    return ast.ListComp(element, [ast.comprehension(target, ast.List(rows), [], 0)])


_NUMBERS = ("n", "m", "g")


def _range(variable: str, count: int) -> ast.comprehension:
    return ast.comprehension(ast.Name(variable), parsed(f"range({count})"), [], 0)
