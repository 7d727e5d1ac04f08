"""What modules and calls say of channels beside their tensors: widths, groups, sizes of shapes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..convs.spec import BATCHNORMS, CONV_TYPES

_GROUPS, _GROUPS_OF_CONVOLUTION = 6, 8
_INSTANCE_NORMS = nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d


def fit_fields(module: nn.Module, groups: int | None) -> None:
    """Let a module's fields say what its tensors have; `groups` those of a convolution, if new."""
    weight = module._parameters.get("weight")
    if type(module) in CONV_TYPES and isinstance(weight, Tensor):
        _set_groups(module, groups)
        rows, columns = weight.shape[0], weight.shape[1] * int(module.groups)  # type: ignore[arg-type]
        transposed = CONV_TYPES[type(module)][1]
        inputs, outputs = (rows, columns) if transposed else (columns, rows)
        _set(module, {"in_channels": inputs, "out_channels": outputs})
    elif type(module) is nn.Linear and isinstance(weight, Tensor):
        _set(module, {"out_features": weight.shape[0], "in_features": weight.shape[1]})
    elif type(module) is nn.PReLU and isinstance(weight, Tensor):
        _set(module, {"num_parameters": weight.shape[0]})
    elif type(module) in (*BATCHNORMS, nn.SyncBatchNorm, *_INSTANCE_NORMS):
        held = (*module._parameters.values(), *module._buffers.values())
        widths = [len(tensor) for tensor in held if tensor is not None and tensor.dim()]
        _set(module, {"num_features": widths[0]} if widths else {})


def _set_groups(module: nn.Module, groups: int | None) -> None:
    if groups is not None:
        _set(module, {"groups": groups})


def _set(module: nn.Module, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        setattr(module, name, value)


def write_groups(node: fx.Node, groups: int) -> None:
    """Give a call of a convolution, functional or aten, another number of groups."""
    if "groups" in node.kwargs:
        node.update_kwarg("groups", groups)
        return
    general = node.target in (torch.ops.aten.convolution.default, torch.convolution)
    node.update_arg(_GROUPS_OF_CONVOLUTION if general else _GROUPS, groups)


def sizes_said(node: fx.Node) -> list[int | None] | None:
    """The sizes that a call of view, reshape or expand asks for, None for one that is computed.

    None where it is no such call.
    """
    given = _sizes_argument(node)
    if not isinstance(given, (list, tuple)):
        return None
    return [size if isinstance(size, int) else None for size in given]


def write_size(node: fx.Node, dim: int, size: int) -> None:
    """Let such a call ask for another size at `dim`; one that it leaves open stays so."""
    given: Any = _sizes_argument(node)
    if given[dim] == -1:
        return
    made = [*given[:dim], size, *given[dim + 1 :]]
    name = next((name for name in _SIZE_NAMES if name in node.kwargs), None)
    if name is not None:
        node.update_kwarg(name, made)
    elif len(node.args) == _ONE_ARGUMENT and isinstance(node.args[1], (list, tuple)):
        node.update_arg(1, made)
    else:
        node.args = (node.args[0], *made)


_SIZE_NAMES = ("size", "shape", "sizes")
_ONE_ARGUMENT = 2


def _sizes_argument(node: fx.Node) -> Any:
    named = next((node.kwargs[name] for name in _SIZE_NAMES if name in node.kwargs), None)
    if named is not None:
        return named
    if len(node.args) == _ONE_ARGUMENT and isinstance(node.args[1], (list, tuple)):
        return node.args[1]
    return node.args[1:]
