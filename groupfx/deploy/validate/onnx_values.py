"""An ONNX file as a graph of values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from ..graph.metadata import mark_of
from ..graph.node_names import told_name
from ..quantised.grids import grid_of
from ..quantised.tensors import dequantised
from ..running.float64_nodes import Float64Node, RuntimeNode, widened
from ..running.runtime import declared_inputs
from .value_graph import Jitter, Operator, ValueGraph, Values

Array = npt.NDArray[Any]

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class OnnxGraph(ValueGraph):
    """The main graph of an ONNX model; functions and subgraphs are run whole."""

    def __init__(self, model: ir.Model, *, lowers: bool = False) -> None:
        """`lowers` says that rounding to half precision is what the reference does too."""
        self.model = model
        self._lowers = lowers or any(
            value.dtype in _HALF
            for value in (*model.graph.inputs, *model.graph.initializers.values())
        )
        self.inputs = tuple(name for name, _, _ in declared_inputs(model))
        known = set(self.inputs)
        self.nodes: dict[int, Float64Node] = {}
        self._constant: dict[str, Float64Node] = {}
        operators: list[Operator] = []
        for node in model.graph:
            runner = Float64Node(model, node)
            inputs = tuple(name for name in runner.inputs if name in known)
            if not inputs and not _random(node):
                self._constant.update(dict.fromkeys(runner.outputs, runner))
                continue
            index = len(operators)
            self.nodes[index] = runner
            mark = mark_of(node)
            site = None if mark is None else mark.site
            name, kind = told_name(node), node.op_type
            operators.append(Operator(index, name, kind, inputs, runner.outputs, site))
            known.update(runner.outputs)
        self.operators = tuple(operators)
        self._rounds = any(_half_cast(node) is not None for node in model.graph)
        named = [value.name or "" for value in model.graph.outputs]
        self.outputs = {name: name for name in named if name in known}

    @property
    def lowers(self) -> bool:
        """Whether a Cast rounds to half precision."""
        return self._rounds

    def run(self, operator: Operator, values: Mapping[str, Any], jitter: Jitter | None) -> Values:
        """Floats come in float64."""
        node = self.nodes[operator.index]
        made = node.run(self.operands(node, values, jitter))
        kind = None if self._lowers else _half_cast(node.node)
        if kind is None:
            return dict(made)
        return {name: widened(value.astype(kind)) for name, value in made.items()}

    def in_runtime(self, operator: Operator, values: Mapping[str, Any]) -> Values:
        """What ONNX Runtime makes of it, in the file's own dtypes."""
        node = self.nodes[operator.index]
        return dict(RuntimeNode(self.model, node.node).run(self.operands(node, values)))

    def holds(self, name: str, array: Array) -> Array:
        """Behind a DequantizeLinear those of its grid."""
        op = self.producer.get(name)
        value = None if op is None else self.nodes[op.index].node.outputs[0]
        grid = grid_of(dequantised(value))
        if grid is None or array.dtype.kind != "f" or array.ndim < 2:
            return array
        return grid.nearest(torch.from_numpy(array)).numpy()

    def operands(
        self, node: Float64Node, values: Mapping[str, Any], jitter: Jitter | None = None
    ) -> dict[str, Array]:
        """What a node reads, constants included."""
        found = {}
        for name in node.inputs:
            if name in values:
                found[name] = values[name]
            else:
                held = self._held(name)
                found[name] = held if jitter is None else jitter(held)
        return found

    def _held(self, name: str) -> Array:
        value = self.model.graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            return value.const_value.numpy()
        node = self._constant[name]
        return node.run({each: self._held(each) for each in node.inputs})[name]

    def array(self, value: Any) -> Array | None:
        """Sequences and optional values are no arrays."""
        return np.asarray(value) if isinstance(value, (np.ndarray, np.generic)) else None

    def value(self, array: Array) -> Any:
        """The array itself, floats in float64."""
        return widened(array)


def _half_cast(node: ir.Node) -> np.dtype[Any] | None:
    """The dtype that a Cast rounds to, where that is half precision."""
    if node.op_type != "Cast" or "to" not in node.attributes:
        return None
    kind = ir.DataType(node.attributes["to"].as_int())
    return kind.numpy() if kind in _HALF else None


def _random(node: ir.Node) -> bool:
    return node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial")
