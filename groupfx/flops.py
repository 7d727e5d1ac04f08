"""FLOPs of a forward, in the convention of the FLGC paper's code."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from .errors import ModelError
from .inputs import ExampleInputs
from .tracing.tracer import buffers_kept, modes_kept

_CONVS = frozenset({"conv1d", "conv2d", "conv3d"})
_TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})


@dataclass(frozen=True)
class Flops:
    """Operations of one forward, all samples of the batch together.

    `convolutions` and `linear` are multiply-accumulates, biases not counted; `batch_norm` is 2 an
    element, `relu6` 1 an element. Nothing else is counted: not other activations, additions or
    pooling, and not the mask that a learned-group layer puts on its weight.
    """

    convolutions: int = 0
    linear: int = 0
    batch_norm: int = 0
    relu6: int = 0

    @property
    def total(self) -> int:
        """The sum of all of them."""
        return self.convolutions + self.linear + self.batch_norm + self.relu6


def count_flops(model: nn.Module, inputs: object) -> Flops:
    """Run `model` once in eval mode and count what it executes.

    `inputs` is a tensor, a tuple of positional arguments or a dict of keyword arguments of
    `forward`. A layer with learned groups counts as the dense convolution that it runs; once
    frozen, as its blocks. The model is not changed. Raises `ModelError` where it cannot be run.
    """
    example = ExampleInputs.of(inputs)
    counter = _Counter()
    try:
        with modes_kept(model), buffers_kept(model), torch.no_grad(), counter:
            model.eval()
            example.call(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be run on the inputs: {error}; "
            "give inputs that its forward takes"
        ) from error
    return Flops(**counter.counts)


@dataclass
class _Counter(TorchFunctionMode):
    """Sees each function of torch once, on any device, wherever it is called from."""

    counts: dict[str, int] = field(default_factory=dict)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = _name(func)
        if isinstance(result, Tensor) and name:
            kind, count = _operations(name, args, kwargs, result)
            if count:
                self.counts[kind] = self.counts.get(kind, 0) + count
        return result


def _name(func: Any) -> str:
    """`conv2d` for `torch.nn.functional.conv2d`, `torch.conv2d` and `aten.conv2d.default`."""
    if isinstance(func, torch._ops.OpOverload):
        return func.overloadpacket.__name__.rstrip("_")
    return (resolve_name(func) or "").rpartition(".")[2].rstrip("_")
