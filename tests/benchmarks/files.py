"""Saving and loading a split model: our own file against `.pt2`, side by side in one process."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from groupfx import load
from groupfx.passes import SplitGroupedConv
from groupfx.rewriting import Pipeline, Result


def resnext_like(
    blocks: tuple[int, ...] = (3, 4, 6, 3), groups: int = 32
) -> tuple[nn.Module, torch.Tensor]:
    """As many weights and groups as ResNeXt-50 32x4d: 16 blocks of 32 groups of 4 and more."""
    widths = [groups * 4 * 2**stage for stage in range(len(blocks))]
    stages = zip(blocks, widths, (256, 512, 1024, 2048), strict=True)
    parts: list[nn.Module] = [nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)]
    channels = 64
    for depth, width, out in stages:
        for _ in range(depth):
            parts += [nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            parts += [nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False)]
            parts += [nn.BatchNorm2d(width), nn.ReLU()]
            parts += [nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
    return nn.Sequential(*parts).eval(), torch.randn(2, 3, 32, 32)


def one_conv(groups: int) -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Conv2d(2 * groups, 2 * groups, 3, groups=groups)).eval(), torch.randn(
        2, 2 * groups, 5, 7
    )


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(table: Table, name: str, result: Result, x: torch.Tensor, rounds: int) -> None:
    started = time.perf_counter()
    exported = torch.export.export(result.model, (x,))
    exporting = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path, other = Path(folder) / "model.groupfx.pt", Path(folder) / "model.pt2"

        def load_pt2() -> None:
            torch.export.load(other).module()

        sides: dict[str, Callable[[], object]] = {
            "save": lambda: result.save(path, overwrite=True),
            "save .pt2": lambda: torch.export.save(exported, other),
            "load": lambda: load(path),
            "load .pt2": load_pt2,
        }
        times: dict[str, list[float]] = {side: [] for side in sides}
        for round_ in range(rounds + 1):
            for side, work in sides.items():
                taken = timed(work)
                if round_:
                    times[side].append(taken)
    median = {side: statistics.median(values) for side, values in times.items()}
    ours, theirs = median["save"] + median["load"], median["save .pt2"] + median["load .pt2"]
    table.add_row(name, *(f"{median[side]:.2f}" for side in sides), f"{ours / theirs:.3f}")
    table.add_row("", "", "", "", "", f"(export itself {exporting:.1f} s)")


def run(console: Console, quick: bool) -> None:
    """Print the table; the export that a .pt2 needs first is not counted."""
    table = Table(title="seconds to save and to load", title_justify="left")
    for column in ("", "save", "save .pt2", "load", "load .pt2", "ours / .pt2"):
        table.add_column(column, justify="right")
    models = {"one conv, 64 branches": one_conv(64)}
    if not quick:
        models = {"ResNeXt-50-sized, 512": resnext_like(), "one conv, 4096": one_conv(4096)}
    for name, (model, x) in models.items():
        result = Pipeline([SplitGroupedConv()])(model, x, verify=False)
        measure(table, name, result, x, 1 if quick else 3)
    console.print(table)
