"""The code blocks of a page: what is run of them, and what they are to print.

    python      run in order, in one namespace a page; a block titled `prints` behind it is stdout
    console     each line behind `$ ` is a command, what follows it its stdout
    text, none  nothing to run

`...` in expected output stands for anything, as in doctest. A block that is not run has the reason
in front of it: <!-- not run: it needs a network -->.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from groupfx.cli import main

RUN = ("python", "console")
SILENT = ("", "text")
_PRINTS = 'title="prints"'
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<info>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_CHECKER = doctest.OutputChecker()
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class CodeBlock:
    """One block; `prints` is what stdout is to be, `reason` why it is not run."""

    language: str
    code: str
    line: int
    prints: str | None = None
    reason: str | None = None


def blocks(text: str) -> list[CodeBlock]:
    """The blocks of a page in order, without those that only tell what another one prints."""
    found: list[CodeBlock] = []
    for match in _BLOCK.finditer(text):
        language, _, rest = match["info"].partition(" ")
        line = text.count("\n", 0, match.start("info")) + 1
        if rest.strip() == _PRINTS:
            last = found.pop()
            found.append(CodeBlock(last.language, last.code, last.line, match["code"], last.reason))
            continue
        found.append(CodeBlock(language, match["code"], line, None, match["reason"]))
    return found


def commands(code: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with what it is to print."""
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def run_page(text: str, name: str) -> int:
    """Run every block of a page in this folder; how many were. Fails where one prints otherwise."""
    namespace: dict[str, Any] = {"__name__": f"page_{Path(name).stem}"}
    count = 0
    for block in blocks(text):
        if block.reason is not None or block.language in SILENT:
            continue
        place = f"{name}:{block.line}"
        assert block.language in RUN, (
            f"{place}: who runs {block.language}? Mark it, or call it text"
        )
        count += 1
        if block.language == "python":
            _compare(place, block.prints, _run_python(block, place, namespace))
            continue
        for command, output in commands(block.code):
            _compare(f"{place}: {command}", output, _run_command(command))
    return count


def _run_python(block: CodeBlock, place: str, namespace: dict[str, Any]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.code, place, "exec"), namespace)
    return printed.getvalue()


def _run_command(command: str) -> str:
    """What `groupfx ...` prints, in this process; with `; echo $?` its exit code too."""
    command, told, _ = command.partition("; echo $?")
    words = shlex.split(command)
    assert words[0] == "groupfx", f"only groupfx is run here: mark {command!r}"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as left:
        main(words[1:])
    if told:
        return f"{printed.getvalue()}{left.value.code}\n"
    assert left.value.code == 0, f"{command}: exit code {left.value.code}"
    return printed.getvalue()


def _compare(place: str, expected: str | None, printed: str) -> None:
    wanted = expected or ""
    assert _CHECKER.check_output(wanted, printed, _FLAGS), (
        f"{place} prints\n{printed}instead of\n{wanted}"
    )
