"""What nobody reads any more in an ONNX graph."""

import onnx_ir as ir


def remove_unused(graph: ir.Graph) -> None:
    """Remove nodes and constants that nobody reads any more."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del graph.initializers[name]
