"""What a drawing of the sites of an ONNX model needs: the operations of each, and its blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import onnx_ir as ir

from ...plan.blocks import BlockStructure
from ...report.pieces import Piece, conv_label, pieces_of
from ..graph.batchnorm import norm_behind
from ..graph.conv_nodes import ConvNode, conv_nodes
from ..graph.metadata import mark_of
from .zero_blocks import zero_blocks


def site_nodes(model: ir.Model) -> Mapping[str, list[ir.Node]]:
    """The nodes of each site, in the order of the graph: those that are marked as its.

    Where there is no mark, a convolution and the BatchNormalization behind it.
    """
    return _site_nodes(model, _convs(model))


def site_pieces(model: ir.Model) -> Mapping[str, tuple[Piece, ...]]:
    """The operations of each site."""
    convs = _convs(model)
    return {
        name: pieces_of(nodes, _sources, lambda node: _label(node, convs))
        for name, nodes in _site_nodes(model, convs).items()
    }


def _convs(model: ir.Model) -> Mapping[ir.Node, ConvNode]:
    return {conv.node: conv for conv in conv_nodes(model)[0]}


def _site_nodes(model: ir.Model, convs: Mapping[ir.Node, ConvNode]) -> Mapping[str, list[ir.Node]]:
    nodes: dict[str, list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        found = mark_of(node)
        if found is not None:
            nodes[found.site].append(node)
        elif node in convs:
            norm = norm_behind(node)
            nodes[convs[node].name] += [node, norm] if isinstance(norm, ir.Node) else [node]
    return nodes


def site_blocks(model: ir.Model) -> Mapping[str, BlockStructure]:
    """The blocks of each convolution that has groups, or blocks of zeros in its weight."""
    found = {}
    for conv in conv_nodes(model)[0]:
        spec = conv.spec
        if spec.groups > 1:
            sides = (spec.in_channels, spec.out_channels)
            found[conv.name] = BlockStructure.of_groups(*sides, spec.groups)
        elif (blocks := zero_blocks(conv)) is not None:
            found[conv.name] = blocks
    return found


def _sources(node: ir.Node) -> list[ir.Node]:
    producers = (value.producer() for value in node.inputs if value is not None)
    return [producer for producer in producers if producer is not None]


def _label(node: ir.Node, convs: Mapping[ir.Node, ConvNode]) -> str | None:
    if node.op_type == "Constant":
        return None
    conv = convs.get(node)
    if conv is None:
        return node.op_type
    return conv_label(node.op_type, conv.spec)
