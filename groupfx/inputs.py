"""Example inputs: what a model is traced, measured and verified on, and how to guess them.

An `ExampleInputs` is one call's arguments. It can be given other batch and spatial sizes and other
random values, and it can be written down as plain data.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .errors import ModelError, UsageError

_REMEDY = "give the inputs, or their shape with --input-shape, such as --input-shape 2,3,224,224"

# Tried in this order until the model's forward takes one: the sizes that published models of each
# rank are made for, the most usual first.
_SIZES: Mapping[int, tuple[int, ...]] = {
    1: (128, 256, 64, 32, 512, 1024, 16, 100, 400, 2048, 16000, 8, 4, 2),
    2: (224, 32, 64, 28, 96, 128, 256, 160, 299, 384, 512, 84, 16, 8),
    3: (32, 64, 16, 96, 112, 128, 8),
}
_FIRST_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FIRST_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# After a transposed convolution things grow: a decoder starts small.
_SMALL_SIZES = (4, 7, 8, 16, 1, 32, 64)
_BATCH = 2
# A description may come from a file: it must not claim the whole memory.
_MAX_ELEMENTS = 2**28


@dataclass(frozen=True, eq=False)
class ExampleInputs:
    """The arguments of one call of a model: positional ones and keyword ones.

    Tensors may lie in nested tuples, lists and dicts; anything else is passed on as it is.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: object) -> ExampleInputs:
        """Read a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.

        Raises UsageError for anything else, and where there is no tensor in it.
        """
        if isinstance(value, ExampleInputs):
            return value
        if isinstance(value, Tensor):
            return cls((value,))
        if isinstance(value, (tuple, list)):
            inputs = cls(tuple(value))
        elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            inputs = cls((), dict(value))
        else:
            raise UsageError(
                f"example inputs are a tensor, a tuple of positional arguments or a dict of "
                f"keyword arguments, not a {type(value).__name__}"
            )
        if next(inputs.tensors(), None) is None:
            raise UsageError(f"there is no tensor among the example inputs {_shown(value)}")
        return inputs

    def call(self, model: Callable[..., Any]) -> Any:
        """`model(*args, **kwargs)`."""
        return model(*self.args, **self.kwargs)

    def map(self, change: Callable[[Tensor], Tensor]) -> ExampleInputs:
        """The same arguments with `change` applied to every tensor."""
        args = tuple(_map(value, change) for value in self.args)
        return ExampleInputs(args, {key: _map(value, change) for key, value in self.kwargs.items()})

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor, positional arguments first."""
        for value in (*self.args, *self.kwargs.values()):
            yield from _leaves(value)

    @property
    def batch(self) -> int | None:
        """The first dimension that all tensors share (0-d ones aside); None if they do not."""
        sizes = {tensor.shape[0] for tensor in self.tensors() if tensor.dim() > 0}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def spatial(self) -> tuple[int, ...]:
        """The sizes after batch and channels of the first tensor of rank 3 or more.

        Where there is none: the second dimension of the first tensor of rank 2 (a sequence). Empty
        where there is neither.
        """
        tensors = list(self.tensors())
        for tensor in tensors:
            if tensor.dim() >= 3:
                return tuple(tensor.shape[2:])
        return next((tuple(t.shape[1:]) for t in tensors if t.dim() == 2), ())

    def with_batch(self, batch: int) -> ExampleInputs:
        """Repeat or trim the first dimension of every tensor to `batch` rows.

        The inputs come back as they are where the tensors share no first dimension or it is 0.
        """
        if batch < 1:
            raise UsageError(f"a batch has at least 1 row, not {batch}")
        if not self.batch or self.batch == batch:
            return self
        return self.map(lambda t: _stretch(t, 0, batch) if t.dim() > 0 else t)

    def resized(self, spatial: tuple[int, ...]) -> ExampleInputs:
        """Other spatial sizes: every tensor that has the current ones is repeated or trimmed.

        Raises UsageError if their number differs, or for a size below 1.
        """
        current = self.spatial
        if len(spatial) != len(current) or min(spatial, default=1) < 1:
            raise UsageError(f"cannot resize {list(current)} to {list(spatial)}")
        if not current or 0 in current:
            return self
        first = 2 if any(tensor.dim() >= 3 for tensor in self.tensors()) else 1

        def change(tensor: Tensor) -> Tensor:
            if tuple(tensor.shape[first:]) != current:
                return tensor
            for position, size in enumerate(spatial):
                tensor = _stretch(tensor, first + position, size)
            return tensor

        return self.map(change)

    def randomized(self, generator: torch.Generator) -> ExampleInputs:
        """New values: normal floats, integers from the range of the old ones, bools as they are.

        `generator` is a CPU generator; the values do not depend on the tensors' device.
        """
        return self.map(lambda tensor: _random_like(tensor, generator))

    def describe(self) -> list[dict[str, Any]]:
        """Plain data, one entry an argument: `name` (None if positional) and what it is.

        A tensor has `dtype`, `shape` and, for integers, `low` and `high`; a tuple, list or dict has
        `kind` and `items`; None, a bool, a number or a string has `value`.

        Raises UsageError for an argument of another type.
        """
        entries = [{"name": None, **_describe(value)} for value in self.args]
        entries.extend({"name": key, **_describe(value)} for key, value in self.kwargs.items())
        return entries

    @classmethod
    def from_description(cls, entries: list[dict[str, Any]], *, seed: int = 0) -> ExampleInputs:
        """Random inputs of the given description, on the CPU.

        Raises UsageError if `entries` is not what `describe` makes.
        """
        generator = torch.Generator().manual_seed(seed)
        try:
            named = [(entry["name"], _restore(entry, generator)) for entry in entries]
            args = tuple(value for name, value in named if name is None)
            return cls(args, {str(name): value for name, value in named if name is not None})
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UsageError(f"not a description of inputs: {error!r}") from error


class InferredInputs(NamedTuple):
    """Inputs that a model's forward accepted, and where they came from, as text."""

    inputs: ExampleInputs
    source: str


def infer_inputs(model: nn.Module) -> InferredInputs:
    """Guess inputs that `model` takes: random, in batches of 2, tried in eval mode.

    A `dummy_inputs` of the model (as Hugging Face models have) is tried first, then its first
    convolution's or linear layer's channels with usual sizes. The model's modes, buffers and the
    random generators are left as they were.

    Raises ModelError, with what was tried and the remedy, if none is taken.
    """
    generator = torch.Generator().manual_seed(0)
    tried: list[str] = []
    failure = "nothing in it says what shape it takes"
    with unchanged(model), torch.no_grad():
        evaluate(model)
        for make, source in _candidates(model):
            tried.append(source)
            try:
                inputs = _placed(make(generator), model)
                inputs.call(model)
            except Exception as error:
                first_line = (str(error).strip().splitlines() or [""])[0]
                failure = f"{source}: {type(error).__name__}: {first_line}"
                continue
            return InferredInputs(inputs, source)
    attempts = "; ".join(tried) or "nothing"
    raise ModelError(
        f"cannot guess the inputs of {type(model).__name__}: tried {attempts}; the last failure "
        f"was {failure}. {_REMEDY}"
    )


@contextlib.contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Put back, at the end, every module's mode, every buffer, and the random generators' states.

    A buffer that was written to gets its values back, one that was replaced is put back itself,
    and so is a tensor that is a plain attribute, such as the weight that a legacy `weight_norm`
    leaves on its module.
    """
    modules = [module for model in models for module in model.modules()]
    modes = [(module, module.training) for module in modules if hasattr(module, "training")]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
    ]
    attributes = [
        (module, name, value)
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    with _generators_unchanged():
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for module, name, value in attributes:
                vars(module)[name] = value
            for module, name, buffer, kept in buffers:
                if name not in module._buffers or module._buffers[name] is not buffer:
                    module._buffers[name] = buffer
                if buffer is not None and kept is not None:
                    _put_back(buffer, kept)


def evaluate(model: nn.Module) -> None:
    """Eval mode for every module by its flag alone: `eval()` may be overridden, or refuse."""
    for module in model.modules():
        if hasattr(module, "training"):  # a frozen TorchScript module has no mode
            module.training = False


@contextlib.contextmanager
def _generators_unchanged() -> Iterator[None]:
    python, numbers = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def _put_back(buffer: Tensor, value: Tensor) -> None:
    same = buffer.shape == value.shape and buffer.dtype == value.dtype
    if same and torch.equal(buffer, value):
        return
    with torch.no_grad():
        if same:
            buffer.copy_(value)
        else:
            buffer.data = value


Make = Callable[[torch.Generator], ExampleInputs]


def _candidates(model: nn.Module) -> Iterator[tuple[Make, str]]:
    dummy = getattr(model, "dummy_inputs", None)
    if isinstance(dummy, Mapping) and dummy:
        yield (lambda _: ExampleInputs.of(dummy).with_batch(_BATCH)), "the model's dummy_inputs"
    name = getattr(model, "main_input_name", None)
    if name in ("input_ids", "inputs"):
        yield (lambda g: _tokens(model, name, g)), f"{name}: token ids [{_BATCH}, 16]"
    if name == "input_values":
        for length in (16000, 4000, 1000, 400):
            shape = (_BATCH, length)
            yield _random(shape, name), f"{name}: {list(shape)}"
    keyword = name if name == "pixel_values" else None
    layer = _first_layer(model)
    if layer is not None:
        path, module = layer
        for sizes in _shapes(model, module):
            source = f"{list(sizes)} from {path or 'the model'}"
            yield _random(sizes, keyword), source


def _first_layer(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The first convolution, else the first linear layer: what the input most likely meets."""
    named = list(model.named_modules())
    for types in ((*_FIRST_CONVS, *_FIRST_TRANSPOSED), (nn.Linear,)):
        for path, module in named:
            if isinstance(module, types):
                return path, module
    return None


def _shapes(model: nn.Module, module: nn.Module) -> Iterator[tuple[int, ...]]:
    if isinstance(module, nn.Linear):
        yield from ((_BATCH, module.in_features), (_BATCH, 16, module.in_features))
        return
    assert isinstance(module, (*_FIRST_CONVS, *_FIRST_TRANSPOSED))
    channels, rank = module.in_channels, len(module.kernel_size)
    wanted = getattr(getattr(model, "config", None), "image_size", None)
    sizes = _SMALL_SIZES if isinstance(module, _FIRST_TRANSPOSED) else _SIZES[rank]
    if isinstance(wanted, int):
        sizes = (wanted, *(size for size in sizes if size != wanted))
    for size in sizes:
        yield _BATCH, channels, *[size] * rank


def _random(shape: tuple[int, ...], name: str | None) -> Make:
    def make(generator: torch.Generator) -> ExampleInputs:
        value = torch.randn(shape, generator=generator)
        return ExampleInputs((value,)) if name is None else ExampleInputs((), {name: value})

    return make


def _tokens(model: nn.Module, name: str, generator: torch.Generator) -> ExampleInputs:
    vocabulary = int(getattr(getattr(model, "config", None), "vocab_size", 2))
    ids = torch.randint(0, vocabulary, (_BATCH, 16), generator=generator)
    return ExampleInputs((), {name: ids})


def _placed(inputs: ExampleInputs, model: nn.Module) -> ExampleInputs:
    """On the device and, for floats, in the dtype of the model's first floating parameter."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is None:
        return inputs
    return inputs.map(lambda t: t.to(first) if t.is_floating_point() else t.to(first.device))


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        parts = [_map(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [_map(part, change) for part in value]
    if isinstance(value, dict):
        return {key: _map(part, change) for key, part in value.items()}
    return value


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))


def _stretch(tensor: Tensor, dim: int, size: int) -> Tensor:
    index = torch.arange(size, device=tensor.device) % tensor.shape[dim]
    return tensor.detach().index_select(dim, index).requires_grad_(tensor.requires_grad)


def _random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.dtype == torch.bool or tensor.numel() == 0:
        return tensor
    if tensor.is_floating_point() or tensor.is_complex():
        wide = torch.complex128 if tensor.is_complex() else torch.float64
        normal = torch.randn(tensor.shape, dtype=wide, generator=generator)
        return normal.to(tensor).requires_grad_(tensor.requires_grad)
    low, high = int(tensor.min()), int(tensor.max())
    return torch.randint(low, high + 1, tensor.shape, generator=generator).to(tensor)


def _shown(value: object) -> str:
    if isinstance(value, (tuple, list)) and value and all(type(part) is int for part in value):
        sizes = ", ".join(map(str, value))
        return f"{value}; if this is a shape, give torch.randn({sizes})"
    return f"{value}"


def _describe(value: Any) -> dict[str, Any]:
    if isinstance(value, Tensor):
        entry: dict[str, Any] = {"dtype": str(value.dtype).removeprefix("torch.")}
        entry["shape"] = list(value.shape)
        if _is_integer(value.dtype) and value.numel():
            entry.update(low=int(value.min()), high=int(value.max()))
        return entry
    if isinstance(value, (tuple, list)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {"kind": kind, "items": [_describe(part) for part in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        items = {key: _describe(part) for key, part in value.items()}
        return {"kind": "dict", "items": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise UsageError(f"an input of type {type(value).__name__} cannot be written down")


def _restore(entry: Mapping[str, Any], generator: torch.Generator) -> Any:
    if "value" in entry:
        return entry["value"]
    if "dtype" in entry:
        return _random_of(entry, generator)
    items = entry["items"]
    if entry["kind"] == "dict":
        return {key: _restore(part, generator) for key, part in items.items()}
    parts = [_restore(part, generator) for part in items]
    return parts if entry["kind"] == "list" else tuple(parts)


def _random_of(entry: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    dtype = getattr(torch, entry["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{entry['dtype']} is not a dtype")
    shape = tuple(int(size) for size in entry["shape"])
    if math.prod(shape) > _MAX_ELEMENTS:
        raise ValueError(f"shape {list(shape)} has more than {_MAX_ELEMENTS} elements")
    if not _is_integer(dtype):
        return _random_like(torch.ones(shape, dtype=dtype), generator)
    low, high = int(entry.get("low", 0)), int(entry.get("high", 0))
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype)


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
