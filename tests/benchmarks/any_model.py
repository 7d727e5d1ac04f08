"""What a rewrite takes of any model: its sites, its way, and its time beside what one knows.

CPU seconds of finding, of rewriting and of checking, each beside one forward of the same input and
one `torch.export`, measured in turns in one process; the peak of the memory, in a process of its
own, above that of importing and of the model itself (Linux). The last row is a graph of 2,500 nodes
with 2,000 branches: rewritten and checked in the time of one export of it, it is meant to be.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
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


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _exported(model: nn.Module, inputs: ExampleInputs) -> None:
    try:
        export_program(model, inputs)
    except CannotTrace:
        sys.stderr.write(f"{type(model).__name__} cannot be exported\n")


def times(name: str, rounds: int) -> tuple[int, str, dict[str, float]]:
    """Sites, way, and the median CPU seconds of each part."""
    model, inputs = MODELS[name]()
    pipeline = Pipeline(PASSES)
    found: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        with torch.no_grad():
            found.setdefault("forward", []).append(_seconds(lambda: inputs.call(model)))
        found.setdefault("export", []).append(_seconds(lambda: _exported(model, inputs)))
        opened = _seconds(lambda: pipeline.opened(model, inputs))
        plain = _seconds(lambda: pipeline(model, inputs, verify=False))
        checked = _seconds(lambda: pipeline(model, inputs))
        found.setdefault("open", []).append(opened)
        found.setdefault("rewrite", []).append(max(plain - opened, 0.0))
        found.setdefault("check", []).append(max(checked - plain, 0.0))
        found.setdefault("all", []).append(checked)
    report = pipeline(model, inputs, verify=False).report
    medians = {part: statistics.median(values[1:]) for part, values in found.items()}
    return len(report.sites), report.way, medians


def peak(name: str) -> None:
    """Print, as JSON, how far the memory rises above the model, in kB. For a process of its own.

    Importing may have taken more than the rewrite does, so the kernel's mark is set back before it.
    """
    model, inputs = MODELS[name]()
    Pipeline(PASSES)(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), torch.randn(2, 4, 9, 9))
    with torch.no_grad():
        inputs.call(model)
    Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5): VmHWM
    idle = _kilobytes("VmRSS")
    Pipeline(PASSES)(model, inputs)
    json.dump(_kilobytes("VmHWM") - idle, sys.stdout)


def _kilobytes(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry))


def _peak_mb(name: str) -> float:
    command = f"from tests.benchmarks.any_model import peak; peak({name!r})"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1])) / 1024


def run(console: Console, quick: bool) -> None:
    """Print the table."""
    parts = ("open", "rewrite", "check", "all", "forward", "export")
    table = Table(title="any model, CPU seconds", title_justify="left")
    for column in ("model", "sites", "way", *parts, "all / export", "peak MB"):
        table.add_column(column, justify="right")
    for name in list(MODELS)[:1] if quick else MODELS:
        sites, way, medians = times(name, 1 if quick else 2)
        cells = [f"{medians[part]:.2f}" for part in parts]
        ratio = f"{medians['all'] / medians['export']:.2f}"
        table.add_row(name, str(sites), way, *cells, ratio, f"{_peak_mb(name):.0f}")
    console.print(table)
