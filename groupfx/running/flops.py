"""FLOPs of a forward, in the convention of the FLGC paper's code."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode, resolve_name

from ..errors import ModelError
from .inputs import ExampleInputs
from .unchanged import evaluate, unchanged


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
        with unchanged(model), torch.no_grad(), counter:
            evaluate(model)
            example.call(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be run on the inputs: {error}; "
            "give inputs that its forward takes"
        ) from error
    return Flops(**dict(counter.counts))


class _Counter(TorchFunctionMode):
    """Sees each function of torch once, on any device, wherever it is called from."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read = _READERS.get(_name(func))
        if read is not None:
            kind, count = read(result, args, kwargs)
            self.counts[kind] += count
        return result


def _name(func: Any) -> str:
    """`conv2d` for `torch.nn.functional.conv2d`, `torch.conv2d` and `aten.conv2d.default`."""
    name = func.overloadpacket.__name__ if isinstance(func, OpOverload) else resolve_name(func)
    return (name or "").rpartition(".")[2].rstrip("_")


def _conv(result: Tensor, args: Any, kwargs: Any) -> tuple[str, int]:
    weight = _argument(args, kwargs, 1, "weight")
    return "convolutions", result.numel() * math.prod(weight.shape[1:])


def _transposed(result: Tensor, args: Any, kwargs: Any) -> tuple[str, int]:
    weight = _argument(args, kwargs, 1, "weight")
    return "convolutions", _argument(args, kwargs, 0, "input").numel() * math.prod(weight.shape[1:])


def _linear(result: Tensor, args: Any, kwargs: Any) -> tuple[str, int]:
    return "linear", result.numel() * _argument(args, kwargs, 1, "weight").shape[-1]


def _batch_norm(result: Tensor, args: Any, kwargs: Any) -> tuple[str, int]:
    return "batch_norm", 2 * result.numel()


def _relu6(result: Tensor, args: Any, kwargs: Any) -> tuple[str, int]:
    return "relu6", result.numel()


def _hardtanh(result: Tensor, args: Any, kwargs: Any) -> tuple[str, int]:
    limits = _argument(args, kwargs, 1, "min_val", -1), _argument(args, kwargs, 2, "max_val", 1)
    return "relu6", result.numel() if limits == (0, 6) else 0


def _argument(args: Any, kwargs: Any, position: int, name: str, default: Any = None) -> Any:
    return args[position] if position < len(args) else kwargs.get(name, default)


_READERS: Mapping[str, Callable[[Tensor, Any, Any], tuple[str, int]]] = {
    **{f"conv{dims}d": _conv for dims in (1, 2, 3)},
    **{f"conv_transpose{dims}d": _transposed for dims in (1, 2, 3)},
    "linear": _linear,
    "batch_norm": _batch_norm,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
}
