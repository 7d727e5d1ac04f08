"""What `groupfx.find` costs on a model of 2,500 nodes, against one trace and one forward."""

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import groupfx
from groupfx.tracing.tracer import trace

BLOCKS = 833
SIZES = (28, 112)


class Chain(nn.Module):
    """Three nodes a block: a grouped convolution, a BatchNorm and a ReLU."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(blocks):
            parts += [nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.BatchNorm2d(32), nn.ReLU()]
        self.parts = nn.Sequential(*parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts(x)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run(console: Console, quick: bool) -> None:
    """Print the tables: the trace is the one that looks for silent changes (two passes of fx)."""
    model = Chain(30 if quick else BLOCKS).eval()
    for size in (28,) if quick else SIZES:
        measure(console, model, torch.randn(2, 32, size, size), 2 if quick else 6)


def measure(console: Console, model: Chain, x: torch.Tensor, rounds: int) -> None:
    def forward() -> None:
        with torch.no_grad():
            model(x)

    sides: dict[str, Callable[[], object]] = {
        "torch.fx.symbolic_trace": lambda: torch.fx.symbolic_trace(model),
        "trace (both modes)": lambda: trace(model, frozenset({"x"})),
        "one forward": forward,
        "groupfx.find": lambda: groupfx.find(model, (x,)),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds):
        for name, work in sides.items():
            taken = timed(work)
            if round_:
                times[name].append(taken)
    shape = list(x.shape)
    title = f"inspect, {len(model.parts) + 2} nodes, input {shape}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("median s", justify="right")
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        table.add_row(name, f"{median:.3f}")
    own = medians["groupfx.find"] / (medians["trace (both modes)"] + medians["one forward"])
    console.print(table, f"find / (trace + forward): {own:.2f}\n")
