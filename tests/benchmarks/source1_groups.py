"""What groups and a channel shuffle cost in eager PyTorch, as ratios.

    python -m tests.benchmarks source1-groups

Two tables: a 1x1 convolution of 10000 -> 2000 channels on a [2000, 10000, 1, 1] input with 1, 2, 5
and 10 groups, grouped and in split form; and a channel shuffle of 600 channels in 10 groups on
50 x 50 pixels, in three ways. Candidates take turns, so that a slow moment of the machine hits all
of them; each figure is the median over the rounds, after one round that does not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from groupfx.nn import ChannelGather, ChannelShuffle
from groupfx.passes import SplitGroupedConv
from groupfx.plan.channels import shuffle_permutation
from groupfx.rewriting import Pipeline

GROUPS = (1, 2, 5, 10)
# Seconds that the source reports for these groups, on another machine.
SOURCE_SECONDS = {1: 6.36, 2: 3.56, 5: 0.91, 10: 0.81}
SHUFFLE_SHAPE = (1000, 600, 50, 50)
SHUFFLE_GROUPS = 10

Candidates = Mapping[str, Callable[[Tensor], Tensor]]


def split(conv: nn.Conv2d, x: Tensor) -> nn.Module:
    """The split form, as groupfx makes it. Of a `groups=1` convolution: itself."""
    return Pipeline([SplitGroupedConv()])(conv, x[:2], verify=False).model


@dataclass(frozen=True)
class Timing:
    """Median seconds of one candidate, and the spread of its rounds."""

    name: str
    seconds: float
    fastest: float
    slowest: float


def timed(candidates: Candidates, x: Tensor, rounds: int) -> list[Timing]:
    """Run all candidates in turns; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, function in candidates.items():
            start = time.perf_counter()
            function(x)
            seconds[name].append(time.perf_counter() - start)
    return [
        Timing(name, statistics.median(values[1:]), min(values[1:]), max(values[1:]))
        for name, values in seconds.items()
    ]


def require_same(candidates: Candidates, x: Tensor, tolerance: float) -> None:
    """All candidates compute the same, or the timing would compare nothing."""
    (_, reference), *others = ((name, function(x)) for name, function in candidates.items())
    for name, output in others:
        error = (output - reference).abs().max() / reference.abs().max()
        if not error <= tolerance:
            raise SystemExit(f"{name} computes something else: relative error {error:.1e}")


def convolutions(batch: int, in_channels: int, out_channels: int) -> tuple[Tensor, Candidates]:
    candidates: dict[str, Callable[[Tensor], Tensor]] = {}
    x = torch.randn(batch, in_channels, 1, 1)
    for groups in GROUPS:
        grouped = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)
        forms: dict[str, Callable[[Tensor], Tensor]] = {f"groups={groups}": grouped}
        if groups > 1:
            forms[f"groups={groups}, split"] = split(grouped, x)
            require_same(forms, x, tolerance=1e-5)
        candidates.update(forms)
    return x, candidates


def shuffles(shape: tuple[int, ...], groups: int) -> tuple[Tensor, Candidates]:
    batch, channels, height, width = shape
    x = torch.randn(shape)

    def by_view(x: Tensor) -> Tensor:
        grouped = x.view(batch, groups, channels // groups, height, width)
        return grouped.transpose(1, 2).reshape(batch, channels, height, width)

    gather = ChannelGather(shuffle_permutation(channels, groups))
    candidates: dict[str, Callable[[Tensor], Tensor]] = {
        "view, transpose, reshape": by_view,
        "ChannelShuffle": ChannelShuffle(groups),
        "ChannelGather (index_select)": gather,
        "list index x[:, [...]]": lambda x: x[:, list(gather.channels)],
    }
    require_same(candidates, x, tolerance=0.0)
    return x, candidates


def show(console: Console, title: str, timings: list[Timing], source: Mapping[str, float]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("form")
    for heading in ("median ms", "fastest", "slowest", "ratio", *(["source"] if source else [])):
        table.add_column(heading, justify="right")
    first = timings[0].seconds
    for timing in timings:
        values = (timing.seconds, timing.fastest, timing.slowest)
        row = [timing.name, *(f"{1e3 * value:.1f}" for value in values)]
        row.append(f"{timing.seconds / first:.2f}")
        if source:
            row.append(f"{source[timing.name]:.2f}" if timing.name in source else "")
        table.add_row(*row)
    console.print(table)


def shuffle_shape(megabytes: int) -> tuple[int, int, int, int]:
    """The source's shape, with as many samples as fit into `megabytes` of float32."""
    batch, channels, height, width = SHUFFLE_SHAPE
    fits = megabytes * 2**20 // (4 * channels * height * width)
    return max(1, min(batch, fits)), channels, height, width


def run(console: Console, quick: bool, rounds: int = 7, megabytes: int = 256) -> None:
    """Print the two tables."""
    torch.manual_seed(0)
    batch, inputs, outputs = (200, 1000, 200) if quick else (2000, 10000, 2000)
    shape = shuffle_shape(16 if quick else megabytes)
    with torch.inference_mode():
        x, candidates = convolutions(batch, inputs, outputs)
        title = f"1x1 convolution {inputs} -> {outputs} on {list(x.shape)}"
        source = {f"groups={g}": s / SOURCE_SECONDS[1] for g, s in SOURCE_SECONDS.items()}
        show(console, title, timed(candidates, x, rounds), {} if quick else source)
        x, candidates = shuffles(shape, SHUFFLE_GROUPS)
        title = f"channel shuffle in {SHUFFLE_GROUPS} groups of {list(shape)}"
        show(console, title, timed(candidates, x, rounds), {})
