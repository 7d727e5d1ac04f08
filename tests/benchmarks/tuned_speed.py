"""Files by default and tuned, by the untouched one: masked dense, or groups as they were written.

All three of a network race in heats of new sessions; an interval is of 98 %. Where one thread runs,
its own time counts, so that other processes disturb less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import onnx_ir as ir
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import RegNetConfig, RegNetModel

import groupfx
from examples.flgc_digits.network import mobilenet_v2_flgc
from examples.shufflenet_v1 import shufflenet_v1_g3
from groupfx.api.tuning import feeds_of
from groupfx.deploy import ExportOptions, prepare_export
from groupfx.running.inputs import ExampleInputs
from groupfx.tuning import TuningOptions, tune_graph
from groupfx.tuning.backends import backend_named
from groupfx.tuning.probe import cpu_name
from groupfx.tuning.race import race
from groupfx.tuning.ratios import Ratio, compare

from .form_speed import resnet_18

Build = Callable[[], nn.Module]


class _Features(nn.Module):
    """A transformers model as a function of one image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(x).pooler_output
        return found


def _regnet(depths: list[int], widths: list[int], group: int, kind: str) -> nn.Module:
    config = RegNetConfig(
        depths=depths, hidden_sizes=widths, groups_width=group, layer_type=kind, embedding_size=32
    )
    return _Features(RegNetModel(config))


# From "Designing Network Design Spaces" (2020), appendix.
ORDINARY: dict[str, tuple[Build, int]] = {
    "RegNetX-200MF": (lambda: _regnet([1, 1, 4, 7], [24, 56, 152, 368], 8, "x"), 224),
    "RegNetX-400MF": (lambda: _regnet([1, 2, 7, 12], [32, 64, 160, 384], 16, "x"), 224),
    "RegNetX-600MF": (lambda: _regnet([1, 3, 5, 7], [48, 96, 240, 528], 24, "x"), 224),
    "RegNetY-200MF": (lambda: _regnet([1, 1, 4, 7], [24, 56, 152, 368], 8, "y"), 224),
    "RegNetY-400MF": (lambda: _regnet([1, 3, 6, 6], [48, 104, 208, 440], 8, "y"), 224),
    "ShuffleNet v1": (shufflenet_v1_g3, 32),
}


def cases(quick: bool) -> Iterator[tuple[str, nn.Module, int]]:
    """Name, network and size of the image."""
    torch.manual_seed(0)
    for groups in (8,) if quick else (8, 4, 2):
        for size in (32,) if quick else (32, 96):
            yield f"MobileNetV2, {groups} groups, {size}x{size}", mobilenet_v2_flgc(groups), size
        yield f"ResNet-18, {groups} groups, 32x32", resnet_18(groups), 32
    for name, (build, size) in ORDINARY.items():
        if not quick or name == "RegNetX-600MF":
            yield f"{name}, {size}x{size}", build(), size


def measured(
    network: nn.Module, size: int, batch: int, threads: int, budget: float
) -> tuple[Ratio, Ratio, float]:
    """Ratios of the default file and the tuned one, and how long tuning took."""
    network.eval()
    example = ExampleInputs((torch.randn(batch, 3, size, size),))
    whole = prepare_export(network, example, ExportOptions(forms="whole"))
    # What `groupfx export` writes: a rewrite for the runtime first.
    rewritten = groupfx.rewrite(network, example, target="onnxruntime", verify=False).model
    plain = prepare_export(rewritten, example, ExportOptions(forms="fastest"))
    feeds = feeds_of(whole, network, example, None)
    options = TuningOptions(budget=budget, threads=threads, cache=None)
    start = time.perf_counter()
    tuning = tune_graph(whole.model, feeds, options)
    took = time.perf_counter() - start
    backend = backend_named("onnxruntime")
    models: list[ir.Model] = [whole.model, plain.model, tuning.model]
    loads = [partial(backend.load, model, feeds, threads) for model in models]
    heats = race(loads, backend.clock(threads), budget / 3, time.perf_counter)
    return compare(heats, 1), compare(heats, 2), took


def run(console: Console, quick: bool) -> None:
    """Print the table of ratios."""
    table = Table(title=f"time by that of the untouched file, {cpu_name()}", title_justify="left")
    for column in ("network", "threads", "batch", "default", "tuned", "tuning took"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, network, size in cases(quick):
        for threads in (1,) if quick else (1, 2):
            for batch in (1,) if quick or size > 96 else (1, 16):
                default, tuned, took = measured(
                    network, size, batch, threads, 10.0 if quick else 60.0
                )
                row = (name, str(threads), str(batch), str(default), str(tuned), f"{took:.1f} s")
                table.add_row(*row)
    console.print(table)


def run_itself(console: Console, quick: bool) -> None:
    """Race a small model against itself, and count the claims of a difference."""
    number = 10 if quick else 100
    example = ExampleInputs((torch.randn(1, 3, 32, 32),))
    model = prepare_export(mobilenet_v2_flgc(8).eval(), example, ExportOptions(forms="whole")).model
    backend = backend_named("onnxruntime")
    feeds = {model.graph.inputs[0].name or "": example.args[0].numpy()}
    load = partial(backend.load, model, feeds, 1)
    verdicts = [
        compare(race([load, load], backend.clock(1), 2.0, time.perf_counter), 1).verdict
        for _ in range(number)
    ]
    counted = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    console.print(f"a model raced against itself {number} times: {counted}")
