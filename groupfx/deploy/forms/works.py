"""What the convolutions of an ONNX graph have to do, as the cost model asks for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...plan.cost import Work
from ..graph.conv_nodes import ConvNode, Shapes


@dataclass(frozen=True)
class Works:
    """The work of each convolution of a model, for each of `batches`; for the batch that `shapes`
    say where those are not given.

    `weights` are the bytes of all weights, `values` what the convolution that moves most of all
    reads and writes in a sample.
    """

    shapes: Shapes
    batches: Sequence[int] | None
    weights: int
    values: int

    @classmethod
    def of(
        cls, convs: Sequence[ConvNode], shapes: Shapes, batches: Sequence[int] | None = None
    ) -> Works:
        """Of the model that these are all convolutions of."""
        tensors = (conv.weight_tensor for conv in convs)
        weights = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        values = max((_moved(conv, shapes) for conv in convs), default=0)
        return cls(shapes, batches, weights, values)

    def __call__(self, conv: ConvNode) -> Sequence[Work]:
        """Nothing where the graph does not say how large the convolution is."""
        tensor, sizes = conv.weight_tensor, _positions_of(conv, self.shapes)
        if sizes is None or tensor is None:
            return ()
        read, written = sizes
        batches = self.batches
        if batches is None:
            shape = _shape(conv.node.outputs[0], self.shapes)
            batches = [size for size in shape[:1] if isinstance(size, int) and size]
        blocked = conv.spec.dims == 2 and tensor.dtype == ir.DataType.FLOAT
        return [
            Work(
                math.prod(conv.spec.kernel_size),
                written,
                read,
                batch=batch,
                model_weights=self.weights,
                model_values=self.values * batch,
                blocked=blocked,
            )
            for batch in batches
        ]


def _moved(conv: ConvNode, shapes: Shapes) -> int:
    sizes = _positions_of(conv, shapes)
    if sizes is None:
        return 0
    return conv.spec.in_channels * sizes[0] + conv.spec.out_channels * sizes[1]


def _positions_of(conv: ConvNode, shapes: Shapes) -> tuple[int, int] | None:
    """Positions that a convolution reads, and that it writes; None where one is not known."""
    read, written = (
        _positions(value, shapes) for value in (conv.node.inputs[0], conv.node.outputs[0])
    )
    return None if read is None or written is None else (read, written)


def _positions(value: ir.Value | None, shapes: Shapes) -> int | None:
    spatial = list(_shape(value, shapes))[2:]
    known = [size for size in spatial if isinstance(size, int)]
    return math.prod(known) if len(known) == len(spatial) and all(known) else None


def _shape(value: ir.Value | None, shapes: Shapes) -> Sequence[int | ir.SymbolicDim]:
    return () if value is None else tuple(shapes.get(value.name or "") or value.shape or ())
