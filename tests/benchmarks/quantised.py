"""A quantised network with groups in ONNX Runtime on one thread: whole, split, and merged again.

The network is quantised by ONNX Runtime's own quantiser, a scale a channel. int8 kernels are those
of the graph that it makes of a file. The files take turns; times are by that of the whole network,
which runs against itself as a control.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

from groupfx.deploy.forms.rewrite_onnx import rewrite_graph
from groupfx.passes import MergeParallelConv, SplitGroupedConv
from tests.benchmarks.form_speed import race
from tests.deploy.quantised.kernels_run import whole_kernels
from tests.deploy.quantised.quantizer_files import by_quantizer, network

PASSES = {
    "split": [SplitGroupedConv()],
    "4 branches each": [SplitGroupedConv(branches=4)],
    "split, one pair around": [SplitGroupedConv(qdq="outside")],
    "split and merged again": [SplitGroupedConv(), MergeParallelConv()],
}


def run(console: Console, quick: bool) -> None:
    """Print kernels and times."""
    width, groups, blocks, size = (32, 4, 1, 12) if quick else (256, 32, 4, 28)
    title = (
        f"{blocks} blocks, {width} channels, groups {groups}, {size}x{size}, batch 1, one thread"
    )
    table = Table(title=title, title_justify="left")
    for column in ("file", "nodes", "int8 kernels", "time by that of the whole"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = by_quantizer(network(width, groups, blocks, size=size), folder)
        made = {"whole": whole, "whole again": whole}
        for kind, passes in PASSES.items():
            made[kind] = ir.to_proto(rewrite_graph(ir.from_proto(whole), passes).model)
        places = [folder / f"{place}.onnx" for place in range(len(made))]
        for place, model in zip(places, made.values(), strict=True):
            onnx.save(model, place)
        ratios = race(places, 1, 2 if quick else 10, size, (2, 3))
        for (kind, model), ratio in zip(made.items(), ratios, strict=True):
            counts = len(model.graph.node), whole_kernels(model, folder)
            table.add_row(kind, *map(str, counts), f"{ratio:.2f}")
    console.print(table)
