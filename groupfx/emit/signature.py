"""The arguments of `forward` and what it returns, for traced and for exported graphs.

An exported graph takes and gives flat lists of tensors, and says beside it how they were nested.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..errors import RewriteError
from .imports import RESERVED, Imports
from .layout import Doc, bracket, call, entry
from .literals import is_name, literal, named_arguments, quoted

_Write = Callable[[Any], Doc]


@dataclass(frozen=True)
class Built:
    """A value of a class of its own, made from parts: a named tuple, a model's output."""

    kind: type
    named: Mapping[str, Any]

    def doc(self, imports: Imports, write: _Write) -> Doc:
        """The call that makes it."""
        named = {name: write(value) for name, value in self.named.items()}
        if self.kind is OrderedDict:
            pairs = [entry(Doc(quoted(name)), value) for name, value in named.items()]
            head = imports.callable(self.kind)
            return call(head, [bracket("", pairs, "{")])
        return call(imports.callable(self.kind), named_arguments(named))


@dataclass(frozen=True)
class Signature:
    """`parameters` as they stand in the definition; the variable or the expression of each input.

    `parts` are inputs inside an argument, such as `images[0]`. `output` is what is returned, with
    nodes where the graph computes something; `returns` is its annotation.
    """

    parameters: tuple[str, ...]
    variables: Mapping[fx.Node, str]
    output: Any
    parts: Mapping[fx.Node, Doc] = field(default_factory=dict)
    returns: str | None = None


def read_signature(graph: fx.Graph, forward: Callable[..., Any], imports: Imports) -> Signature:
    """The signature of `graph`, which was made from the original's `forward`.

    Raises RewriteError for arguments that have no plain names.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    last = next(node for node in graph.nodes if node.op == "output")
    output = last.args[0]
    info = getattr(graph._codegen, "pytree_info", None)
    if info is not None:
        return _nested(inputs, output, info, imports)
    original = _parameters_like(inputs, forward)
    names = [p.name for p in original] if original else [str(node.target) for node in inputs]
    _require_names(names)
    if original:
        texts = tuple(_original_texts(original, imports))
    else:
        texts = tuple(
            _parameter(name, node.args, _is_tensor(node.type), imports)
            for name, node in zip(names, inputs, strict=True)
        )
    returns = imports.member("torch", "Tensor") if _is_tensor(last.type) else None
    return Signature(texts, dict(zip(inputs, names, strict=True)), output, returns=returns)


def _require_names(names: Sequence[str]) -> None:
    for name in names:
        if not is_name(name):
            raise RewriteError(f"the argument {name!r} of forward has no plain name")
        if name in RESERVED - {"x", "input"} - _UNUSED_BUILTINS:
            raise RewriteError(
                f"the argument {name!r} of forward has the name of something that the file needs: "
                "rename it"
            )


# Builtins that an emitted file never uses, and that are usual names of arguments.
_UNUSED_BUILTINS = frozenset(
    {"input", "filter", "id", "type", "format", "hash", "next", "object", "vars", "iter", "all"}
)


def _parameters_like(
    inputs: Sequence[fx.Node], forward: Callable[..., Any]
) -> list[inspect.Parameter]:
    """Parameters of the original, where each of them became one input of the graph."""
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        return []
    if len(parameters) != len(inputs):
        return []
    variadic = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    same = all(
        str(node.target) == p.name or str(node.target).startswith(f"{p.name}_")
        for node, p in zip(inputs, parameters, strict=True)
    )
    return [] if variadic or not same else parameters


def _original_texts(parameters: Sequence[inspect.Parameter], imports: Imports) -> Iterator[str]:
    """The parameters with `/` and `*` where the original has them."""
    last = None
    for parameter in parameters:
        kind = parameter.kind
        if last is parameter.POSITIONAL_ONLY and kind is not last:
            yield "/"
        if kind is parameter.KEYWORD_ONLY and last is not kind:
            yield "*"
        default = () if parameter.default is parameter.empty else (parameter.default,)
        yield _parameter(parameter.name, default, _is_tensor(parameter.annotation), imports)
        last = kind
    if last is inspect.Parameter.POSITIONAL_ONLY:
        yield "/"


def _parameter(name: str, default: Sequence[Any], is_tensor: bool, imports: Imports) -> str:
    text = f"{name}: {imports.member('torch', 'Tensor')}" if is_tensor else name
    if not default:
        return text
    value = literal(default[0], imports).flat
    return f"{text} = {value}" if is_tensor else f"{text}={value}"


def _is_tensor(annotation: object) -> bool:
    return annotation is torch.Tensor or annotation in ("Tensor", "torch.Tensor")


# Exported graphs


def _nested(inputs: Sequence[fx.Node], output: Any, info: Any, imports: Imports) -> Signature:
    names = [str(name) for name in info.orig_args]
    _require_names(names)
    variables: dict[fx.Node, str] = {}
    parts: dict[fx.Node, Doc] = {}
    left = iter(inputs)
    for name, spec in zip(names, _arguments(info.in_spec, len(names)), strict=True):
        if spec.is_leaf():
            variables[next(left)] = name
            continue
        for path in _paths(spec, name):
            parts[next(left)] = Doc(path)
    if info.out_spec is not None:
        leaves = iter(output if isinstance(output, list | tuple) else [output])
        output = _unflattened(info.out_spec, leaves)
    return Signature(tuple(names), variables, output, parts)


def _arguments(spec: Any, count: int) -> list[Any]:
    """One specification for each argument, the positional ones first."""
    positional, named = spec.children() if spec.num_children == 2 else (spec, None)
    children = list(positional.children())
    if named is not None and named.type is dict:
        children += named.children()
    if len(children) != count:
        raise RewriteError("the arguments of the exported graph do not fit their names")
    return children


def _paths(spec: Any, path: str) -> Iterator[str]:
    """Expressions for the leaves of an argument, in order."""
    if spec.is_leaf():
        yield path
        return
    if issubclass(spec.type, dict):
        keys: Sequence[Any] = _keys(spec)
    elif issubclass(spec.type, list | tuple):
        keys = range(spec.num_children)
    else:
        raise RewriteError(f"an argument is a {spec.type.__name__}, which is not taken apart here")
    for key, child in zip(keys, spec.children(), strict=True):
        yield from _paths(child, f"{path}[{quoted(key) if isinstance(key, str) else repr(key)}]")


def _keys(spec: Any) -> list[Any]:
    """Keys of a dict-like specification; plain ones only."""
    context = spec.context[1] if spec.type.__name__ == "defaultdict" else spec.context
    if not isinstance(context, list | tuple) or not all(type(key) in (str, int) for key in context):
        raise RewriteError(f"the keys of a {spec.type.__name__} cannot be written as Python")
    return list(context)


def _unflattened(spec: Any, leaves: Iterator[Any]) -> Any:
    """The structure that the graph's outputs stand in."""
    if spec.is_leaf():
        return next(leaves)
    values = [_unflattened(child, leaves) for child in spec.children()]
    if spec.type is tuple:
        return tuple(values)
    if spec.type is list:
        return values
    if spec.type is dict:
        return dict(zip(_keys(spec), values, strict=True))
    if issubclass(spec.type, tuple) and hasattr(spec.type, "_fields"):
        return Built(spec.type, dict(zip(spec.type._fields, values, strict=True)))
    if issubclass(spec.type, dict) and _is_made_of_keys(spec):
        return Built(spec.type, dict(zip(_keys(spec), values, strict=True)))
    raise RewriteError(f"forward returns a {spec.type.__name__}, which cannot be written as Python")


def _is_made_of_keys(spec: Any) -> bool:
    """Whether a dict-like class gives the same when it is called with its keys."""
    marks = [str(k) for k in range(spec.num_leaves)]
    keys = _keys(spec)
    if not all(isinstance(key, str) for key in keys) or len(marks) != len(keys):
        return False
    if spec.type is OrderedDict:
        return True
    try:
        made = spec.type(**dict(zip(keys, marks, strict=True)))
        return bool(made == pytree.tree_unflatten(marks, spec))
    except Exception:
        # A class that refuses such a call is not made that way.
        return False
