"""Where output goes: data to stdout, everything else to stderr, and calm while libraries work."""

import contextlib
import logging
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from ..input.files import STDOUT
from ..input.options import Told
from .numbers import size
from .table import Cell, Table, printable, table_lines

Advance = Callable[[int, int], None]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """The reader left (`| head`): be silent, and finish the work."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def console(file: IO[str]) -> Console:
    """A console that prints text as it is; escape codes only at a terminal and without NO_COLOR."""
    return _Console(
        file=file,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


class Screen:
    """What a command says, and where.

    `quiet` leaves errors only. `data` is False where stdout belongs to something else, such as
    `--json -`: then nothing else is printed there.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False, data: bool = True) -> None:
        self.verbose = verbose and not quiet
        self._quiet = quiet
        self._data = data and not quiet
        self._warned: set[str] = set()
        self._out = console(sys.stdout)
        self._err = console(sys.stderr)

    @classmethod
    def of(cls, told: Told, *files: Path | None) -> "Screen":
        """As the options of a command want it, which writes these files."""
        data = STDOUT not in (told.json, *files)
        return cls(quiet=told.quiet, verbose=told.verbose, data=data)

    @property
    def whole(self) -> bool:
        """Whether long lists are shown whole: it was asked for, or no person reads them."""
        return self.verbose or not self.terminal

    @property
    def terminal(self) -> bool:
        """Whether a person reads stdout."""
        return self._out.file.isatty()

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None where stdout is none, and lines are never broken."""
        return self._out.width if self.terminal else None

    def line(self, text: Cell = "") -> None:
        """One line of data."""
        if self._data:
            self._out.print(printable(text) if isinstance(text, str) else text)

    def paragraph(self, text: str, indent: str = "") -> None:
        """Text of data, broken into lines at a terminal."""
        for line in self._wrapped(text, indent):
            self.line(line)

    def table(self, *tables: Table) -> None:
        """Aligned rows of data, in the widest form that fits; see `table_lines`."""
        for line in table_lines(tables, self.width):
            self.line(line)

    def note(self, text: str) -> None:
        """A line that should be read even where stdout belongs to something else."""
        if self._data:
            self.line(text)
        elif not self._quiet:
            self._err.print(printable(text))

    def wrote(self, path: Path) -> None:
        """A note that there is this file now, and how large it is."""
        self.note(f"Wrote {path} ({size(path.stat().st_size)}).")

    def log(self, text: str) -> None:
        """A line for those who asked for more, on stderr."""
        if self.verbose:
            self._err.print(Text(printable(text), style="dim"))

    def warn(self, text: str) -> None:
        """A line on stderr that starts with `groupfx: warning`; the same is said once."""
        if not self._quiet and text not in self._warned:
            self._warned.add(text)
            self._err.print(Text.assemble(("groupfx: warning: ", "yellow"), printable(text)))

    @contextlib.contextmanager
    def work(self, text: str, what: str = "sites") -> Iterator[Advance]:
        """Show at a terminal that something goes on; keep libraries and models off the screen.

        Gives a function to call with how much is done and of how much: from then on there is a bar.

        What they print goes to stderr, and their warnings are shown with `--verbose` only: a user
        of the command line cannot act on them.
        """
        shown = self._err.file.isatty() and not self._quiet and not self._err.is_dumb_terminal
        columns = (
            SpinnerColumn("line"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[done]}"),
            TimeElapsedColumn(),
        )
        progress = Progress(
            *columns,
            console=self._err,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=shown,
            disable=not shown,
        )
        with progress, contextlib.redirect_stdout(sys.stderr), self._calm():
            task = progress.add_task(text, total=None, done="")
            started = time.perf_counter()

            def advance(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total, done=f"{done} of {total} {what}")

            yield advance
        self.log(f"{text}: {time.perf_counter() - started:.1f} s")

    @contextlib.contextmanager
    def _calm(self) -> Iterator[None]:
        before = logging.root.manager.disable
        with warnings.catch_warnings():
            if self.verbose:
                warnings.simplefilter("default")
                warnings.showwarning = self._show_warning
            else:
                warnings.simplefilter("ignore")
                logging.disable(max(before, logging.WARNING))
            try:
                yield
            finally:
                logging.disable(before)

    def _show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        self.warn(f"{category.__name__}: {message}")

    def _wrapped(self, text: str, indent: str) -> list[str]:
        if self.width is None:
            return [f"{indent}{text}"]
        return textwrap.wrap(
            text,
            width=max(self.width - 1, 20),
            initial_indent=indent,
            subsequent_indent=f"{indent}  " if indent else "",
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
