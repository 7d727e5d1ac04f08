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


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    """The initialisers of every graph."""
    for graph in graphs(model):
        yield from graph.initializers.values()


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes of every graph."""
    for graph in graphs(model):
        yield from graph


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """The tensors of initialisers and in the attributes of nodes, as a `Constant` has one."""
    for value in initializers(model):
        if value.const_value is not None:
            yield value.const_value
    for node in nodes(model):
        yield from _attribute_tensors(node)


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor whose numbers lie in another file."""
    return (tensor for tensor in tensors(model) if isinstance(tensor, ir.ExternalTensor))


def load_external(model: ir.Model) -> None:
    """Replace tensors of `model` that lie in another file by ones in memory, or mapped there."""
    for value in initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = in_memory(value.const_value)
    load_attributes(model)


def load_attributes(model: ir.Model) -> None:
    """The same for tensors in the attributes of nodes alone."""
    for node in nodes(model):
        for name, attribute in list(node.attributes.items()):
            node.attributes[name] = _loaded(attribute)


def in_memory(tensor: ir.ExternalTensor) -> ir.Tensor[Any]:
    """The same tensor, its numbers mapped or read."""
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _loaded(attribute: ir.Attr) -> ir.Attr:
    """The attribute; with its tensor in memory where it is in another file."""
    if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
        return attribute
    tensor = attribute.as_tensor()
    if not isinstance(tensor, ir.ExternalTensor):
        return attribute
    return ir.AttrTensor(attribute.name, in_memory(tensor))


def _attribute_tensors(node: ir.Node) -> Iterator[ir.TensorProtocol]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            yield attribute.as_tensor()
        elif attribute.type == ir.AttributeType.TENSORS:
            yield from attribute.as_tensors()
