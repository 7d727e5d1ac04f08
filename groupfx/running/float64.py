"""Run a model in float64 without a float64 copy of it.

    with Float64(model):
        y = model(x.double())

Every floating tensor that an operation reads is widened on its way in and every floating result on
its way out, so that no value is rounded to less than float64, whatever the model asks for
(`.float()`, `.to(torch.float16)`, `dtype=torch.float32`). One widened weight is alive at a time.

What the model writes in place into its own parameters and buffers goes into float64 shadows, which
later reads within the same `with` block see and which are dropped at its end: the model itself is
never changed. A write through a view of such a tensor cannot be followed and is refused.

Outside its reach: code that PyTorch does not show to function modes (TorchScript modules, custom
operators without float64 kernels); quantised and float8 tensors are passed on as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ModelError

_WIDE: Mapping[torch.dtype, torch.dtype] = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}

# By name: torch's stubs do not know all of these methods.
_CASTS: Mapping[Any, Any] = {
    getattr(Tensor, narrow): getattr(Tensor, wide)
    for narrow, wide in {
        "float": "double",
        "half": "double",
        "bfloat16": "double",
        "cfloat": "cdouble",
        "chalf": "cdouble",
    }.items()
}

# They read no value, so a weight need not be widened for them.
_QUERIES = frozenset(
    [
        Tensor.size,
        Tensor.dim,
        Tensor.numel,
        Tensor.stride,
        Tensor.__len__,
        Tensor.is_contiguous,
        Tensor.untyped_storage,
        Tensor.data_ptr,
        Tensor.is_floating_point,
        Tensor.is_complex,
        Tensor.requires_grad_,
        torch.is_floating_point,
        torch.is_complex,
        torch.numel,
    ]
)

# They pick elements and round nothing. Widening a whole weight for each of its slices would be
# quadratic in the number of slices.
_PICKS = frozenset(
    [
        Tensor.__getitem__,
        Tensor.narrow,
        Tensor.select,
        Tensor.split,
        Tensor.chunk,
        Tensor.unbind,
        torch.narrow,
        torch.select,
        torch.split,
        torch.chunk,
        torch.unbind,
    ]
)

_SETTERS = frozenset(["__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"]) | {
    f"__i{name}__" for name in ("div", "floordiv", "mod", "pow", "and", "or", "xor", "lshift")
}

# Where these norms take "use batch statistics", as a position and as a keyword.
_NORM_TRAINING = {"batch_norm": (5, "training"), "instance_norm": (5, "use_input_stats")}


class Float64(TorchFunctionMode):
    """Context manager under which everything is computed in float64; see the module's docstring.

    `model`, if given, is the module whose parameters and buffers must come out unchanged, whatever
    their dtype. `native` are tensors that take part in a decision which only their own dtype makes
    right (a learned-group map: two float32 softmax values tie where float64 ones do not): what is
    computed from them alone stays in their dtype until it meets another tensor.

    Raises ModelError, naming the tensor, where the model writes into a view of its own state.
    """

    def __init__(self, model: nn.Module | None = None, native: Iterable[Tensor] = ()) -> None:
        super().__init__()
        named = {} if model is None else named_state(model)
        # The tensors are kept too: an id says something only while its tensor lives.
        self._state = {id(tensor): (name, tensor) for name, tensor in named.items()}
        self._native = {id(tensor): tensor for tensor in native}
        self._shadows: dict[int, Tensor] = {}
        self._shadowed: dict[int, Tensor] = {}

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._shadows.clear()
        self._shadowed.clear()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        name = operator_name(func)
        if func in _QUERIES:
            return func(*args, **named)
        if name == "__set__":
            self._refuse_write(args[0])
            return func(*args)
        if self._native and self._is_native((args, named)):
            return _replace(func(*args, **named), _mark_native)
        for target in _written(func, name, args, named):
            self._shadow(target)

        keep_dtype = func in _PICKS or name == "__get__"
        call = _Call(self, keep_dtype)
        args, named = _replace((args, named), call.take)
        result = call.run(*_wide_cast(func, args), named)
        return result if func in _PICKS else _replace(result, self._give_back)

    def _is_native(self, values: Any) -> bool:
        floats = [tensor for tensor in _tensors(values) if tensor.dtype in _WIDE]
        return bool(floats) and all(
            id(tensor) in self._native or hasattr(tensor, "_groupfx_native") for tensor in floats
        )

    def _give_back(self, value: Any) -> Any:
        """An in-place operation returns the very tensor it was called on, not its shadow."""
        if id(value) in self._shadowed:
            return self._shadowed[id(value)]
        wide = widen(value)
        if wide is not value and hasattr(value, "_groupfx_owner"):
            wide._groupfx_owner = value._groupfx_owner
        return wide

    def _shadow(self, target: Tensor) -> None:
        if id(target) in self._shadows:
            return
        if id(target) not in self._state:
            self._refuse_write(target)
        if id(target) in self._state or target.dtype in _WIDE:
            wide = _WIDE.get(target.dtype, target.dtype)
            shadow = target.detach().to(wide, copy=True)
            self._shadows[id(target)] = shadow
            self._shadowed[id(shadow)] = target

    def _refuse_write(self, target: Tensor) -> None:
        owner = self._owner(target)
        if owner is not None:
            raise ModelError(
                f"the model writes into a view of its own {owner} while it runs, which cannot be "
                f"followed in float64; write to {owner} itself, or leave out this check"
            )

    def _owner(self, tensor: Tensor) -> str | None:
        if id(tensor) in self._state:
            return self._state[id(tensor)][0]
        return getattr(tensor, "_groupfx_owner", None)


class _Call:
    """One operation: its arguments widened, and its results that alias the state marked so."""

    def __init__(self, mode: Float64, keep_dtype: bool) -> None:
        self._mode = mode
        self._keep_dtype = keep_dtype
        self._owners: dict[int, str] = {}  # by storage

    def take(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return _WIDE.get(value, value) if isinstance(value, torch.dtype) else value
        shadow = self._mode._shadows.get(id(value))
        if shadow is not None:
            return shadow
        taken = value if self._keep_dtype else widen(value)
        owner = self._mode._owner(value)
        if owner is not None:
            self._owners[storage(taken)] = owner
        return taken

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        result = func(*args, **named)
        if not self._owners:
            return result
        for tensor in _tensors(result):
            owner = self._owners.get(storage(tensor))
            if owner is not None and id(tensor) not in self._mode._state:
                tensor._groupfx_owner = owner  # type: ignore[attr-defined]
        return result


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by full name; a tied tensor appears under each of its names."""
    state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    state.update(model.named_buffers(remove_duplicate=False))
    return state


def widen(value: Any) -> Any:
    """A floating tensor in float64, a complex one in complex128; anything else as it is."""
    if isinstance(value, torch.dtype):
        return _WIDE.get(value, value)
    if not isinstance(value, Tensor) or value.dtype not in _WIDE:
        return value
    return value.to(_WIDE[value.dtype])


def operator_name(func: Any) -> str:
    """The name of a function, method or `torch.ops` operator, without overload: `conv2d`."""
    schema = getattr(func, "_schema", None)
    return str(getattr(func, "__name__", "") if schema is None else schema.name.split("::")[-1])


def storage(tensor: Tensor) -> int:
    """An identity of the memory behind a tensor, which its views share.

    0 for those that have none, such as sparse ones and the wrappers of vmap.
    """
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:
        return 0


def _mark_native(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in _WIDE:
        value._groupfx_native = True  # type: ignore[attr-defined]
    return value


def _written(
    func: Any, name: str, args: tuple[Any, ...], named: Mapping[str, Any]
) -> Iterator[Tensor]:
    """The tensors that a call writes to."""
    yield from _tensors(named.get("out"))
    schema = getattr(func, "_schema", None)
    if schema is not None:
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                yield from _tensors(_argument(args, named, position, argument.name))
    if name in _NORM_TRAINING and _argument(args, named, *_NORM_TRAINING[name]):
        running = [*args[1:5], named.get("running_mean"), named.get("running_var")]
        yield from (t for t in _tensors(running) if not isinstance(t, nn.Parameter))
    in_place = name.endswith("_") and not name.endswith("__")
    if in_place or name in _SETTERS or named.get("inplace"):
        yield from _tensors(args[:1])


def _argument(args: tuple[Any, ...], named: Mapping[str, Any], position: int, name: str) -> Any:
    return args[position] if position < len(args) else named.get(name)


def _wide_cast(func: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """`x.float()` becomes `x.double()`, `x.type(torch.HalfTensor)` `x.type(torch.DoubleTensor)`."""
    if func is not Tensor.type or len(args) < 2:
        return _CASTS.get(func, func), args
    wanted = args[1]
    if isinstance(wanted, type):
        wanted = f"{wanted.__module__}.{wanted.__name__}"
    if isinstance(wanted, str):
        for narrow in ("BFloat16Tensor", "FloatTensor", "HalfTensor"):
            wanted = wanted.replace(narrow, "DoubleTensor")
    return func, (args[0], wanted, *args[2:])


def _replace(value: Any, change: Callable[[Any], Any]) -> Any:
    """`change` applied to every leaf of nested tuples, lists and dicts."""
    if isinstance(value, tuple):
        parts = [_replace(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, list):
        return [_replace(part, change) for part in value]
    if isinstance(value, dict):
        return {key: _replace(part, change) for key, part in value.items()}
    return change(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
