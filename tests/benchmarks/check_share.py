"""Share of the check in the time of a rewrite, and of its parts, in CPU seconds.

Two networks of the shape of ResNeXt-50 (16 blocks in four stages), one narrow and one of its real
width and 32 groups; each is rewritten with and without the check, in turns. The parts come from
the runs with the check: what is outside the sites, the sites, what is seen at the end, and the
model end to end.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from groupfx.passes import SplitGroupedConv
from groupfx.rewriting import Pipeline, checking
from groupfx.rewriting.outside import Outside

_BLOCKS = (3, 4, 6, 3)
_PARTS: dict[str, tuple[Any, str]] = {
    "outside": (Outside, "changes"),
    "sites": (checking, "compare_regions"),
    "observable": (checking, "_observable"),
    "end to end": (checking, "compare_models"),
}


class _Block(nn.Module):
    """A residual block with a grouped convolution in its middle."""

    def __init__(self, channels: int, width: int, groups: int, stride: int) -> None:
        super().__init__()
        wide = 2 * width
        self.reduce, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.expand, self.bn3 = nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.skip = nn.Conv2d(channels, wide, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.reduce(x)))
        y = torch.relu(self.bn2(self.conv(y)))
        return torch.relu(self.bn3(self.expand(y)) + self.skip(x))


def resnext(width: int, groups: int) -> nn.Module:
    """Four stages, of `width`, 2, 4 and 8 times `width` channels in the grouped convolutions."""
    blocks: list[nn.Module] = [nn.Conv2d(3, width // 2, 7, stride=2, padding=3)]
    channels = width // 2
    for stage, count in enumerate(_BLOCKS):
        for number in range(count):
            inner = width * 2**stage
            blocks.append(_Block(channels, inner, groups, 2 if stage and not number else 1))
            channels = 2 * inner
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


@contextmanager
def _timed(spent: dict[str, float]) -> Iterator[None]:
    """Add up the CPU seconds of each part."""
    kept = {part: getattr(place, name) for part, (place, name) in _PARTS.items()}

    def measured(part: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return kept[part](*args, **options)
            finally:
                spent[part] += time.process_time() - start

        return call

    try:
        for part, (place, name) in _PARTS.items():
            setattr(place, name, measured(part))
        yield
    finally:
        for part, (place, name) in _PARTS.items():
            setattr(place, name, kept[part])


def once(model: nn.Module, x: torch.Tensor, *, verify: bool) -> dict[str, float]:
    """CPU seconds of one rewrite, tracing included, and of each part of its check."""
    spent = dict.fromkeys(_PARTS, 0.0)
    with _timed(spent):
        start = time.process_time()
        Pipeline([SplitGroupedConv()])(model, x, verify=verify)
        return {"rewrite": time.process_time() - start, **spent}


def run(console: Console, quick: bool) -> None:
    """Print the table."""
    cases = {"narrow": (32, 8, 64), "real width": (128, 32, 64)}
    if quick:
        del cases["real width"]
    once(resnext(8, 2).eval(), torch.randn(1, 3, 32, 32), verify=True)
    table = Table(title="the check in a rewrite, CPU seconds", title_justify="left")
    for column in ("model", "unchecked", "checked", "share", *_PARTS):
        table.add_column(column, justify="right")
    for name, (width, groups, size) in cases.items():
        model, x = resnext(width, groups).eval(), torch.randn(1, 3, size, size)
        runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(1 if quick else 2):
            for verify, found in runs.items():
                found.append(once(model, x, verify=verify))
        plain, checked = (
            {key: statistics.median(each[key] for each in found) for key in found[0]}
            for found in runs.values()
        )
        share = f"{1 - plain['rewrite'] / checked['rewrite']:.0%}"
        cells = [plain["rewrite"], checked["rewrite"], *(checked[part] for part in _PARTS)]
        first, second, *parts = [f"{value:.2f}" for value in cells]
        table.add_row(name, first, second, share, *parts)
    console.print(table)
