"""Names for new values and nodes of an ONNX graph that nothing of it has yet."""

from __future__ import annotations

import onnx_ir as ir


class Names:
    """The names of a model that are taken. One for all sites of a model saves a walk for each."""

    def __init__(self, model: ir.Model) -> None:
        self._values: set[str] = set()
        self._nodes: set[str] = set()
        for graph in (model.graph, *model.graph.subgraphs()):
            values = (*graph.inputs, *graph.initializers.values())
            self._values.update(value.name or "" for value in values)
            for node in graph:
                self._nodes.add(node.name or "")
                self._values.update(value.name or "" for value in node.outputs)

    def value(self, wanted: str) -> str:
        """`wanted`, or `wanted#2` and so on where it is taken; taken from now on."""
        return _free(wanted, self._values)

    def node(self, wanted: str) -> str:
        """The same for the name of a node."""
        return _free(wanted, self._nodes)


def _free(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}#{number}"
    taken.add(name)
    return name
