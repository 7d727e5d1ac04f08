"""What this machine is, in a few seconds: the width of the blocked layout, and rates.

The width is seen in the graph that ONNX Runtime makes of two small convolutions. The rates are
those of the cost model, all tables of one kind scaled by one measured kernel.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from ..plan.cost import OnnxRuntime, Work
from ..plan.machine import Machine
from .backends.onnx_runtime import BACKEND

_BLOCKS = (16, 8)
_CHAIN = 24
_RUNS = 12
_SIZE = 14
# What the machine of the default rates reads here: a node that does next to nothing, and GB/s.
_NODE, _COLD = 0.35, 21.0
_MEASURED = ("blocked", "pointwise", "plain", "node", "cold")
# A reading further off than that is a disturbance, not a machine.
_LEAST, _MOST = 0.05, 20.0


@cache
def cpu_name() -> str:
    """What the system calls the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def probe(threads: int) -> dict[str, float]:
    """The width of the blocks, and factors on the rates of `Machine()` by their names."""
    block = block_width()
    base = Machine(block=block) if block != _BLOCKS[1] else Machine.avx2()
    found: dict[str, float] = {"block": block}
    work, chain = Work(9, _SIZE * _SIZE), range(_CHAIN)
    price = OnnxRuntime(work, base)
    wide = _per_node([_conv_node(k, 64, 3) for k in chain], 64, threads)
    found["blocked"] = (price.conv(64, 64, 1) - base.node) / wide
    narrow = _per_node([_conv_node(k, 128, 1) for k in chain], 128, threads)
    price = OnnxRuntime(replace(work, taps=1), base)
    found["pointwise"] = (price.conv(128, 128, 1) - base.node) / narrow
    # One channel more than a multiple of 4 is im2col and a product.
    plain = _per_node([_conv_node(k, 65, 3) for k in chain], 65, threads)
    found["plain"] = (OnnxRuntime(work, base).conv(65, 65, 1) - base.node) / plain
    tiny = [helper.make_node("Abs", [f"v{k}"], [f"v{k + 1}"]) for k in chain]
    found["node"] = _per_node([(node, None) for node in tiny], 1, threads, size=1) / _NODE
    found["cold"] = _bandwidth() / _COLD
    return {
        name: value if name == "block" else min(max(value, _LEAST), _MOST)
        for name, value in found.items()
    }


def machine_of(found: Mapping[str, Any]) -> Machine:
    """The machine that a probe found; the default where it is of another kind."""
    try:
        block = int(found["block"])
        factor = {name: float(found[name]) for name in _MEASURED}
    except (KeyError, TypeError, ValueError):
        return Machine()
    base = Machine.avx2() if block == _BLOCKS[1] else Machine(block=block)
    return replace(
        base,
        blocked=tuple(tuple(rate * factor["blocked"] for rate in row) for row in base.blocked),
        pointwise=tuple(
            tuple(rate * factor["pointwise"] for rate in row) for row in base.pointwise
        ),
        direct_pointwise=base.direct_pointwise * factor["pointwise"],
        depthwise=base.depthwise * factor["blocked"],
        plain=base.plain * factor["plain"],
        plain_pointwise=base.plain_pointwise * factor["plain"],
        node=base.node * factor["node"],
        cold=base.cold * factor["cold"],
    )


def block_width(level: int | None = None) -> int:
    """The width of the blocked layout, 0 where there is none (or `level` switches it off)."""
    for width in _BLOCKS:
        model = _model([_conv_node(0, 2 * width, 3, groups=2)], 2 * width, 8)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if level is not None:
            options.graph_optimization_level = ort.GraphOptimizationLevel(level)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "optimised.onnx"
            options.optimized_model_filepath = str(place)
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            nodes = onnx.load(place).graph.node
        if any("nchwc" in node.domain for node in nodes):
            return width
    return 0


_Made = tuple[onnx.NodeProto, onnx.TensorProto | None]


def _conv_node(place: int, channels: int, kernel: int, *, groups: int = 1) -> _Made:
    values = np.random.default_rng(place).standard_normal(
        (channels, channels // groups, kernel, kernel)
    )
    weight = numpy_helper.from_array((values / channels / kernel).astype(np.float32), f"w{place}")
    pads = [kernel // 2] * 4
    node = helper.make_node(
        "Conv", [f"v{place}", f"w{place}"], [f"v{place + 1}"], pads=pads, group=groups
    )
    return node, weight


def _model(made: list[_Made], channels: int, size: int) -> onnx.ModelProto:
    shape = [1, channels, size, size]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name in ("v0", f"v{len(made)}")
    ]
    weights = [weight for _, weight in made if weight is not None]
    graph = helper.make_graph([node for node, _ in made], "probe", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def _per_node(made: list[_Made], channels: int, threads: int, size: int = _SIZE) -> float:
    """Microseconds of one node in a chain."""
    x = np.ones((1, channels, size, size), np.float32)
    model = ir.from_proto(_model(made, channels, size))
    run, clock = BACKEND.load(model, {"v0": x}, threads), BACKEND.clock(threads)
    times = []
    for _ in range(_RUNS):
        start = clock()
        run()
        times.append(clock() - start)
    return max(statistics.median(times[2:]) / len(made) * 1e6, 1e-3)


def _bandwidth() -> float:
    """GB/s of reading what is in no cache."""
    values = np.ones(16 << 20, np.float32)
    times = []
    for _ in range(5):
        start = time.thread_time()
        values.sum()
        times.append(time.thread_time() - start)
    return values.nbytes / max(min(times), 1e-9) / 1e9
