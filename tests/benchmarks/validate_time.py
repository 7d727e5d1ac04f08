"""CPU seconds and peak memory of a validation, on one thread, each in a process of its own.

Honest files that `groupfx.export` wrote, of rows of 224 x 224 with an open batch: a ResNet-18 and a
ResNet-50, and the digits example, whose rows are small. Memory is what the peak of the process
grows by during the validation, in MB and in multiples of the model's weights.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

MODELS = ("flgc_digits", "resnet-18", "resnet-50")
LIMIT = 10.0


def measure(name: str) -> None:
    """Print, as JSON, the seconds of a validation, the bytes it takes, and those of the weights."""
    import torch

    import groupfx

    torch.set_num_threads(1)
    model, inputs = _digits() if name == "flgc_digits" else _resnet(int(name[7:]))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        # What is loaded by the first export and session of a process is no part of a validation.
        groupfx.export(model, inputs, path)
        idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        started = time.process_time()
        validation = groupfx.validate(model, path, inputs)
        seconds = time.process_time() - started
    assert validation.ok, validation.blame
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    json.dump({"seconds": seconds, "weights": weights, "peak": most - idle}, sys.stdout)


def _digits():  # type: ignore[no-untyped-def]
    import groupfx

    loaded = groupfx.load("examples/flgc_digits.pt")
    return loaded.model.eval(), loaded.inputs


def _resnet(depth: int):  # type: ignore[no-untyped-def]
    import torch

    from .resnets import resnet

    torch.manual_seed(0)
    return resnet(depth), (torch.randn(1, 3, 224, 224),)


def run(console: Console, quick: bool) -> None:
    """Print the table."""
    table = Table(title="a validation on one thread", title_justify="left")
    for column in ("", "weights, MB", "CPU s", "limit", "memory, MB", "memory / weights"):
        table.add_column(column, justify="right")
    for name in MODELS[:1] if quick else MODELS:
        code = f"from tests.benchmarks.validate_time import measure; measure({name!r})"
        found = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        taken = json.loads(found.stdout.splitlines()[-1])
        table.add_row(
            name,
            f"{taken['weights'] / 1e6:.1f}",
            f"{taken['seconds']:.1f}",
            f"{LIMIT:g}",
            f"{taken['peak'] / 1e6:.0f}",
            f"{taken['peak'] / taken['weights']:.1f}",
        )
    console.print(table)
