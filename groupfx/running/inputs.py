"""Example inputs: what a model is traced, measured and verified on, and how to guess them.

An `ExampleInputs` is one call's arguments. It can be given other batch and spatial sizes and other
random values, and it can be written down as plain data.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import io
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import UsageError, no_exit

# A description may come from a file, or from a slip of the finger: an input must not claim the
# whole memory.
MOST_ELEMENTS = 2**28
_BIT_BY_BIT = (GeneratorType, map, filter, zip)
_SIZES = re.compile(r"\d{1,9}(x\d{1,9}){0,4}")


@dataclass(frozen=True, eq=False)
class ExampleInputs:
    """The arguments of one call of a model: positional ones and keyword ones.

    Tensors may lie in nested tuples, lists and dicts; anything else is passed on as it is.
    `guessed` has the sizes that nobody gave and nothing tells, such as `224x224`: every number that
    depends on them is to say so.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    guessed: str | None = None

    @classmethod
    def of(cls, value: object) -> ExampleInputs:
        """Read a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.

        Raises UsageError for anything else, for nested tensors, and where there is no tensor in it.
        """
        if isinstance(value, ExampleInputs):
            return value
        if isinstance(value, Tensor):
            inputs = cls((value,))
        elif isinstance(value, (tuple, list)):
            inputs = cls(tuple(value))
        elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            inputs = cls((), dict(value))
        else:
            raise UsageError(
                f"example inputs are a tensor, a tuple of positional arguments or a dict of "
                f"keyword arguments, not a {type(value).__name__}"
            )
        if any(isinstance(value, Iterator) for value in (*inputs.args, *inputs.kwargs.values())):
            raise UsageError("an example input gives its values once alone: give a list of them")
        if next(inputs.tensors(), None) is None:
            raise UsageError(f"there is no tensor among the example inputs {_shown(value)}")
        if any(tensor.is_nested for tensor in inputs.tensors()):
            raise UsageError(
                "an example input is a nested tensor, whose samples have sizes of their own: give "
                "one of its samples with a batch axis, such as x[0][None]"
            )
        return inputs

    def call(self, model: Callable[..., Any]) -> Any:
        """`model(*args, **kwargs)`; of what it gives bit by bit, all of it as a list.

        A forward with `yield` in it has done nothing yet when it returns. Lists and dicts are given
        as copies, for it may take out of them what it needs.
        """
        args = tuple(_map(value, _as_it_is) for value in self.args)
        kwargs = {key: _map(value, _as_it_is) for key, value in self.kwargs.items()}
        with no_exit(getattr(model, "__name__", type(model).__name__)), _silent(model):
            if isinstance(model, fx.GraphModule) and fx.GraphModule in type(model).__bases__:
                # Its own __call__ does the same, and prints a traceback of what it raises.
                return nn.Module.__call__(model, *args, **kwargs)
            output = model(*args, **kwargs)
            return list(output) if isinstance(output, _BIT_BY_BIT) else output

    def map(self, change: Callable[[Tensor], Tensor]) -> ExampleInputs:
        """The same arguments with `change` applied to every tensor."""
        args = tuple(_map(value, change) for value in self.args)
        kwargs = {key: _map(value, change) for key, value in self.kwargs.items()}
        return ExampleInputs(args, kwargs, self.guessed)

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

    def asked(self, batch: int | None) -> ExampleInputs:
        """With a batch that a user asks for; as they are where that is None.

        Raises UsageError for one that would claim the whole memory.
        """
        if batch is None:
            return self
        require_room([tuple(t.shape) for t in self.tensors() if t.dim()], batch)
        return self.with_batch(batch)

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

    def fitted(self, sizes: Sequence[Sequence[int | None]]) -> ExampleInputs | None:
        """Tensors repeated or trimmed to `sizes`, one entry each, None where any will do.

        None where there are not as many tensors, or they have other ranks.
        """
        tensors = list(self.tensors())
        same_rank = [tensor.dim() for tensor in tensors] == [len(entry) for entry in sizes]
        if not same_rank or any(tensor.numel() == 0 for tensor in tensors):
            return None
        wanted = iter(sizes)

        def change(tensor: Tensor) -> Tensor:
            for axis, size in enumerate(next(wanted)):
                if size is not None and size != tensor.shape[axis]:
                    tensor = _stretch(tensor, axis, size)
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
        `kind` and `items`; None, a bool, a number or a string has `value`; of anything else there
        is the `type` alone, and no inputs can be made of it again. Where sizes are a guess, each
        argument has them as `guessed`.
        """
        entries = [{"name": None, **_describe(value)} for value in self.args]
        entries.extend({"name": key, **_describe(value)} for key, value in self.kwargs.items())
        told = {} if self.guessed is None else {"guessed": self.guessed}
        return [{**entry, **told} for entry in entries]

    @classmethod
    def from_description(cls, entries: list[dict[str, Any]], *, seed: int = 0) -> ExampleInputs:
        """Random inputs of the given description, on the CPU.

        Raises UsageError if `entries` is not what `describe` makes.
        """
        generator = torch.Generator().manual_seed(seed)
        try:
            named = [(entry["name"], _restore(entry, generator)) for entry in entries]
            args = tuple(value for name, value in named if name is None)
            kwargs = {str(name): value for name, value in named if name is not None}
            guesses = [text for entry in entries if (text := entry.get("guessed")) is not None]
            known = all(_SIZES.fullmatch(text) for text in guesses)
            return cls(args, kwargs, guesses[0] if guesses and known else None)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UsageError(f"not a description of inputs: {error!r}") from error


@contextlib.contextmanager
def _silent(model: Callable[..., Any]) -> Iterator[None]:
    """A GraphModule inside a model prints a traceback of what it raises; whoever catches it says.

    What a call that works writes to stderr comes behind it.
    """
    inner = model.children() if isinstance(model, nn.Module) else ()
    parts = (part for child in inner for part in child.modules())
    if not any(isinstance(part, fx.GraphModule) for part in parts):
        yield
        return
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        yield
    sys.stderr.write(said.getvalue())


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        parts = [_map(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        parts = [_map(part, change) for part in value]
        return parts if type(value) is list else _with(value, parts)
    if isinstance(value, dict):
        named = {key: _map(part, change) for key, part in value.items()}
        return named if type(value) is dict else _with(value, named)
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if _is_record(value):
        made = copy.copy(value)
        for name, part in vars(value).items():
            object.__setattr__(made, name, _map(part, change))
        return made
    return value


def _with(value: Any, content: Any) -> Any:
    """A list or a dict of a class of its own, that holds something else."""
    made = copy.copy(value)
    if isinstance(made, list):
        made[:] = content
    else:
        made.update(content)
    return made


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _is_record(value: Any) -> bool:
    return (
        dataclasses.is_dataclass(value)
        and not isinstance(value, type)
        and hasattr(value, "__dict__")
    )


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    elif _is_record(value):
        yield from _leaves(list(vars(value).values()))


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
    return {"type": f"{type(value).__module__}.{type(value).__qualname__}"}


def _restore(entry: Mapping[str, Any], generator: torch.Generator) -> Any:
    if "value" in entry:
        return entry["value"]
    if "dtype" in entry:
        return _random_of(entry, generator)
    if "type" in entry:
        raise UsageError(f"an input of type {entry['type']} cannot be made from its description")
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
    if math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"shape {list(shape)} has more than {MOST_ELEMENTS} elements")
    if not _is_integer(dtype):
        return _random_like(torch.ones(shape, dtype=dtype), generator)
    low, high = int(entry.get("low", 0)), int(entry.get("high", 0))
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype)


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def in_order(model: nn.Module, inputs: ExampleInputs) -> ExampleInputs:
    """The same arguments in the order of `forward`, positional where they can be.

    `torch.export` would give keyword arguments in another order to the wrong parameters of a graph.
    """
    bound = bound_arguments(model, inputs)
    return ExampleInputs(bound.args, bound.kwargs, inputs.guessed)


def bound_arguments(model: nn.Module, inputs: ExampleInputs) -> inspect.BoundArguments:
    """The arguments of `forward` by name. Raises `UsageError` where they are others."""
    try:
        return inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        raise UsageError(
            f"the example inputs do not fit {type(model).__name__}.forward: {error}"
        ) from error


def require_room(shapes: Iterable[tuple[int, ...]], batch: int) -> None:
    """Raise UsageError where so many rows of these shapes are more than inputs may hold."""
    elements = sum(math.prod(shape[1:]) for shape in shapes) * batch
    if elements > MOST_ELEMENTS:
        raise UsageError(
            f"batch={batch}: the inputs would have {elements:,} elements, and at most "
            f"{MOST_ELEMENTS:,} are taken"
        )
