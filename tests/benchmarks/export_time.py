"""Exporting to ONNX: a split model against the same model unsplit, side by side in one process.

`split` is the export of a rewrite result, `loaded` that of the same result read from a file of
ours, `unsplit` that of the original. All three end in a file. The last rows are partial splits. The
naive way, in which the exporter translates every branch, is timed once, where it takes less than
minutes.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import groupfx
from groupfx.passes import SplitGroupedConv
from groupfx.rewriting import Pipeline

from .files import one_conv, resnext_like, timed

_NAIVE_UP_TO = 64


def shufflenet() -> tuple[nn.Module, torch.Tensor]:
    loaded = groupfx.load("examples/shufflenet_v1_g3.pt")
    assert loaded.inputs is not None
    (x,) = loaded.inputs.tensors()
    return loaded.model.eval(), x


def naive(model: nn.Module, x: torch.Tensor, path: Path) -> None:
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)


def measure(
    table: Table,
    name: str,
    model: nn.Module,
    x: torch.Tensor,
    rounds: int,
    pass_: SplitGroupedConv,
) -> None:
    result = Pipeline([pass_])(model, x, verify=False)
    branches = sum(site.branches for site in result.report.sites)
    with tempfile.TemporaryDirectory() as folder:
        place, saved = Path(folder) / "model.onnx", Path(folder) / "model.groupfx.pt"
        result.save(saved)
        loaded = groupfx.load(saved)

        def write(source: object) -> Callable[[], object]:
            return lambda: groupfx.export(source, (x,), place, overwrite=True)  # type: ignore[arg-type]

        sides = {"unsplit": write(model), "split": write(result), "loaded": write(loaded)}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for round_ in range(rounds + 1):
            for side, work in sides.items():
                taken = timed(work)
                if round_:
                    times[side].append(taken)
        slow = "-"
        if branches <= _NAIVE_UP_TO:
            started = time.perf_counter()
            naive(result.model, x, place)
            slow = f"{time.perf_counter() - started:.1f}"
    median = {side: statistics.median(values) for side, values in times.items()}
    ratios = [median[side] / median["unsplit"] for side in ("split", "loaded")]
    seconds = [f"{median[side]:.2f}" for side in sides]
    table.add_row(name, str(branches), *seconds, *(f"{ratio:.2f}" for ratio in ratios), slow)


def run(console: Console, quick: bool) -> None:
    """Print the table; a model's rewrite is not counted."""
    table = Table(title="seconds to export", title_justify="left")
    titles = ("unsplit", "split", "loaded", "split / unsplit", "loaded / unsplit", "naive")
    for column in ("", "branches", *titles):
        table.add_column(column, justify="right")
    groups = (4,) if quick else (64, 256, 1024)
    whole, two = SplitGroupedConv(), SplitGroupedConv(branches=2)
    models = {f"one conv, {n} groups": (one_conv(n), whole) for n in groups}
    models["one conv, two branches"] = (one_conv(4 if quick else 2048), two)
    if not quick:
        models["ResNeXt-50-sized"] = (resnext_like(), whole)
        models["ShuffleNet v1, 3 groups"] = (shufflenet(), whole)
        models["one conv, 2048 groups, 16 a branch"] = (
            one_conv(2048),
            SplitGroupedConv(groups_per_branch=16),
        )
        models["ResNeXt-101-sized, two branches"] = (resnext_like((3, 4, 23, 3), 64), two)
    for name, ((model, x), pass_) in models.items():
        measure(table, name, model, x, 1 if quick else 5, pass_)
    console.print(table)
