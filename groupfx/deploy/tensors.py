"""The tensors of an ONNX model, wherever they lie: in its file, in memory, or in another file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, the graphs of the functions, and every graph inside a node of them."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        yield graph
        yield from graph.subgraphs()


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor whose numbers lie in another file: initialisers and attributes of nodes."""
    for graph in graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
        for node in graph:
            yield from (t for t in attribute_tensors(node) if isinstance(t, ir.ExternalTensor))


def in_memory(tensor: ir.ExternalTensor) -> ir.Tensor[Any]:
    """The same tensor, its numbers mapped or read."""
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def load_initializers(graph: ir.Graph) -> None:
    """Replace initialisers of `graph` that lie in another file by ones in memory."""
    for value in graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = in_memory(value.const_value)


def load_attributes(node: ir.Node) -> None:
    """Replace tensors in attributes of `node` that lie in another file by ones in memory."""
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
            tensor = attribute.as_tensor()
            if isinstance(tensor, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, in_memory(tensor))


def attribute_tensors(node: ir.Node) -> Iterator[ir.TensorProtocol]:
    """The tensors in the attributes of a node, as a `Constant` has one."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            yield attribute.as_tensor()
        elif attribute.type == ir.AttributeType.TENSORS:
            yield from attribute.as_tensors()
