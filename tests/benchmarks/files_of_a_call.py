"""How many of our files a call passes through: what somebody who follows it has to open.

A file counts where one of its functions ran during the command. Each command runs twice and the
second run is counted: what runs while a module is imported is no part of the way.

Another checkout is measured with `PYTHONPATH=CHECKOUT python tests/benchmarks/files_of_a_call.py`,
for which this file takes nothing from its neighbours.
"""

import contextlib
import inspect
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import groupfx
from groupfx.cli.main import run as run_command

ROOT = Path(groupfx.__file__).resolve().parents[1]
OURS = ("groupfx", "passes")


def small_model() -> nn.Module:
    """Prime numbers of channels: grouped with its BatchNorm, depthwise, dense."""
    return nn.Sequential(
        nn.Conv2d(6, 15, 3, groups=3, padding=1),
        nn.BatchNorm2d(15),
        nn.ReLU(),
        nn.Conv2d(15, 15, 3, groups=15, bias=False),
        nn.Conv2d(15, 7, 1),
    )


def files_of(argv: Sequence[str]) -> set[Path]:
    """Our files in which a function ran during the command, relative to the checkout."""
    names: set[str] = set()

    def seen(frame: FrameType, event: str, argument: object) -> None:
        # A module or a class body is not optimised: it is imported, not called.
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            names.add(frame.f_code.co_filename)

    for profile in (None, seen):
        sys.setprofile(profile)
        try:
            code = run_command(argv)
        finally:
            sys.setprofile(None)
        if code:
            raise RuntimeError(f"{' '.join(argv)}: exit code {code}")
    paths = (Path(name).resolve() for name in names)
    inside = (path.relative_to(ROOT) for path in paths if path.is_relative_to(ROOT))
    return {path for path in inside if path.parts[0] in OURS}


def run(console: Console, quick: bool) -> None:
    """Print the number of files of each call, and in which folders they are."""
    table = Table(title="our files that a call passes through", title_justify="left")
    for column in ("call", "files", "in"):
        table.add_column(column, justify="right" if column == "files" else "left")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        torch.save(small_model(), "model.pt")
        shape = ["--input-shape", "2,6,9,11", "--quiet"]
        run_command(["export", "model.pt", "-o", "model.onnx", *shape])
        for call in (["rewrite", "model.pt"], ["validate", "model.pt", "model.onnx"]):
            files = files_of([*call, *shape])
            rooms = Counter("/".join(file.parts[:2]) for file in files if len(file.parts) > 2)
            rooms.update("/".join(file.parts[:1]) for file in files if len(file.parts) == 2)
            parts = ", ".join(f"{room} {number}" for room, number in sorted(rooms.items()))
            table.add_row(" ".join(call), str(len(files)), parts)
    console.print(table)


if __name__ == "__main__":
    run(Console(), quick=False)
