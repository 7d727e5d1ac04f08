"""What this machine is, in a few seconds: the width of the blocked layout, and rates.

The rates are those of the cost model, all tables of one kind scaled by one measured kernel.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from ..deploy.running.blocked_layout import BLOCKS, block_width
from ..plan.cost import OnnxRuntime, Work
from ..plan.machine import Machine
from .backends.onnx_runtime import OnnxRuntimeBackend
from .backends.session import Session

_CHAIN = 24
_RUNS = 12
_SIZE = 14
# What the machine of the default rates reads here: a node that does next to nothing, and GB/s.
_NODE, _COLD = 0.35, 21.0
_MEASURED = ("blocked", "pointwise", "plain", "node", "cold")
# A reading further off than that is a disturbance, not a machine.
_LEAST, _MOST = 0.05, 20.0


def probe(threads: int, session: Session) -> dict[str, float]:
    """The width of the blocks, and factors on the rates of `Machine()` by their names, in sessions
    of ONNX Runtime with these options.

    Raises ModelError or OSError where the runtime does not run, or there is no room for its files.
    """
    backend = OnnxRuntimeBackend(session=session)
    block = block_width(partial(backend.options, threads))
    base = Machine.with_blocks(block)
    found: dict[str, float] = {"block": block}
    timed = partial(_per_node, backend, threads)
    work, chain = Work(9, _SIZE * _SIZE), range(_CHAIN)
    price = OnnxRuntime(work, base)
    wide = timed([_conv_node(k, 64, 3) for k in chain], 64)
    found["blocked"] = (price.conv(64, 64, 1) - base.node) / wide
    narrow = timed([_conv_node(k, 128, 1) for k in chain], 128)
    price = OnnxRuntime(replace(work, taps=1), base)
    found["pointwise"] = (price.conv(128, 128, 1) - base.node) / narrow
    # One channel more than a multiple of 4 is im2col and a product.
    plain = timed([_conv_node(k, 65, 3) for k in chain], 65)
    found["plain"] = (OnnxRuntime(work, base).conv(65, 65, 1) - base.node) / plain
    tiny = [helper.make_node("Abs", [f"v{k}"], [f"v{k + 1}"]) for k in chain]
    found["node"] = timed([(node, None) for node in tiny], 1, size=1) / _NODE
    found["cold"] = _bandwidth() / _COLD
    return {
        name: value if name == "block" else min(max(value, _LEAST), _MOST)
        for name, value in found.items()
    }


def machine_of(found: Mapping[str, Any]) -> Machine:
    """The machine that a probe found; the default where it is of another kind."""
    return _machine_in(found) or Machine()


def is_machine(found: Mapping[str, Any]) -> bool:
    """Whether it is what a probe finds."""
    return _machine_in(found) is not None


def _machine_in(found: Mapping[str, Any]) -> Machine | None:
    try:
        block = int(found["block"])
        factor = {name: float(found[name]) for name in _MEASURED}
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    known = block in (0, *BLOCKS)
    if not known or not all(_LEAST <= value <= _MOST for value in factor.values()):
        return None
    base = Machine.with_blocks(block)
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


_Made = tuple[onnx.NodeProto, onnx.TensorProto | None]


def _conv_node(place: int, channels: int, kernel: int) -> _Made:
    values = np.random.default_rng(place).standard_normal((channels, channels, kernel, kernel))
    weight = numpy_helper.from_array((values / channels / kernel).astype(np.float32), f"w{place}")
    pads = [kernel // 2] * 4
    node = helper.make_node("Conv", [f"v{place}", f"w{place}"], [f"v{place + 1}"], pads=pads)
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


def _per_node(
    backend: OnnxRuntimeBackend,
    threads: int,
    made: list[_Made],
    channels: int,
    size: int = _SIZE,
) -> float:
    """Microseconds of one node in a chain."""
    x = np.ones((1, channels, size, size), np.float32)
    model = ir.from_proto(_model(made, channels, size))
    run, clock = backend.load(model, {"v0": x}, threads), backend.clock(threads)
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
