"""What all steps of a file explain together, relative to the values that they are applied to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...quantised.tensors import QuantisedTensor, dequantised, operand, quantised

Array = npt.NDArray[Any]

_UNIFORM = 12.0
_CHANNELS = 1
_ENDS = {"QLinearConv": 6, "QLinearMatMul": 6, "QLinearAdd": 6, "QLinearMul": 6, "QGemm": 7}
_WEIGHTS = {"QLinearConv": (3, 4, 5), "QLinearMatMul": (3, 4, 5)}


def relative_noise(model: ir.Model, values: Mapping[str, Array]) -> float:
    """The sum of `s^2 / 12` by the power of what is quantised, over all that a file quantises.

    Relative noise adds up along a network, whatever its layers multiply with. `values` are inner
    values of a run. What varies within a channel counts as a value's power: a mean that a layer
    behind takes off carries nothing.
    """
    return float(sum(_each(model, values)))


def _each(model: ir.Model, values: Mapping[str, Array]) -> Iterator[float]:
    seen: set[str] = set()
    for node in model.graph:
        step, value = _made(node, values)
        if step is not None and value is not None:
            yield _share(step, _varying(value))
        for held in _weights(node):
            reals, scales, name = held.reals, held.scales, held.stored.name or ""
            if reals is None or scales is None or reals.ndim < _MATRIX or name in seen:
                continue
            seen.add(name)
            steps = np.broadcast_to(held.spread(scales, reals.shape), reals.shape)
            yield float(np.mean(steps**2)) / _UNIFORM / max(float(np.mean(reals**2)), _TINY)


_MATRIX, _TINY = 2, 1e-300


def _made(node: ir.Node, values: Mapping[str, Array]) -> tuple[float | None, Array | None]:
    """The step of what a node quantises, and its values in reals; None where it does not."""
    tensor = quantised(node)
    if tensor is not None:
        source = node.inputs[0]
        return _first(tensor.scales), None if source is None else values.get(source.name or "")
    number = values.get(node.outputs[0].name or "") if node.outputs else None
    if node.op_type == "DynamicQuantizeLinear":
        dynamic = values.get(node.outputs[1].name or "")
        step = None if dynamic is None else float(dynamic)
    else:
        place = _ENDS.get(node.op_type)
        step = None if place is None else _first(operand(node, 0, place, place + 1).scales)
    if step is None or number is None:
        return None, None
    return step, number.astype(np.float64) * step


def _first(scales: Array | None) -> float | None:
    return None if scales is None else float(np.ravel(scales).astype(np.float64)[0])


def _weights(node: ir.Node) -> Iterator[QuantisedTensor]:
    yield from (held for value in node.inputs if (held := dequantised(value)) is not None)
    if node.op_type in _WEIGHTS:
        yield operand(node, *_WEIGHTS[node.op_type])


def _share(step: float, power: float) -> float:
    return step**2 / _UNIFORM / power if power > 0 else 0.0


def _varying(value: Array) -> float:
    wide = value.astype(np.float64)
    if wide.ndim <= _CHANNELS:
        return float(np.var(wide))
    axes = tuple(axis for axis in range(wide.ndim) if axis != _CHANNELS)
    return float(np.var(wide, axis=axes).mean())
