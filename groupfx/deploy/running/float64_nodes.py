"""The nodes of an ONNX graph one by one, in float64 or as ONNX Runtime computes them.

    Float64Node    the evaluator of `float64_onnx`; where it has no kernel for an operator, or an
                   operator of another domain, ONNX Runtime in the file's own dtype
    RuntimeNode    ONNX Runtime, a session for the one node

Both take and give arrays by the names of values. A node with subgraphs also takes what they read
of the graph around them. Weights are the file's own arrays and are widened when they are used: no
second copy of them is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

from ...errors import GroupfxError, ModelError, first_line
from ..graph.node_names import told_name
from .float64_onnx import Float64Model

Array = npt.NDArray[Any]

_SILENT = 4
_DOUBLE, _FLOAT = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT


def inputs_of(node: ir.Node) -> tuple[str, ...]:
    """Names of the values that a node reads, those that only its subgraphs read last."""
    own = [value.name or "" for value in node.inputs if value is not None]
    outer: list[str] = []
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            outer += _free_names(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            outer += [name for graph in attribute.as_graphs() for name in _free_names(graph)]
    return tuple(dict.fromkeys([*own, *outer]))


def _free_names(graph: ir.Graph) -> list[str]:
    made = {value.name for value in graph.inputs} | set(graph.initializers)
    made |= {value.name for node in graph for value in node.outputs}
    read = [name for node in graph for name in inputs_of(node)]
    read += [value.name or "" for value in graph.outputs]
    return [name for name in read if name not in made]


class RuntimeNode:
    """One node in ONNX Runtime, in the dtypes that the file gives its values."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.node = node
        self.inputs = inputs_of(node)
        self.outputs = tuple(value.name for value in node.outputs if value.name)
        self._model = model
        self._sessions: dict[tuple[int, ...], ort.InferenceSession] = {}

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Results by name. Raises ModelError where ONNX Runtime does not run the node."""
        given = {name: self._native(name, values[name]) for name in self.inputs}
        types = {n: onnx.helper.np_dtype_to_tensor_dtype(v.dtype) for n, v in given.items()}
        try:
            session = self._session(types)
            found = session.run(list(self.outputs), given)
        except Exception as error:
            raise ModelError(f"{described(self.node)} does not run: {first_line(error)}") from error
        return dict(zip(self.outputs, map(np.asarray, found), strict=True))

    def _native(self, name: str, value: Array) -> Array:
        """The array in the dtype of the value, float32 where a float's is not known."""
        if value.dtype.kind != "f":
            return value
        known = self._dtypes.get(name)
        return value.astype(np.float32 if known is None else known)

    @cached_property
    def _dtypes(self) -> Mapping[str, np.dtype[Any]]:
        values = [value for value in self.node.inputs if value is not None]
        return {v.name or "": v.dtype.numpy() for v in values if v.dtype is not None}

    def _session(self, types: Mapping[str, int]) -> ort.InferenceSession:
        key = tuple(types.values())
        if key not in self._sessions:
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = _SILENT
            proto = _one_node(self._model, self.node, types)
            self._sessions[key] = ort.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[key]


class Float64Node:
    """One node in float64; in ONNX Runtime where `rounded`, for want of a float64 kernel."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.node = node
        self.inputs = inputs_of(node)
        self.outputs = tuple(value.name for value in node.outputs if value.name)
        self._model = model

    @property
    def rounded(self) -> bool:
        """Whether the results are rounded to the file's own dtype."""
        return self._wide is None

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Results by name, floats in float64. Raises ModelError where the node does not run."""
        given = {name: values[name] for name in self.inputs}
        if self._wide is None:
            return self._rounded(given)
        try:
            return self._wide.run(given)
        except GroupfxError:
            # The evaluator's kernels lack parts of the spec: a GatherElements of few places.
            found = self._rounded(given)
            self._wide = None
            return found

    def _rounded(self, given: Mapping[str, Array]) -> dict[str, Array]:
        return {name: widened(value) for name, value in self._runtime.run(given).items()}

    @cached_property
    def _wide(self) -> Float64Model | None:
        try:
            return Float64Model(_one_node(self._model, self.node, {}))
        except GroupfxError:
            return None

    @cached_property
    def _runtime(self) -> RuntimeNode:
        return RuntimeNode(self._model, self.node)


def widened(value: Array) -> Array:
    """A float in float64, anything else as it is."""
    small = value.dtype.kind == "f" or value.dtype.name == "bfloat16"
    return value.astype(np.float64, copy=False) if small else value


def described(node: ir.Node) -> str:
    """How a message calls a node: its operator and name."""
    return f"{node.op_type} {told_name(node)}"


def _one_node(model: ir.Model, node: ir.Node, types: Mapping[str, int]) -> onnx.ModelProto:
    """The node as a model, with the types of its inputs."""
    inputs = [
        onnx.helper.make_tensor_value_info(name, types.get(name, _DOUBLE), None)
        for name in inputs_of(node)
    ]
    outputs = [onnx.ValueInfoProto(name=value.name) for value in node.outputs if value.name]
    graph = onnx.helper.make_graph([ir.to_proto(node)], "node", inputs, outputs)
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in model.graph.opset_imports.items()]
    functions = [ir.to_proto(f) for f in model.functions.values()] if model.functions else []
    return onnx.helper.make_model(
        graph, opset_imports=opsets, functions=functions, ir_version=model.ir_version
    )
