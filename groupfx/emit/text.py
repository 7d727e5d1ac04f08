"""Pieces of Python source, and the finished text of a file.

Expressions are trees of `ast`, which knows where brackets have to be; ruff sets the text, sorts its
imports and drops those that nothing uses. Names come from whoever built the model, and a name is
text: only plain ASCII identifiers are written as such, all else goes into quotes.
"""

from __future__ import annotations

import ast
import keyword
import re
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence

from ruff import find_ruff_bin

WIDTH = 100

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PLAIN = re.compile(r"[ !#-\[\]-~]*\Z")  # printable, but for quotes and backslashes


def is_name(text: object) -> bool:
    """Whether `text` can be written as an identifier, inside a class too.

    Python turns `__name` inside a class into something else, and compares other scripts after
    normalising them.
    """
    if not isinstance(text, str) or not _NAME.match(text):
        return False
    return not keyword.iskeyword(text) and not text.startswith("__")


def free(wishes: Sequence[str], taken: Collection[str]) -> str:
    """The first wish that is not taken, or the last one with a number."""
    numbered = (f"{wishes[-1]}{count}" for count in range(2, len(taken) + 3))
    return next(name for name in (*wishes, *numbered) if name not in taken)


def one_line(text: str) -> str:
    """`text` for a comment or a docstring: on one line, and unable to end it."""
    return text if _PLAIN.match(text) else ascii(text).replace("\\", "/").replace('"', "'")


def parsed(source: str) -> ast.expr:
    """An expression that we wrote ourselves."""
    return ast.parse(source, mode="eval").body


def call(
    function: str | ast.expr,
    arguments: Iterable[ast.expr] = (),
    named: Mapping[str, ast.expr] | None = None,
) -> ast.Call:
    """`function(*arguments, **named)`; names that are no identifiers stand in a dict."""
    named = named or {}
    plain = [ast.keyword(name, value) for name, value in named.items() if is_name(name)]
    odd = {name: value for name, value in named.items() if not is_name(name)}
    if odd:
        keys: list[ast.expr | None] = [ast.Constant(name) for name in odd]
        plain.append(ast.keyword(None, ast.Dict(keys, list(odd.values()))))
    head = parsed(function) if isinstance(function, str) else function
    return ast.Call(head, list(arguments), plain)


def attribute(owner: ast.expr, name: str) -> ast.expr:
    """`owner.name`, or `getattr(owner, "name")` where the name is no identifier."""
    if is_name(name):
        return ast.Attribute(owner, name)
    return call("getattr", [owner, ast.Constant(name)])


def item(owner: ast.expr, index: ast.expr) -> ast.expr:
    """`owner[index]`."""
    return ast.Subscript(owner, index)


def written(tree: ast.AST) -> str:
    """The source of an expression or a statement, on one line."""
    return ast.unparse(ast.fix_missing_locations(tree))


def indented(lines: Iterable[str], by: int = 1) -> list[str]:
    """The lines, some levels further in."""
    return [f"{'    ' * by}{line}" if line else line for line in lines]


def docstring(first: str, *paragraphs: Sequence[str]) -> list[str]:
    """A docstring whose paragraphs are lines as they stand."""
    lines = [f'"""{first}']
    for paragraph in paragraphs:
        lines += ["", *paragraph]
    return [*lines, '"""'] if paragraphs else [f'{lines[0]}"""']


def finished(lines: Iterable[str]) -> str:
    """The text of a file in order, formatted. A name that no line can hold is excused by name."""
    text = "\n".join(lines).encode("ascii", "backslashreplace").decode() + "\n"
    compile(text, "the emitted file", "exec")
    text = _ruff("check", "--fix", "--quiet", "--select", "I,F401", text=text)
    text = _ruff("format", "--quiet", text=text)
    return "".join(
        f"{line}  # noqa: E501\n" if len(line) > WIDTH else f"{line}\n"
        for line in text.splitlines()
    )


def _ruff(*command: str, text: str) -> str:
    options = ("--isolated", "--no-cache", "--line-length", str(WIDTH), "--stdin-filename")
    run = subprocess.run(
        [find_ruff_bin(), *command, *options, "emitted.py", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    return run.stdout
