"""Peak memory of a rewrite, in multiples of the model's weights, each in a process of its own."""

import json
import multiprocessing
import resource
import sys

from rich.console import Console
from rich.table import Table

# 12 grouped convolutions of 1024 channels, 8 groups, 9x9: 33 MiB each.
CHANNELS, GROUPS, KERNEL, LAYERS = 1024, 8, 9, 12


def peak(quick: bool, what: str) -> None:
    """Print, as JSON, the bytes of the weights and the growth of the peak above the idle process.

    Runs in a process of its own: the peak of a process never falls.
    """
    import torch
    from torch import nn

    import groupfx
    from groupfx.passes import SplitGroupedConv
    from groupfx.rewriting import Pipeline

    def model(channels: int, layers: int) -> nn.Module:
        convs = [
            nn.Conv2d(channels, channels, KERNEL, groups=GROUPS, padding=KERNEL // 2)
            for _ in range(layers)
        ]
        return nn.Sequential(*convs).eval()

    # What is loaded by the first rewrite of a process is no part of the model.
    groupfx.rewrite(model(16, 1), torch.randn(2, 16, 9, 9))
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    channels = CHANNELS // 2 if quick else CHANNELS
    big = model(channels, LAYERS)
    weights = sum(p.numel() * p.element_size() for p in big.parameters())
    x = torch.randn(2, channels, 9, 9)
    if what != "nothing":
        Pipeline([SplitGroupedConv()])(big, x, verify=what == "verified")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    json.dump({"weights": weights, "peak": most - idle}, sys.stdout)


def measured(quick: bool, what: str) -> dict[str, int]:
    import subprocess

    command = f"from tests.benchmarks.peak_memory import peak; peak({quick}, {what!r})"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def run(console: Console, quick: bool) -> None:
    """Print the table."""
    table = Table(title="peak memory, the model itself included", title_justify="left")
    for column in ("", "weights MB", "peak MB", "peak / weights", "at most"):
        table.add_column(column, justify="right")
    limits = {"nothing": "", "not verified": "2.2", "verified": "3.0"}
    for what, limit in limits.items():
        found = measured(quick, what)
        ratio = found["peak"] / found["weights"]
        sizes = (f"{found['weights'] / 1e6:.0f}", f"{found['peak'] / 1e6:.0f}")
        table.add_row(what, *sizes, f"{ratio:.2f}", limit)
    console.print(table, f"{multiprocessing.cpu_count()} cores\n")
