"""The blocks that zeros leave of a dense convolution, as a mask of learned groups does."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...plan.blocks import MIN_SAVING, BlockStructure, find_blocks
from ..graph.conv_nodes import ConvNode

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def zero_blocks(conv: ConvNode) -> BlockStructure | None:
    """The blocks of a constant weight; None where there are groups, or next to no zeros."""
    spec, tensor = conv.spec, conv.weight_tensor
    if spec.transposed or spec.groups > 1 or tensor is None or not conv.constant:
        return None
    if tensor.dtype not in _FLOATS:
        return None
    return blocks_of_weight(tensor.numpy())


def blocks_of_weight(weight: npt.NDArray[Any]) -> BlockStructure | None:
    """The blocks of a dense weight `[out, in, *kernel]`; None where there are next to no zeros."""
    mask = (weight != 0).reshape(*weight.shape[:2], -1).any(axis=2)
    if np.all(mask) or not np.any(mask):
        return None
    found = find_blocks(mask)
    return None if found.exact_macs > (1 - MIN_SAVING) * found.dense_macs else found
