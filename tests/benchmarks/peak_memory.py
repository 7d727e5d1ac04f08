"""Peak memory of a rewrite, in multiples of the model's weights, each in a process of its own.

Two models of about 400 MB: one of the shape of ResNeXt-101 64x4d (some more blocks), and twelve
large grouped convolutions, each of which is a twelfth of all weights: the check holds float64
copies of one site at a time, so the largest site counts.
"""

import json
import resource
import subprocess
import sys

from rich.console import Console
from rich.table import Table

MODELS = ("resnext", "twelve-convs")
LIMITS = {"nothing": "", "not verified": "2.2", "verified": "3.0"}


def peak(model_name: str, quick: bool, what: str) -> None:
    """Print, as JSON, the bytes of the weights and the growth of the peak above the idle process.

    Runs in a process of its own: the peak of a process never falls.
    """
    import torch

    import groupfx
    from groupfx.passes import SplitGroupedConv
    from groupfx.rewriting import Pipeline

    # What is loaded by the first rewrite of a process is no part of the model.
    groupfx.rewrite(_twelve_convs(16, 1), torch.randn(2, 16, 9, 9))
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if model_name == "resnext":
        big, x = _resnext(3 if quick else 30), torch.randn(2, 3, 32, 32)
    else:
        channels = 256 if quick else 912
        big, x = _twelve_convs(channels, 12), torch.randn(2, channels, 9, 9)
    weights = sum(p.numel() * p.element_size() for p in big.parameters())
    if what != "nothing":
        Pipeline([SplitGroupedConv()])(big, x, verify=what == "verified")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    json.dump({"weights": weights, "peak": most - idle}, sys.stdout)


def _twelve_convs(channels: int, layers: int):  # type: ignore[no-untyped-def]
    from torch import nn

    convs = [nn.Conv2d(channels, channels, 9, groups=8, padding=4) for _ in range(layers)]
    return nn.Sequential(*convs).eval()


def _resnext(deep: int):  # type: ignore[no-untyped-def]
    from torch import nn

    parts: list[nn.Module] = [nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)]
    channels = 64
    for blocks, width in ((3, 256), (4, 512), (deep, 1024), (3, 2048)):
        for _ in range(blocks):
            parts += [nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            parts += [nn.Conv2d(width, width, 3, padding=1, groups=64, bias=False)]
            parts += [nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        parts += [nn.Conv2d(channels, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width)]
        channels = 2 * width
    return nn.Sequential(*parts).eval()


def measured(model_name: str, quick: bool, what: str) -> dict[str, int]:
    call = f"peak({model_name!r}, {quick}, {what!r})"
    command = f"from tests.benchmarks.peak_memory import peak; {call}"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def run(console: Console, quick: bool) -> None:
    """Print the table."""
    table = Table(title="peak memory, the model itself included", title_justify="left")
    for column in ("model", "rewrite", "weights MB", "peak MB", "peak / weights", "at most"):
        table.add_column(column, justify="right")
    for model_name in MODELS:
        for what, limit in LIMITS.items():
            found = measured(model_name, quick, what)
            ratio = found["peak"] / found["weights"]
            sizes = (f"{found['weights'] / 1e6:.0f}", f"{found['peak'] / 1e6:.0f}")
            table.add_row(model_name, what, *sizes, f"{ratio:.2f}", limit)
    console.print(table)
