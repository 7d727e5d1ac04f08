"""Time of the rewrite itself, without tracing, verification and saving: it must grow linearly."""

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from groupfx.passes import SplitGroupedConv
from groupfx.rewriting import run_pass
from groupfx.running.inputs import ExampleInputs
from groupfx.state.map import Rows
from groupfx.tracing import open_model

GROUPS = (64, 256, 1024, 4096)
LENGTHS = (10, 100, 1000)


def one_conv(groups: int) -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(nn.Conv2d(2 * groups, 2 * groups, 3, groups=groups)), (2, 2 * groups, 5, 7)


def with_batchnorm(groups: int) -> tuple[nn.Module, tuple[int, ...]]:
    conv, shape = one_conv(groups)
    return nn.Sequential(*conv, nn.BatchNorm2d(2 * groups)), shape


def chain(length: int) -> tuple[nn.Module, tuple[int, ...]]:
    convs = [nn.Conv2d(8, 8, 3, groups=4, padding=1) for _ in range(length)]
    return nn.Sequential(*convs), (2, 8, 5, 7)


def seconds(model: nn.Module, shape: tuple[int, ...]) -> tuple[float, int]:
    """Seconds of one rewrite, from the opened program to the compiled graph, and its branches."""
    program = open_model(model, ExampleInputs.of(torch.randn(shape)))
    entries = {key: Rows(key) for key in program.result.state_dict()}
    start = time.perf_counter()
    result = run_pass(SplitGroupedConv(), program, entries)
    return time.perf_counter() - start, sum(site.branches for site in result.sites)


def measure(
    console: Console,
    title: str,
    make: Callable[[int], tuple[nn.Module, tuple[int, ...]]],
    sizes: tuple[int, ...],
    rounds: int,
) -> None:
    models = {size: make(size) for size in sizes}
    times: dict[int, list[float]] = {size: [] for size in sizes}
    branches = {}
    for round_ in range(rounds + 1):
        for size, (model, shape) in models.items():
            taken, branches[size] = seconds(model, shape)
            if round_:
                times[size].append(taken)
    table = Table(title=title, title_justify="left")
    for column in ("size", "branches", "median s", "µs a branch", "of the smallest"):
        table.add_column(column, justify="right")
    each = {size: statistics.median(times[size]) / branches[size] for size in sizes}
    for size in sizes:
        row = (size, branches[size], f"{statistics.median(times[size]):.3f}")
        table.add_row(
            *map(str, row), f"{each[size] * 1e6:.0f}", f"{each[size] / each[sizes[0]]:.2f}"
        )
    spread = max(each.values()) / min(each.values())
    console.print(table, f"time a branch, largest to smallest: {spread:.2f}\n")


def run(console: Console, quick: bool) -> None:
    """Print the three tables."""
    rounds = 1 if quick else 9
    groups, lengths = (GROUPS[:2], LENGTHS[:2]) if quick else (GROUPS, LENGTHS)
    measure(console, "one conv, by groups", one_conv, groups, rounds)
    measure(console, "one conv with BatchNorm, by groups", with_batchnorm, groups, rounds)
    measure(console, "a chain of convs with 4 groups, by length", chain, lengths, rounds)
