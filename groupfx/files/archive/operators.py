"""The functions that a graph in a file may call, by name.

A graph from a file runs with the rights of whoever runs the model. So it may only call functions
that compute on values: no function here takes a file name, a callable, a pointer or source text.

- `torch`, `torch.nn.functional`, `torch.linalg`, `torch.fft`, `torch.special`: what torch itself
  lists as overridable, that is, functions of tensors, plus those that make new tensors;
- `torch.ops.aten` and `torch.ops.prims`: overloads that the dispatcher knows and whose schema has
  only tensors, numbers, dtypes and the like;
- operators that run a graph of the same file: on a condition, in a loop, in another grad mode;
- `operator`, `math` and a few builtins;
- methods of `torch.Tensor` from the same list, and reads of attributes that hold no secrets.
"""

import builtins
import functools
import math
import operator
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
import torch._higher_order_ops
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.nn import functional

from ..names import Damaged

Function = Callable[..., Any]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Attributes of a tensor that `getattr` may read in a graph.
ATTRIBUTES = _words("""
    H T device dtype imag indices is_complex is_cuda is_floating_point itemsize layout mH mT nbytes
    ndim real requires_grad shape start step stop values
""")
_OPERATORS = _words("""
    abs add and_ concat contains eq floordiv ge getitem gt iadd iand ifloordiv ilshift imatmul imod
    imul index inv invert ior ipow irshift is_ is_not isub itruediv ixor le lshift lt matmul mod mul
    ne neg not_ or_ pos pow rshift setitem sub truediv truth xor
""")
_BUILTINS = _words("""
    abs all any bool dict divmod float getattr int len list max min pow range round slice sum tuple
""")
_TORCH_EXTRA = _words("""
    _assert _weight_norm arange as_strided as_tensor bartlett_window blackman_window empty eye fill
    full hamming_window hann_window kaiser_window linspace logspace normal ones rand rand_like
    randint randint_like randn randn_like randperm scalar_tensor sym_float sym_int sym_ite sym_max
    sym_min sym_not sym_sum tensor tril_indices triu_indices zeros
""")
_FUNCTIONAL_EXTRA = _words("""
    hardsigmoid hardswish logsigmoid sigmoid tanh upsample upsample_bilinear upsample_nearest
""")
_FFT_EXTRA = _words("fftfreq rfftfreq")
_MATH = frozenset(name for name in dir(math) if callable(getattr(math, name)) and name[0] != "_")

# Kernels of single back ends, kernels that trust their arguments, and what reaches storage.
_NOT_FOR_FILES = re.compile(
    r"quantize|^q_|^int_repr|^fbgemm|^miopen|mkldnn|^cudnn|sparse|nested|backward|fused_moving"
    r"|choose_qparams|batch_norm_(elemt|gather|stats|update)|storage|_ptr$|^pin_memory|_hook$"
    r"|^from_file|^set(_|$)|^data$|^record_stream|seed$|^resize|^requires_grad|^retain"
)
_PRIVATE_ATEN = _words("""
    _adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async _assert_scalar _assert_tensor_metadata
    _cdist_forward _convolution _embedding_bag _embedding_bag_forward_only _euclidean_dist
    _log_softmax _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training _pdist_forward _reshape_copy _safe_softmax
    _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu _softmax _stack
    _to_copy _trilinear _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm
    _weight_norm_interface
""")
_ATEN_ARGUMENT = re.compile(
    r"(Optional\[|List\[)*(Tensor|int|bool|float|complex|number|Device|str|Generator)\]*\Z"
)
_FILE_ARGUMENT = re.compile(r"file|path", re.IGNORECASE)

_NOT_METHODS = _words("""
    apply_ as_subclass dim_order is_set_to is_shared map2_ map_ module_load numpy reinforce rename
    rename_ share_memory_
""")
_METHODS_EXTRA = _words("""
    detach_ new_empty new_full new_ones new_tensor new_zeros stride unflatten unsafe_chunk
    unsafe_split
""")
_OPERATOR_METHOD = re.compile(
    r"__(r|i)?(add|and|div|floordiv|lshift|matmul|mod|mul|or|pow|rshift|sub|truediv|xor)__\Z"
    r"|__(abs|bool|contains|eq|float|ge|getitem|gt|index|int|invert|le|len|lt|ne|neg|pos"
    r"|setitem)__\Z"
)
# Operators that are given a graph, which is a module of the file, and run it.
_RUN_GRAPHS = _words("""
    cond map_impl tag_activation_checkpoint while_loop wrap_with_autocast
    wrap_with_set_grad_enabled
""")
_HIGHER_ORDER = "torch.ops.higher_order."
# Methods of what a graph handles besides tensors: sizes, tuples, lists and dicts.
_CONTAINER_METHODS = _words("count get index items keys values")


def function_name(function: object) -> str | None:
    """Name under which `function` stands in a file; None if a file may not hold it."""
    if isinstance(function, OpOverload):
        name = f"torch.ops.{function.namespace}.{_packet(function)}.{function._overloadname}"
        return name if _is_allowed_overload(function) else None
    if isinstance(function, HigherOrderOperator):
        return f"{_HIGHER_ORDER}{function.name()}" if function.name() in _RUN_GRAPHS else None
    return _names().get(id(function))


def function_of(name: object) -> Function:
    """The function with that name. Raises `Damaged` for a name that is not on the list."""
    if not isinstance(name, str):
        raise Damaged(f"an operator is named by a {type(name).__name__}")
    if name.startswith(_HIGHER_ORDER) and name.removeprefix(_HIGHER_ORDER) in _RUN_GRAPHS:
        found: Function = getattr(torch.ops.higher_order, name.removeprefix(_HIGHER_ORDER))
        return found
    if name.startswith("torch.ops."):
        return _overload(name)
    if name not in _functions():
        raise Damaged(f"the operator {name[:80]!r} is not one that a file may call")
    return _functions()[name]


@functools.cache
def methods() -> frozenset[str]:
    """Names of the methods that a graph in a file may call."""
    listed = set(torch.overrides.get_overridable_functions()[torch.Tensor])
    found = set(_CONTAINER_METHODS | _METHODS_EXTRA)
    for name in dir(torch.Tensor):
        # dir lists names that only an instance has.
        method = getattr(torch.Tensor, name, None)
        if callable(method) and method in listed and _is_allowed_method(name):
            found.add(name)
    return frozenset(found)


def _is_allowed_method(name: str) -> bool:
    if name.startswith("_"):
        return bool(_OPERATOR_METHOD.match(name))
    return name not in _NOT_METHODS and not _NOT_FOR_FILES.search(name)


@functools.cache
def _functions() -> dict[str, Function]:
    rooms = (torch, functional, torch.linalg, torch.fft, torch.special, torch.functional)
    found = {name: function for room in rooms for name, function in _overridable(room)}
    # What a trace leaves of an argument that was not given.
    found["torch.fx._symbolic_trace._assert_is_none"] = fx._symbolic_trace._assert_is_none
    extra = (
        (torch, _TORCH_EXTRA),
        (functional, _FUNCTIONAL_EXTRA),
        (torch.fft, _FFT_EXTRA),
        (operator, _OPERATORS),
        (builtins, _BUILTINS),
        (math, _MATH),
    )
    for room, names in extra:
        # Torch versions differ a little in what they have.
        present = (name for name in names if hasattr(room, name))
        found.update((f"{room.__name__}.{name}", getattr(room, name)) for name in present)
    return found


def _overridable(room: ModuleType) -> Iterator[tuple[str, Function]]:
    """Functions of `room` that torch lists, and the in-place twin (`relu_`) of each."""
    listed = set(torch.overrides.get_overridable_functions()[room])
    for name in dir(room):
        function = getattr(room, name)
        # torch.autocast is a class, and in the list for reasons of its own.
        if not callable(function) or isinstance(function, type) or function not in listed:
            continue
        if name.startswith("_") or _NOT_FOR_FILES.search(name):
            continue
        yield f"{room.__name__}.{name}", function
        twin = getattr(room, f"{name}_", None)
        if callable(twin):
            yield f"{room.__name__}.{name}_", twin


@functools.cache
def _names() -> dict[int, str]:
    """Name of each function by its id; the first of several names counts."""
    names: dict[int, str] = {}
    for name, function in _functions().items():
        names.setdefault(id(function), name)
    return names


def _packet(function: OpOverload) -> str:
    return function._schema.name.partition("::")[2]


def _overload(name: str) -> OpOverload:
    parts = name.split(".")
    found: Any = None
    if len(parts) == 5 and parts[2] in ("aten", "prims") and all(p.isidentifier() for p in parts):
        packet = getattr(getattr(torch.ops, parts[2]), parts[3], None)
        found = getattr(packet, parts[4], None)
    if not isinstance(found, OpOverload) or not _is_allowed_overload(found):
        raise Damaged(f"the operator {name[:80]!r} is not one that a file may call")
    return found


@functools.cache
def _is_allowed_overload(function: OpOverload) -> bool:
    packet = _packet(function)
    if function.namespace not in ("aten", "prims") or _NOT_FOR_FILES.search(packet):
        return False
    if packet.startswith("_") and packet not in _PRIVATE_ATEN:
        return False
    schema = function._schema
    if not torch._C._dispatch_has_kernel(function.name()):
        return False
    return all(
        _ATEN_ARGUMENT.match(str(argument.type)) and not _FILE_ARGUMENT.search(argument.name)
        for argument in schema.arguments
    )
