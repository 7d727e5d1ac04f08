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
    """Print the table: the trace is the one that looks for silent changes (two passes of fx)."""
    model = Chain(30 if quick else BLOCKS).eval()
    x = torch.randn(2, 32, 28, 28)

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
    for round_ in range(2 if quick else 8):
        for name, work in sides.items():
            taken = timed(work)
            if round_:
                times[name].append(taken)
    table = Table(title=f"inspect, {len(model.parts) + 2} nodes", title_justify="left")
    table.add_column("")
    table.add_column("median s", justify="right")
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        table.add_row(name, f"{median:.3f}")
    own = medians["groupfx.find"] / (medians["trace (both modes)"] + medians["one forward"])
    plain = medians["groupfx.find"] / (medians["torch.fx.symbolic_trace"] + medians["one forward"])
    console.print(
        table,
        f"find / (trace + forward): {own:.2f}; with torch's own single trace: {plain:.2f}\n",
    )
