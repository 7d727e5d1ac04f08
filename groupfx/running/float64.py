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
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..convs.names import joined
from ..errors import ModelError
from .pointwise import product_of

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
        *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "device", "requires_grad")),
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

# Of one tensor; what is computed of a float64 one is float64.
_OF_ONE: Collection[Any] = frozenset(
    [
        *(F.relu, F.dropout, F.hardtanh, F.glu, torch.flatten),
        *(getattr(Tensor, name) for name in ("view", "reshape", "transpose", "permute", "flatten")),
        *(getattr(Tensor, name) for name in ("contiguous", "squeeze", "unsqueeze")),
    ]
)

_SETTERS = frozenset(["__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"]) | {
    f"__i{name}__" for name in ("div", "floordiv", "mod", "pow", "and", "or", "xor", "lshift")
}

# Their results are new tensors, which share no memory with what they read; the first of them take
# a weight as their second argument, which may be large.
_WEIGHTED: Collection[Any] = (
    *(torch.conv1d, torch.conv2d, torch.conv3d, F.linear),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
)
_NEW = frozenset(
    [
        *(*_WEIGHTED, F.batch_norm, F.layer_norm, F.relu, F.gelu, F.silu, F.softmax, torch.cat),
        *(F.scaled_dot_product_attention, F.adaptive_avg_pool2d, F.adaptive_avg_pool1d),
        *(getattr(place, name) for place in (torch, Tensor) for name in ("add", "sub", "mul")),
        *(getattr(place, name) for place in (torch, Tensor) for name in ("matmul", "bmm", "relu")),
        *(getattr(place, name) for place in (torch, Tensor) for name in ("sigmoid", "tanh")),
    ]
)

# Their scales and zero points must be float32, whatever they quantize.
_FAKE_QUANTIZERS = frozenset(
    ["fake_quantize_per_channel_affine", "fake_quantize_per_tensor_affine"]
)

_NUMBERS = frozenset([int, float, bool, type(None)])

# What a function takes of the dtype in which it computes, where it is not given: by its name its
# position, and which limit of the dtype it is.
_RMS_NORM = {"eps": (3, "eps")}
_NAN_TO_NUM = {"posinf": (2, "max"), "neginf": (3, "min")}
_LIMITS: Mapping[Any, Mapping[str, tuple[int, str]]] = {
    **dict.fromkeys((F.rms_norm, torch.rms_norm), _RMS_NORM),
    **dict.fromkeys((torch.nan_to_num, torch.nan_to_num_), _NAN_TO_NUM),
    **dict.fromkeys((Tensor.nan_to_num, Tensor.nan_to_num_), _NAN_TO_NUM),
}

# Where these norms take "use batch statistics", as a position and as a keyword.
_NORM_TRAINING = {"batch_norm": (5, "training"), "instance_norm": (5, "use_input_stats")}


class Float64(TorchFunctionMode):
    """Context manager under which everything is computed in float64; see the module's docstring.

    `model`, if given, is the module whose parameters and buffers must come out unchanged, whatever
    their dtype. `native` are tensors that take part in a decision which only their own dtype makes
    right (a learned-group map: two float32 softmax values tie where float64 ones do not): what is
    computed from them alone stays in their dtype until it meets another tensor. With `products`,
    what `pointwise` tells of is computed as such: faster, and summed in another order.

    Raises ModelError, naming the tensor, where the model writes into a view of its own state.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        native: Iterable[Tensor] = (),
        *,
        products: bool = False,
    ) -> None:
        super().__init__()
        self._products = products
        named = {} if model is None else named_state(model)
        # The tensors are kept too: an id says something only while its tensor lives.
        self._state = {id(tensor): (name, tensor) for name, tensor in named.items()}
        self._native = {id(tensor): tensor for tensor in native}
        self._shadows: dict[int, Tensor] = {}
        self._shadowed: dict[int, Tensor] = {}
        self._room: dict[torch.dtype, Tensor] = {}

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._room.clear()
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
        for given, (place, limit) in _LIMITS.get(func, {}).items():
            if _argument(args, named, place, given) is None:
                own = getattr(self._own_limits(func, args, named), limit)
                args, named = _with_argument(args, named, place, given, own)
        if func in _QUERIES or (func in _PICKS and self._is_apart(args)):
            return func(*args, **named)
        if func in _OF_ONE and self._is_apart(args) and _is_wide_alone(args, named):
            return func(*args, **named)
        if func in _NEW and self._is_read_only(func, args, named):
            named = _replace(named, widen)
            product = self._product(func, args, named) if func in _WEIGHTED else None
            return widen(func(*self._widened(func, args), **named) if product is None else product)
        name = operator_name(func)
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
        if name in _FAKE_QUANTIZERS:
            args = args[0], *_replace(args[1:], _narrowed)
            named = {key: v if key == "input" else _narrowed(v) for key, v in named.items()}
        result = call.run(*_wide_cast(func, args), named)
        return result if func in _PICKS else _replace(result, self._give_back)

    def _is_apart(self, args: tuple[Any, ...]) -> bool:
        """Whether what elements are picked of has nothing to do with the model's own tensors."""
        return not (self._native or self._shadows) and bool(args) and self._owner(args[0]) is None

    def _own_limits(
        self, func: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]
    ) -> torch.finfo:
        """Those of the model's numbers, not of wider ones; a norm computes in float32 at least."""
        norm = _LIMITS[func] is _RMS_NORM
        state = (tensor for _, tensor in self._state.values() if tensor.is_floating_point())
        weight = _argument(args, named, 2, "weight") if norm else None
        like = next(state, args[0]) if weight is None else weight
        as_is = like.is_floating_point() and not norm
        return torch.finfo(like.dtype if as_is else torch.promote_types(like.dtype, torch.float32))

    def _is_read_only(
        self, func: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]
    ) -> bool:
        """Whether a function of `_NEW` writes to nothing, and reads nothing that was written to."""
        if self._native or self._shadows or named.get("out") is not None or named.get("inplace"):
            return False
        return func is not F.batch_norm or not _argument(args, named, *_NORM_TRAINING["batch_norm"])

    def _product(
        self, func: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]
    ) -> Tensor | None:
        """Of a convolution that is a product; its weight is never wide as a whole."""
        if not self._products or len(args) < 2 or torch.is_grad_enabled():
            return None
        return product_of(func, (widen(args[0]), *args[1:]), named, self._in_room)

    def _widened(self, func: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
        """The arguments in float64; a weight in memory that the next one takes over."""
        place = 1 if func in _WEIGHTED else None
        made = []
        for position, value in enumerate(args):
            if type(value) in _NUMBERS:
                made.append(value)
                continue
            own = position == place and id(value) in self._state
            kept = not own or torch.is_grad_enabled() or value.layout is not torch.strided
            made.append(_replace(value, widen) if kept else self._in_room(value))
        return made

    def _in_room(self, value: Tensor) -> Tensor:
        """`value` in float64, until the next one is asked for.

        To ask the system for the memory of each takes longer than to fill it.
        """
        wide, count = _WIDE.get(value.dtype), value.numel()
        if wide is None:
            return value
        room = self._room.get(wide)
        if room is None or room.numel() < count or room.device != value.device:
            room = self._room[wide] = value.new_empty(count, dtype=wide)
        return room[:count].view(value.shape).copy_(value)

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


def _is_wide_alone(args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    """Whether a float64 tensor is followed by plain numbers, none of which is a dtype."""
    first = args[0]
    others = _NUMBERS.issuperset(map(type, (*args[1:], *named.values())))
    return others and isinstance(first, Tensor) and first.dtype == torch.float64


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by full name; a tied tensor appears under each of its names."""
    return {
        joined(path, name): tensor
        for path, module in model.named_modules(remove_duplicate=False)
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def widen(value: Any) -> Any:
    """A floating tensor in float64, a complex one in complex128; anything else as it is."""
    if type(value) is Tensor or isinstance(value, Tensor):
        wide = _WIDE.get(value.dtype)
        return value if wide is None else value.to(wide)
    return _WIDE.get(value, value) if isinstance(value, torch.dtype) else value


def _narrowed(value: Any) -> Any:
    """A float64 tensor in float32."""
    wide = isinstance(value, Tensor) and value.dtype == torch.float64
    return value.float() if wide else value


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


def _with_argument(
    args: tuple[Any, ...], named: dict[str, Any], position: int, name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if position < len(args):
        return (*args[:position], value, *args[position + 1 :]), named
    return args, {**named, name: value}


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
    """`change`, which leaves plain numbers alone, applied to every leaf of nested containers."""
    kind = type(value)
    if kind in _NUMBERS or (kind is tuple and _NUMBERS.issuperset(map(type, value))):
        return value
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
