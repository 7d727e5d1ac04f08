"""Time of folding permutations itself, without tracing, verification and saving: linear in nodes.

A chain of residual blocks of a convolution, a BatchNorm, a ReLU, a permutation and a sum, every
other convolution in groups; and the same written as an ONNX file.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from groupfx.deploy.forms.rewrite_onnx import rewrite_graph
from groupfx.nn import ChannelGather
from groupfx.passes import FoldPermutations
from groupfx.rewriting import run_pass
from groupfx.running.inputs import ExampleInputs
from groupfx.state.map import Rows
from groupfx.tracing import open_model

CHANNELS, NODES_A_BLOCK = 16, 5


def order(number: int) -> list[int]:
    return np.random.default_rng(number).permutation(CHANNELS).tolist()


class FoldedBlock(nn.Module):
    """Five nodes."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1, groups=4 if number % 2 else 1)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.order = ChannelGather(order(number))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.order(torch.relu(self.norm(self.conv(x))))


def chain(nodes: int) -> nn.Module:
    blocks = (FoldedBlock(k) for k in range(nodes // NODES_A_BLOCK))
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 1), *blocks).eval()


def chain_file(nodes: int) -> ir.Model:
    """The chain as a file, BatchNorms as scales."""
    held: dict[str, np.ndarray] = {"w": np.ones((CHANNELS, 3, 1, 1))}
    made, x = [helper.make_node("Conv", ["x", "w"], ["v0"])], "v0"
    for k in range(nodes // NODES_A_BLOCK):
        groups = 4 if k % 2 else 1
        held[f"w{k}"] = np.ones((CHANNELS, CHANNELS // groups, 1, 1))
        held[f"s{k}"], held[f"p{k}"] = np.ones((CHANNELS, 1, 1)), np.array(order(k))
        made += [
            helper.make_node("Conv", [x, f"w{k}"], [f"a{k}"], group=groups),
            helper.make_node("Mul", [f"a{k}", f"s{k}"], [f"b{k}"]),
            helper.make_node("Relu", [f"b{k}"], [f"c{k}"]),
            helper.make_node("Gather", [f"c{k}", f"p{k}"], [f"d{k}"], axis=1),
            helper.make_node("Add", [x, f"d{k}"], [f"v{k + 1}"]),
        ]
        x = f"v{k + 1}"
    tensors = [
        numpy_helper.from_array(a if a.dtype == np.int64 else a.astype(np.float32), name)
        for name, a in held.items()
    ]
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, count, 3, 2])
        for name, count in (("x", 3), (x, CHANNELS))
    ]
    graph = helper.make_graph(made, "chain", sides[:1], sides[1:], tensors)
    proto: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    return ir.from_proto(proto)


def in_torch(nodes: int) -> Callable[[], object]:
    """A fold of the chain, each on a program opened anew."""
    program = open_model(chain(nodes), ExampleInputs.of(torch.randn(2, 3, 3, 2)))
    entries = {key: Rows(key) for key in program.result.state_dict()}
    return lambda: run_pass(FoldPermutations(), program, entries)


def in_a_file(nodes: int) -> Callable[[], object]:
    """A fold of the file, which is not changed."""
    model = chain_file(nodes)
    return lambda: rewrite_graph(model, [FoldPermutations()])


def run(console: Console, quick: bool) -> None:
    """Print the table."""
    table = Table(title="seconds to fold (ms a node), CPU time", title_justify="left")
    for column in ("nodes", "torch", "onnx"):
        table.add_column(column, justify="right")
    for nodes in (100, 1_000) if quick else (100, 1_000, 2_500, 10_000):
        cells = []
        for make in (in_torch, in_a_file):
            times = []
            for _ in range(1 if quick or nodes > 5_000 else 3):
                work = make(nodes)
                start = time.process_time()
                work()
                times.append(time.process_time() - start)
            median = statistics.median(times)
            cells.append(f"{median:.2f} ({median / nodes * 1e3:.2f})")
        table.add_row(f"{nodes:,}", *cells)
    console.print(table)
