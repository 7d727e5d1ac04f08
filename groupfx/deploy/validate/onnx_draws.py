"""Random numbers that an ONNX file draws while it runs: found, cut out, and fed in their place.

    RandomNormal(Like), RandomUniform(Like), Bernoulli, Multinomial    the node becomes an input
    Dropout in training mode       y = x * keep / (1 - ratio)          `keep` becomes an input

Draws in functions are inlined first; those inside a branch or a loop cannot be cut out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from ..graph.conv_nodes import constant_of
from ..graph.initializers import constant
from ..running.runtime import Session
from .torch_draws import COMPUTED, Kind

Array = npt.NDArray[Any]

_RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli")
) | {"Multinomial", "Dropout"}
_MASK = 1  # of Dropout's outputs


@dataclass(frozen=True)
class OnnxDraw:
    """A node that draws. `kind` is None where it cannot be cut out.

    `node` is the one of the main graph: itself, or that in whose graph it lies.
    """

    name: str
    operator: str
    kind: Kind | None
    node: ir.Node

    def __str__(self) -> str:
        return f"{self.name} ({self.operator})"


def opened_functions(model: ir.Model) -> ir.Model:
    """The model, or a copy with its functions inlined where one of them draws."""
    inside = (node for f in model.functions.values() for node in _all(f.graph))
    if not any(is_draw(node) for node in inside):
        return model
    copy = model.clone()
    ir_passes.InlinePass()(copy)
    return copy


def draws_of(model: ir.Model) -> tuple[OnnxDraw, ...]:
    """The nodes of the main graph that draw, or in whose graphs something does, in order."""
    found = []
    for node in model.graph:
        name = node.name or node.outputs[0].name or node.op_type
        if is_draw(node):
            found.append(OnnxDraw(name, node.op_type, _kind(node), node))
        inside = [inner for graph in _graphs(node) for inner in _all(graph) if is_draw(inner)]
        found += [OnnxDraw(inner.name or name, inner.op_type, None, node) for inner in inside]
    return tuple(found)


def recorder(
    model: ir.Model, source: str
) -> Callable[[Mapping[str, Array]], list[tuple[Array, np.dtype[Any]]]]:
    """A function that runs a model once and gives what it drew, and in which dtype it uses that."""
    copy = model.clone()
    draws = draws_of(copy)
    for number, draw in enumerate(draws):
        if draw.operator == "Dropout":
            draw.node.resize_outputs(2)
            mask = draw.node.outputs[_MASK]
            mask.name = mask.name or f"groupfx.mask.{number}"
    pairs = [
        (d.node.outputs[_MASK if d.operator == "Dropout" else 0].name or "", d.node.outputs[0].name)
        for d in draws
    ]
    names = list(dict.fromkeys(name for pair in pairs for name in pair if name))
    session = Session(copy, "off", source=source, also=names)

    def record(feeds: Mapping[str, Array]) -> list[tuple[Array, np.dtype[Any]]]:
        taken = session.run(feeds, names)
        return [(taken[drawn], taken[used or drawn].dtype) for drawn, used in pairs]

    return record


def without_draws(
    model: ir.Model, names: Sequence[str], dtypes: Sequence[np.dtype[Any]]
) -> ir.Model:
    """A copy in which each draw is an input of one of `names`, in these dtypes.

    What a draw's probabilities are computed to be is an output more, `name.input`.
    """
    copy = model.clone()
    for draw, name, dtype in zip(draws_of(copy), names, dtypes, strict=True):
        kind = ir.TensorType(ir.DataType.from_numpy(dtype))
        value = ir.Value(name=name, type=kind)
        copy.graph.inputs.append(value)
        _cut(copy.graph, draw, value, dtype)
    return copy


def _cut(graph: ir.Graph, draw: OnnxDraw, value: ir.Value, dtype: np.dtype[Any]) -> None:
    node, name = draw.node, value.name
    assert draw.kind is not None
    made = [ir.Node("", "Identity", [value])]
    if draw.operator == "Dropout":
        factor = constant(graph, f"{name}.factor", np.asarray(1 / draw.kind[1], dtype))
        scaled = ir.Node("", "Mul", [node.inputs[0], factor])
        made = [scaled, ir.Node("", "Mul", [scaled.outputs[0], value])]
        if len(node.outputs) > _MASK:
            mask = ir.Node("", "Cast", [value], [ir.AttrInt64("to", ir.DataType.BOOL)])
            made.insert(0, mask)
            _take_place(node.outputs[_MASK], mask.outputs[0])
    elif draw.kind[0] in COMPUTED:
        told = ir.Node("", "Identity", [node.inputs[0]])
        told.outputs[0].name = f"{name}.input"
        given = node.inputs[0]
        told.outputs[0].type = None if given is None else given.type
        graph.outputs.append(told.outputs[0])
        made.insert(0, told)
    graph.insert_before(node, made)
    _take_place(node.outputs[0], made[-1].outputs[0])
    graph.remove(node, safe=True)
    for new in made:
        for output in new.outputs:
            output.name = output.name or f"{name}.{new.op_type}"


def _take_place(old: ir.Value, new: ir.Value) -> None:
    wanted, old.name = old.name, f"{old.name}.drawn"
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name = wanted


def is_draw(node: ir.Node) -> bool:
    """Whether a node draws random numbers."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _RANDOM:
        return False
    if node.op_type != "Dropout":
        return True
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    held = None if mode is None else constant_of(mode, 0)
    return mode is not None and (held is None or bool(held.numpy()))


def _kind(node: ir.Node) -> Kind | None:
    number = node.attributes.get_float
    if node.op_type.startswith("RandomNormal"):
        return ("normal", number("mean", 0.0), number("scale", 1.0))
    if node.op_type.startswith("RandomUniform"):
        return ("uniform", number("low", 0.0), number("high", 1.0))
    if node.op_type == "Bernoulli":
        return ("bernoulli",)
    if node.op_type == "Multinomial":
        return ("multinomial", node.attributes.get_int("sample_size", 1))
    given = node.inputs[1]
    ratio = None if given is None else constant_of(given, 0)
    if (given is not None and ratio is None) or constant_of(node.inputs[2], 0) is None:
        return None
    return ("keep", 1.0 - (0.5 if ratio is None else float(ratio.numpy())))


def _graphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _all(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        for inner in _graphs(node):
            yield from _all(inner)
