"""Nodes that hand on what they get."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common


def drop_identities(model: ir.Model) -> None:
    """Drop each Identity of `model`, but where a body of a Loop or If ends in one."""
    # onnx-ir (1.1.0) drops also one that hands on a value from outside of the body, which is then
    # the output of no node in it.
    if not any(map(_ends_in_one, model.graph.subgraphs())):
        common.IdentityEliminationPass()(model)


def _ends_in_one(body: ir.Graph | ir.Function) -> bool:
    makers = [value.producer() for value in body.outputs]
    return any(node is not None and node.op_type == "Identity" for node in makers)
