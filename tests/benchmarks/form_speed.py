"""ONNX Runtime on one thread: networks with learned groups as masked dense convolutions, as blocks
in the form with the fewest MACs, and in the forms that the cost model chooses.

Ratios are times by that of masked dense, the mask folded into the weight: below 1 is faster. All
files of a network take turns, in ABBA order, and masked dense runs against itself as a control.
What counts is the thread's own time: other processes take turns with it. A turn is several runs,
the first of them not timed, as a model is run that serves alone: a single run finds the weights of
the others in the caches, and adds the same time for its own to all, 5 to 10 % of masked dense.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import groupfx
from examples.flgc_digits.network import mobilenet_v2_flgc
from groupfx.deploy import ExportOptions, prepare_export
from groupfx.deploy.forms.forming import apply_form
from groupfx.deploy.graph.conv_nodes import ConvNode, conv_nodes
from groupfx.deploy.graph.free_names import Names
from groupfx.nn import Flgc2d
from groupfx.plan.blocks import BlockStructure, find_blocks
from groupfx.plan.forms import plan
from groupfx.running.inputs import ExampleInputs

GROUPS = (8, 4, 2)
# Runs of a turn that bring the weights into the caches, and those that count.
RUNS = (6, 4)
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))


class Basic(nn.Module):
    """Two 3x3 convolutions that learned their groups, and a shortcut."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, groups: int, *, balanced: bool
    ) -> None:
        super().__init__()
        given = {"padding": 1, "group_num": groups, "bias": False, "balanced": balanced}
        self.conv1 = Flgc2d(inputs, outputs, 3, stride=stride, **given)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = Flgc2d(outputs, outputs, 3, **given)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet_18(groups: int, *, balanced: bool = False) -> nn.Module:
    """ResNet-18 for 32x32 images."""
    blocks: list[nn.Module] = []
    channels = 64
    for outputs, stride in STAGES:
        for step in (stride, 1):
            blocks.append(Basic(channels, outputs, step, groups, balanced=balanced))
            channels = outputs
    stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


NETWORKS: Mapping[str, Callable[[int], nn.Module]] = {
    "MobileNetV2": mobilenet_v2_flgc,
    "ResNet-18": resnet_18,
    "balanced MobileNetV2": partial(mobilenet_v2_flgc, balanced=True),
    "balanced MobileNetV2, outputs in order": partial(
        mobilenet_v2_flgc, balanced=True, learn_outputs=False
    ),
    "balanced ResNet-18": partial(resnet_18, balanced=True),
}


def files(network: nn.Module, folder: Path) -> dict[str, Path]:
    """Masked dense, and the same file with its sites in other forms."""
    places = {name: folder / f"{name}.onnx" for name in ("dense", "fewest MACs", "chosen")}
    x = torch.randn(2, 3, 32, 32)
    passes = ["freeze-learned-groups:form=dense"]
    made = groupfx.rewrite(network, x, passes=passes, verify=False)
    groupfx.export(made, x, places["dense"], overwrite=True)
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(places["dense"])), folder / "sizes.onnx")
    model = ir.load(folder / "sizes.onnx")
    names = Names(model)
    for conv in conv_nodes(model)[0]:
        found = _blocks(conv)
        if found is not None:
            apply_form(model, conv, plan(found), names)
    ir.save(model, places["fewest MACs"])
    # What an export writes: layers around a site may change too, and gathers are joined.
    made = groupfx.rewrite(network, x, target="onnxruntime", verify=False)
    chosen = prepare_export(made.model, ExampleInputs((x,)), ExportOptions(forms="fastest"))
    chosen.write(places["chosen"], overwrite=True)
    return places


def _blocks(conv: ConvNode) -> BlockStructure | None:
    """The blocks of a convolution whose weight holds zeros."""
    weight = conv.weight_array()
    if weight is None or conv.spec.groups > 1:
        return None
    mask = (weight != 0).reshape(*weight.shape[:2], math.prod(weight.shape[2:])).any(axis=2)
    return None if mask.all() else find_blocks(mask, max_blocks=len(mask), min_saving=0)


def race(
    paths: Sequence[Path], batch: int, rounds: int, size: int = 32, runs: tuple[int, int] = RUNS
) -> list[float]:
    """Medians of the ratios within a round to the first of `paths`, on images of a `size`."""
    x = np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32)
    return race_on(paths, x, rounds, runs)


def race_on(
    paths: Sequence[Path], x: npt.NDArray[np.float32], rounds: int, runs: tuple[int, int] = RUNS
) -> list[float]:
    """Medians of the ratios within a round to the first of `paths`, all of which take `x`."""
    warming, timed = runs
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    sessions = [
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in paths
    ]
    feed = {sessions[0].get_inputs()[0].name: x}
    ratios: list[list[float]] = [[] for _ in paths]
    for round_ in range(rounds + 1):
        there = [*range(len(paths))]
        times = [0.0] * len(paths)
        for place in (*there, *there[::-1]):
            for _ in range(warming):
                sessions[place].run(None, feed)
            start = time.thread_time()
            for _ in range(timed):
                sessions[place].run(None, feed)
            times[place] += time.thread_time() - start
        for place, found in enumerate(times):
            if round_ >= 1:
                ratios[place].append(found / times[0])
    return [statistics.median(values) for values in ratios]


def run(console: Console, quick: bool) -> None:
    """Print the table of ratios."""
    table = Table(title="time by that of masked dense, one thread", title_justify="left")
    for column in ("network", "groups", "batch", "dense again", "fewest MACs", "chosen"):
        table.add_column(column, justify="right")
    for name, build in NETWORKS.items():
        for groups in GROUPS[:1] if quick else GROUPS:
            torch.manual_seed(groups)
            with tempfile.TemporaryDirectory() as folder:
                made = files(build(groups).eval(), Path(folder))
                paths = [made["dense"], *made.values()]
                for batch in (1,) if quick else (1, 16):
                    found = race(paths, batch, 2 if quick else 16 // batch + 4)
                    row = [f"{ratio:.3f}" for ratio in found[1:]]
                    table.add_row(name, str(groups), str(batch), *row)
    console.print(table)
