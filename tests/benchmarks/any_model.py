"""What a rewrite takes of any model: its sites, its way, and its time beside what one knows.

CPU seconds of opening, of rewriting and of checking, beside one forward of the same input and one
`torch.export`, in turns, and the peak of the memory above that of the libraries and of the model
itself (Linux). Each row has a process of its own, which begins no further round after 15 seconds
and is ended after 60. The table takes less than 5 minutes: what did not come in time says so. The
last row is a graph of 2,500 nodes with 2,000 branches: rewritten and checked in the time of one
export of it, it is meant to be.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from groupfx.passes import SplitGroupedConv
from groupfx.rewriting import Pipeline
from groupfx.running.inputs import ExampleInputs
from groupfx.tracing import CannotTrace, export_program
from tests.benchmarks.check_share import resnext
from tests.models import zoo_libraries
from tests.models.small_configs import build, inputs_of


def branches() -> nn.Module:
    """250 layers of 8 groups, each with an activation: 2,000 branches when split."""
    layers = [
        part for _ in range(250) for part in (nn.Conv2d(16, 16, 3, padding=1, groups=8), nn.ReLU())
    ]
    return nn.Sequential(*layers)


def _library(kind: str) -> tuple[nn.Module, ExampleInputs]:
    model = build(kind, 8)
    assert model is not None
    return model, ExampleInputs.of(inputs_of(model))


def _of(model: nn.Module, *shape: int) -> tuple[nn.Module, ExampleInputs]:
    return model.eval(), ExampleInputs.of(torch.randn(shape))


MODELS: dict[str, Callable[[], tuple[nn.Module, ExampleInputs]]] = {
    "ResNeXt, narrow": lambda: _of(resnext(32, 8), 2, 3, 64, 64),
    "ResNeXt, real width": lambda: _of(resnext(128, 32), 2, 3, 64, 64),
    "SE-ResNeXt-50": lambda: _of(zoo_libraries.se_resnext50(2), 2, 3, 64, 64),
    "RegNet Y": lambda: _of(zoo_libraries.regnet("y"), 2, 3, 64, 64),
    "SqueezeBERT": lambda: _library("squeezebert"),
    "Wav2Vec2": lambda: _library("wav2vec2"),
    "Parakeet": lambda: _library("parakeet_encoder"),
    "MobileNet v2": lambda: _library("mobilenet_v2"),
    "2,000 branches": lambda: _of(branches(), 2, 16, 8, 8),
}
PASSES = (SplitGroupedConv(depthwise="split", max_groups=32),)


_ROUNDS = 3
_ENOUGH = 15.0  # seconds behind which no round begins
_LIMIT = 60.0  # seconds of a row
_TOTAL = 290.0  # seconds of all
_WIDTH = 140  # of the table, also where it is written to a file
_PARTS = ("open", "rewrite", "check", "all", "forward", "export")


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _exported(model: nn.Module, inputs: ExampleInputs) -> None:
    try:
        export_program(model, inputs)
    except CannotTrace:
        sys.stderr.write(f"{type(model).__name__} cannot be exported\n")


@dataclass(frozen=True)
class Row:
    """Of one model: its sites, its way, the median CPU seconds of each part, and MB at the peak."""

    sites: int
    way: str
    rounds: int
    peak: float
    seconds: dict[str, float]


def measure(name: str, rounds: int) -> None:
    """Print a row as JSON. For a process of its own."""
    began = time.monotonic()
    pipeline = Pipeline(PASSES)
    # What is imported for the first of each is no part of the second.
    small, given = (
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)),
        ExampleInputs.of(torch.ones(2, 4, 9, 9)),
    )
    pipeline(small, given)
    _exported(small, given)
    model, inputs = MODELS[name]()
    with torch.no_grad():
        inputs.call(model)
    # Importing may have taken more than the rewrite does, so the kernel's mark is set back.
    Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5): VmHWM
    idle = _kilobytes("VmRSS")
    report = pipeline(model, inputs).report
    peak = (_kilobytes("VmHWM") - idle) / 1024
    found: dict[str, list[float]] = {part: [] for part in _PARTS}
    while not found["all"] or (len(found["all"]) < rounds and time.monotonic() - began < _ENOUGH):
        for part, spent in _round(pipeline, model, inputs).items():
            found[part].append(spent)
    medians = {part: statistics.median(values) for part, values in found.items()}
    row = Row(len(report.sites), report.way, len(found["all"]), peak, medians)
    json.dump(asdict(row), sys.stdout)


def _round(pipeline: Pipeline, model: nn.Module, inputs: ExampleInputs) -> dict[str, float]:
    with torch.no_grad():
        forward = _seconds(lambda: inputs.call(model))
    export = _seconds(lambda: _exported(model, inputs))
    opened = _seconds(lambda: pipeline.opened(model, inputs))
    plain = _seconds(lambda: pipeline(model, inputs, verify=False))
    checked = _seconds(lambda: pipeline(model, inputs))
    parts = (opened, max(plain - opened, 0.0), max(checked - plain, 0.0), checked, forward, export)
    return dict(zip(_PARTS, parts, strict=True))


def _kilobytes(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry))


def _row(name: str, rounds: int, limit: float) -> Row | None:
    """None where it takes longer than `limit` seconds."""
    code = f"from tests.benchmarks.any_model import measure; measure({name!r}, {rounds})"
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def run(console: Console, quick: bool) -> None:
    """Print the table."""
    table = Table(
        title=f"any model, CPU seconds; at most {_LIMIT:.0f} s a row, {_TOTAL:.0f} s in all",
        title_justify="left",
    )
    for column in ("model", "sites", "way", "rounds", *_PARTS, "share", "all / export", "peak MB"):
        table.add_column(column, justify="right")
    end = time.monotonic() + _TOTAL
    for name in list(MODELS)[:1] if quick else MODELS:
        limit = min(_LIMIT, end - time.monotonic())
        row = _row(name, 1 if quick else _ROUNDS, limit) if limit > 0 else None
        if row is None:
            table.add_row(name, f"not within {max(limit, 0):.0f} s")
            continue
        spent = row.seconds
        table.add_row(
            name,
            str(row.sites),
            row.way,
            str(row.rounds),
            *(f"{spent[part]:.2f}" for part in _PARTS),
            f"{spent['check'] / spent['all']:.0%}",
            f"{spent['all'] / spent['export']:.2f}",
            f"{row.peak:.0f}",
        )
    console.width = max(console.width, _WIDTH)
    console.print(table)
