"""Classes of an emitted file: those that are alike but for numbers are one, which takes them.

A class is made for each part of a model. Repeated blocks give the same class over and over, with
other channels, strides or layers in it: these become arguments of its constructor.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .alike import Unlike, merged
from .imports import Imports
from .text import call, free, parsed


@dataclass
class Part:
    """What becomes a class: its wish for a name, what `__init__` makes, and `forward`.

    `made` are assignments to attributes of `self`.
    """

    path: str
    wish: str
    made: list[ast.stmt]
    forward: ast.stmt


@dataclass
class _Kind:
    parts: list[Part]
    name: str = ""
    arguments: dict[str, list[ast.expr]] = field(default_factory=dict)


class Classes:
    """The classes of one file, in the order in which they have to stand."""

    def __init__(self, imports: Imports) -> None:
        self._imports = imports
        self.lines: list[str] = []

    def add(self, parts: Sequence[Part]) -> dict[str, ast.expr]:
        """Classes for parts of which none is made of another; returns how each is made."""
        kinds: list[_Kind] = []
        for part in parts:
            for kind in kinds:
                if self._fits(kind, part):
                    kind.parts.append(part)
                    break
            else:
                kinds.append(_Kind([part]))
        made: dict[str, ast.expr] = {}
        for kind in kinds:
            made |= self._write(kind)
        return made

    def _fits(self, kind: _Kind, part: Part) -> bool:
        if kind.parts[0].wish != part.wish:
            return False
        try:
            _merge([*kind.parts, part])
        except Unlike:
            return False
        return True

    def _write(self, kind: _Kind) -> dict[str, ast.expr]:
        name = self._imports.free(kind.parts[0].wish)
        made, forward, values = _merge(kind.parts)
        names = _names(made, list(values))
        _rename(made, names, inside=False)
        kept = _rename([forward], names, inside=True)
        keep = [parsed_statement(f"self.{names[key]} = {names[key]}") for key in kept]
        arguments = ", ".join(["self", *names.values()])
        definition = parsed_statement(f"def __init__({arguments}):\n    super().__init__()")
        assert isinstance(definition, ast.FunctionDef)
        definition.body += [*keep, *made]
        whole = ast.ClassDef(name, [parsed("nn.Module")], [], [definition, forward], [])
        self.lines += ["", "", *ast.unparse(ast.fix_missing_locations(whole)).split("\n")]
        return {
            part.path: call(
                name, (), {names[key]: found[position] for key, found in values.items()}
            )
            for position, part in enumerate(kind.parts)
        }


def parsed_statement(source: str) -> ast.stmt:
    """A statement that we wrote ourselves."""
    return ast.parse(source).body[0]


def _merge(
    parts: Sequence[Part],
) -> tuple[list[ast.stmt], ast.stmt, dict[str, Sequence[ast.expr]]]:
    """What the parts have in common, with placeholders, and what stands for each in every part."""
    values: dict[str, Sequence[ast.expr]] = {}
    keys: dict[tuple[str, ...], str] = {}

    def differ(found: Sequence[Any]) -> ast.expr:
        if any(_reads_variables(tree) or _is_data(tree) for tree in found):
            raise Unlike
        shown = tuple(map(ast.dump, found))
        if shown not in keys:
            keys[shown] = f"_argument{len(keys)}_"
            values[keys[shown]] = found
        return ast.Name(keys[shown])

    made = merged([ast.Module(part.made, []) for part in parts], differ).body
    forward = merged([part.forward for part in parts], differ)
    used = {n.id for tree in (*made, forward) for n in ast.walk(tree) if isinstance(n, ast.Name)}
    return made, forward, {key: found for key, found in values.items() if key in used}


def _reads_variables(tree: ast.AST) -> bool:
    """Whether an expression means something only where it stands."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    plain = {"nn", "torch", "range", "_", "float", "n", "m", "g"}
    return any(name not in plain and not name[:1].isupper() for name in names)


def _is_data(tree: ast.AST) -> bool:
    """Whether an expression says little without what it stands in, which is told then."""
    text = isinstance(tree, ast.Constant) and isinstance(tree.value, str)
    return text or isinstance(tree, ast.List | ast.Subscript)


def _rename(trees: Sequence[ast.stmt], names: Mapping[str, str], *, inside: bool) -> list[str]:
    """Put the names of arguments for placeholders; `inside` forward they are attributes."""
    found: dict[str, None] = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in names:
                found[node.id] = None
                node.id = f"self.{names[node.id]}" if inside else names[node.id]
    return list(found)


def _names(made: Sequence[ast.stmt], keys: Sequence[str]) -> dict[str, str]:
    """Names of arguments: that of the first argument of a layer that each one is."""
    owners = [getattr(getattr(s, "targets", [None])[0], "attr", "") for s in made]
    found: dict[str, str] = {}
    for owner, statement in zip(owners, made, strict=True):
        for key, name in _places(statement):
            if key in keys and key not in found:
                wishes = (name, f"{owner}_{name}") if name else (owner,)
                found[key] = free(wishes, {*found.values(), *(owners if name else ())})
    for key in keys:
        if key not in found:
            found[key] = free(("width",), {*found.values(), *owners})
    return {key: found[key] for key in keys}


def _places(statement: ast.stmt) -> Iterator[tuple[str, str]]:
    """Placeholders in a statement, and what each is called where it stands."""
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
        yield statement.value.id, ""
    for node in ast.walk(statement):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "range":
            names: Sequence[str] = ("count",)
        else:
            names = _parameters(node.func)
        for argument, name in zip(node.args, names, strict=False):
            if isinstance(argument, ast.Name):
                yield argument.id, name
        for keyword in node.keywords:
            if isinstance(keyword.value, ast.Name) and keyword.arg is not None:
                yield keyword.value.id, keyword.arg


def _parameters(function: ast.expr) -> Sequence[str]:
    if isinstance(function, ast.Attribute) and function.attr == "zeros":
        return "rows", "columns"
    kind = getattr(nn, function.attr, None) if isinstance(function, ast.Attribute) else None
    return list(inspect.signature(kind).parameters) if isinstance(kind, type) else ()
