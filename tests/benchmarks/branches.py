"""Files split, split in part, and merged again: nodes, and the time in ONNX Runtime of each.

Networks whose authors wrote groups, at 224x224 where they are of the field, exported by torch's own
exporter; each file takes turns with the others on one thread, and its time is by that of the file
as it was. What is merged is what the split made, so it must be as fast as the file was. ResNeXt-101
64x4d is after Xie et al. (2017), the last three after the notebook of PLiNIO on its limits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import onnx_ir as ir
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from examples import plinio_convs
from groupfx.deploy.export.onnx_graph import quiet
from groupfx.deploy.forms.rewrite_onnx import rewrite_graph
from groupfx.passes import MergeParallelConv, SplitGroupedConv
from groupfx.rewriting import Pass
from tests.benchmarks.form_speed import race_on
from tests.benchmarks.ordinary import ORDINARY, SIZE, resnext

IMAGE = (1, 3, SIZE, SIZE)
MODELS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNeXt-50": (ORDINARY["ResNeXt-50"], IMAGE),
    "ResNeXt-101 64x4d": (partial(resnext, (3, 4, 23, 3), groups=64), IMAGE),
    "RegNetX-400MF": (ORDINARY["RegNetX-400MF"], IMAGE),
    "RegNetY-400MF": (ORDINARY["RegNetY-400MF"], IMAGE),
    "ShuffleNet v1": (ORDINARY["ShuffleNet v1"], IMAGE),
    "PLiNIO chain": (plinio_convs.chain1d, (3, 16, 2)),
    "PLiNIO chain, groups": (plinio_convs.chain1d_groups, (3, 16, 2)),
    "PLiNIO pair": (plinio_convs.pair2d, (3, 16, 8, 8)),
}
PASSES: Mapping[str, list[Pass]] = {
    "split": [SplitGroupedConv()],
    "2 branches each": [SplitGroupedConv(branches=2)],
    "split and merged again": [SplitGroupedConv(), MergeParallelConv()],
}


def run(console: Console, quick: bool) -> None:
    """Print nodes and times."""
    table = Table(title="nodes, and time by that of the file as it was", title_justify="left")
    for column in ("model", "as it was", "again", *PASSES):
        table.add_column(column, justify="right")
    for name in list(MODELS)[-3:] if quick else MODELS:
        build, shape = MODELS[name]
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            row = _row(build().eval(), shape, Path(folder), 2 if quick else 10)
        table.add_row(name, *row)
    console.print(table)


def _row(model: nn.Module, shape: tuple[int, ...], folder: Path, rounds: int) -> list[str]:
    x = torch.randn(shape)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(folder / "whole.onnx")
    paths, nodes = [folder / "whole.onnx"] * 2, [len(program.model.graph)]
    for kind, passes in PASSES.items():
        made = rewrite_graph(ir.load(folder / "whole.onnx"), passes).model
        paths.append(folder / f"{kind}.onnx")
        ir.save(made, paths[-1])
        nodes.append(len(made.graph))
    _, again, *ratios = race_on(paths, x.numpy(), rounds, (2, 3) if shape == IMAGE else (50, 500))
    told = [f"{n} / {ratio:.2f}" for n, ratio in zip(nodes[1:], ratios, strict=True)]
    return [str(nodes[0]), f"{again:.2f}", *told]
