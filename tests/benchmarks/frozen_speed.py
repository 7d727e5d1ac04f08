"""Eager PyTorch on one thread: the trained layer, which decides its mask anew in each forward,
against each frozen form and against a plain dense convolution with the mask folded in.

Ratios are times by that of the trained layer: below 1 is faster.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from groupfx.nn import Flgc2d
from groupfx.passes import FreezeLearnedGroups
from groupfx.rewriting import Pipeline

# inputs, outputs, kernel, image size
SHAPES = ((256, 256, 3, 14), (384, 64, 1, 14), (1024, 1024, 1, 14))
GROUPS = (2, 4, 8)
FORMS = ("dense", "bucketed", "padded", "split")


def trained(inputs: int, outputs: int, kernel: int, groups: int, equal: bool) -> Flgc2d:
    """A layer whose channels are in random groups: unequal ones as they fall, or equal ones."""
    layer = Flgc2d(inputs, outputs, kernel, padding=kernel // 2, group_num=groups)
    if not equal:
        return layer.eval()
    maps = (layer.in_channels_in_group_assignment_map, layer.out_channels_in_group_assignment_map)
    for table in maps:
        channels = torch.randperm(len(table))
        with torch.no_grad():
            table[channels, torch.arange(len(table)) % groups] = 9
    return layer.eval()


def sides(layer: Flgc2d, x: Tensor) -> dict[str, Callable[[Tensor], Any]]:
    """The trained layer and its frozen forms, in inference."""
    model = nn.Sequential(layer)
    found: dict[str, Callable[[Tensor], Any]] = {"trained": model}
    for form in FORMS:
        pass_ = FreezeLearnedGroups(form=form)  # type: ignore[arg-type]
        found[form] = Pipeline([pass_])(model, x, verify=False).model
    return found


def medians(works: dict[str, Callable[[Tensor], Any]], x: Tensor, rounds: int) -> dict[str, float]:
    """Median seconds of one call; the sides take turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    with torch.inference_mode():
        for round_ in range(rounds + 3):
            for name, work in works.items():
                start = time.perf_counter()
                work(x)
                if round_ >= 3:
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def run(console: Console, quick: bool) -> None:
    """Print the table of ratios."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        console.print(_table(5 if quick else 60, GROUPS[:1] if quick else GROUPS))
    finally:
        torch.set_num_threads(threads)


def _table(rounds: int, numbers: tuple[int, ...]) -> Table:
    torch.manual_seed(3)
    table = Table(title="time by that of the trained layer, one thread", title_justify="left")
    for column in ("layer", "groups", "trained ms", *FORMS):
        table.add_column(column, justify="right")
    for inputs, outputs, kernel, size in SHAPES:
        for groups in numbers:
            for equal in (False, True):
                layer = trained(inputs, outputs, kernel, groups, equal)
                x = torch.randn(1, inputs, size, size)
                found = medians(sides(layer, x), x, rounds)
                base = found["trained"]
                table.add_row(
                    f"{kernel}x{kernel} {inputs} -> {outputs}, {size}x{size}",
                    f"{groups} {'equal' if equal else 'unequal'}",
                    f"{base * 1e3:.2f}",
                    *(f"{found[form] / base:.2f}" for form in FORMS),
                )
    return table
