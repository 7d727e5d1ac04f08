"""What the integers of an input pick from, read from the operators of a side.

An index goes, through operators that move values and change none, into a Gather, an Embedding or a
one-hot encoding: the size of what it picks from is its range. Nothing says what a length or a
number of steps may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
from torch import Tensor, fx

from ...tracing import CannotTrace
from ..export.graph_sites import tensor_at
from ..graph.conv_nodes import constant_of
from .domain import Domain
from .sides import OnnxSide, Side
from .torch_values import graph_of

Array = npt.NDArray[Any]

_MOVING = re.compile(
    "Cast|Concat|Expand|Flatten|Identity|Reshape|Slice|Split|Squeeze|Tile|Transpose|Unsqueeze"
)
_MOVING_ATEN = re.compile(
    "_to_copy|alias|clone|contiguous|detach|expand|flatten|lift_fresh_copy|permute|repeat|reshape|"
    "select|slice|split|squeeze|t|to|transpose|unsqueeze|view"
)


def read_domains(side: Side) -> Mapping[str, Domain]:
    """The domains that a side's own operators tell, by the names of its inputs."""
    if isinstance(side, OnnxSide):
        given = {v.name: v for v in side.model.graph.inputs if v.name in side.inputs}
        return dict(_told((name or "", _onnx_tables(value)) for name, value in given.items()))
    if all(tensor.is_floating_point() for tensor in side.example.tensors()):
        return {}
    try:
        graph = graph_of(side.program)
    except CannotTrace:
        return {}
    nodes = [node for node in graph.graph.nodes if node.op == "placeholder"]
    tensors = [node for node in nodes if isinstance(node.meta.get("val"), Tensor)]
    if len(tensors) != len(side.inputs):
        return {}
    pairs = zip(side.inputs, tensors, strict=True)
    return dict(_told((name, _torch_tables(graph, node)) for name, node in pairs))


Picked = tuple[int, str, Array | None]
"""How many there are to pick from, which node picks, and the table where that is a constant."""


def _told(inputs: Iterable[tuple[str, Iterator[Picked]]]) -> Iterator[tuple[str, Domain]]:
    for name, found in inputs:
        picks = list(found)
        if picks:
            size, node, _ = min(picks, key=lambda pick: pick[0])
            tables = tuple(table for _, _, table in picks if table is not None)
            yield name, Domain(0, size - 1, node, tables=tables)


def _onnx_tables(start: ir.Value) -> Iterator[Picked]:
    waiting, seen = [start], set()
    while waiting:
        value = waiting.pop()
        for node, position in value.uses():
            if (node, position) in seen:
                continue
            seen.add((node, position))
            if _MOVING.fullmatch(node.op_type) and (position == 0 or node.op_type == "Concat"):
                integer = node.op_type != "Cast" or _to_integer(node)
                waiting.extend(node.outputs if integer else ())
                continue
            pick = _onnx_pick(node, position)
            if pick is not None:
                yield pick


def _to_integer(node: ir.Node) -> bool:
    return ir.DataType(node.attributes.get_int("to", 0)).is_integer()


def _onnx_pick(node: ir.Node, position: int) -> Picked | None:
    name = node.name or node.outputs[0].name or node.op_type
    if node.op_type == "OneHot" and position == 0:
        depth = constant_of(node.inputs[1], 0)
        return None if depth is None else (int(depth.numpy().reshape(-1)[0]), name, None)
    table = {("Gather", 1): 0, ("GatherElements", 1): 0, ("EmbedLayerNormalization", 0): 2,
             ("EmbedLayerNormalization", 1): 4}.get((node.op_type, position))  # fmt: skip
    data = None if table is None or table >= len(node.inputs) else node.inputs[table]
    if data is None:
        return None
    axis = node.attributes.get_int("axis", 0)
    held = constant_of(data, 0)
    if held is not None:
        array = held.numpy()
        rows = array if axis in (0, -array.ndim) and node.op_type != "GatherElements" else None
        return array.shape[axis], name, rows
    size = None if data.shape is None or not len(data.shape) else data.shape[axis]
    return (size, name, None) if isinstance(size, int) else None


def _torch_tables(graph: fx.GraphModule, start: fx.Node) -> Iterator[Picked]:
    waiting, seen = [start], {start}
    while waiting:
        value = waiting.pop()
        for node in value.users:
            name = str(node.target).split(".")[1:2]
            if name and _MOVING_ATEN.fullmatch(name[0]) and node.args and node.args[0] is value:
                waiting.extend({node} - seen)
                seen.add(node)
            elif name == ["embedding"] and len(node.args) > 1 and node.args[1] is value:
                held = node.args[0]
                assert isinstance(held, fx.Node)
                table = held.op == "get_attr"
                rows = tensor_at(graph, held).detach().cpu().float().numpy() if table else None
                yield int(held.meta["val"].shape[0]), node.name, rows
            elif name in (["index_select"], ["index"]):
                data, axis = node.args[0], node.args[1] if name == ["index_select"] else 0
                assert isinstance(data, fx.Node)
                whole = name == ["index_select"] or node.args[1] == [value]
                size = data.meta["val"].shape[axis] if isinstance(axis, int) and whole else None
                if isinstance(size, int):
                    yield size, node.name, None
