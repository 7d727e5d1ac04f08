"""Time of freezing itself, without tracing, verification and saving: linear in the weights."""

import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from groupfx.nn import Flgc2d
from groupfx.passes import FreezeLearnedGroups
from groupfx.rewriting import run_pass
from groupfx.running.inputs import ExampleInputs
from groupfx.state.map import Rows
from groupfx.tracing import open_model

LENGTHS = (10, 100, 1000)
WIDTHS = (512, 1024, 2048, 4096)
GROUPS = 64


def chain(length: int) -> nn.Module:
    """Layers of 64 channels in 8 groups."""
    return nn.Sequential(*(Flgc2d(64, 64, 1, group_num=8) for _ in range(length)))


def one(width: int) -> nn.Module:
    """One pointwise layer, as many inputs as outputs, in 64 groups."""
    return nn.Sequential(Flgc2d(width, width, 1, group_num=GROUPS))


def seconds(model: nn.Module, channels: int, form: str) -> float:
    """Seconds of one freeze, from the opened program to the compiled graph."""
    program = open_model(model, ExampleInputs.of(torch.randn(2, channels, 3, 2)))
    entries = {key: Rows(key) for key in program.result.state_dict()}
    start = time.perf_counter()
    result = run_pass(FreezeLearnedGroups(form=form), program, entries)  # type: ignore[arg-type]
    taken = time.perf_counter() - start
    assert len(result.sites) == len(model)  # type: ignore[arg-type]
    return taken


def measure(
    console: Console, title: str, models: dict[int, tuple[nn.Module, int]], rounds: int
) -> None:
    forms = ("auto", "padded", "dense")
    times: dict[tuple[int, str], list[float]] = {}
    for round_ in range(rounds + 1):
        for size, (model, channels) in models.items():
            for form in forms:
                taken = seconds(model, channels, form)
                if round_:
                    times.setdefault((size, form), []).append(taken)
    table = Table(title=title, title_justify="left")
    for column in ("size", "weights", *(f"{form} s (ns a weight)" for form in forms)):
        table.add_column(column, justify="right")
    for size, (model, _) in models.items():
        weights = sum(p.numel() for n, p in model.named_parameters() if n.endswith("weight"))
        medians = [statistics.median(times[size, form]) for form in forms]
        cells = [f"{median:.2f} ({median / weights * 1e9:,.0f})" for median in medians]
        table.add_row(f"{size:,}", f"{weights:,}", *cells)
    console.print(table)


def run(console: Console, quick: bool) -> None:
    """Print the two tables."""
    torch.manual_seed(3)
    lengths, widths = (LENGTHS[:2], WIDTHS[:1]) if quick else (LENGTHS, WIDTHS)
    rounds = 1 if quick else 3
    chains = {length: (chain(length), 64) for length in lengths}
    measure(console, "freezing a chain of layers 64 -> 64, by length", chains, rounds)
    singles = {width: (one(width), width) for width in widths}
    measure(console, f"freezing one pointwise layer, {GROUPS} groups, by width", singles, rounds)
