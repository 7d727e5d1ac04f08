"""A model copied, whatever it is made of; or what it holds that Python cannot copy, by name."""

import copy
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import fx, nn

from ..convs.names import joined
from ..convs.spec import marked_like
from ..errors import ModelError, kind_and_line
from .overlaps import overlapping

# What holds modules and tensors, each of which is looked at on its own.
_HELD = ("_modules", "_parameters", "_buffers")
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def share_tensors(model: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy` under which the copy holds the very parameters of `model`.

    Buffers are copied: a forward may write to them.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    memo.update(_detached_attributes(model))
    return memo


def _detached_attributes(model: nn.Module) -> dict[int, Any]:
    """Plain tensors on modules, without their history: deepcopy refuses a tensor that has one."""
    return {
        id(value): value.detach()
        for module in model.modules()
        for value in module.__dict__.values()
        if isinstance(value, torch.Tensor) and value.grad_fn is not None
    }


def _python_modules(model: nn.Module) -> dict[int, Any]:
    """Modules of Python's that a model keeps as attributes: there is one of each."""
    values = (value for module in model.modules() for value in vars(module).values())
    return {id(value): value for value in values if isinstance(value, ModuleType)}


def _complete(model: nn.Module, memo: dict[int, Any]) -> None:
    """Give each copy what Python, TorchScript or a `GraphModule` leaves behind in copying."""
    for parameter in model.parameters():
        twin = memo.get(id(parameter))
        if twin is not None and twin is not parameter:
            marked_like(parameter, twin)
            _keep_gradient_hooks(parameter, twin)
            _keep_strides(parameter, twin)
    for group in overlapping(model):
        _keep_together(list(group.values()), memo)
    for module in model.modules():
        twin = memo.get(id(module))
        if isinstance(module, torch.jit.ScriptModule) and twin is not None:
            # Its tensors were made by `clone`, and lie behind no parameter of Python's.
            for own, other in zip(twin.parameters(), module.parameters(), strict=True):
                own.requires_grad_(other.requires_grad)
        if not isinstance(module, fx.GraphModule) or twin is None or twin is module:
            continue
        twin.training = module.training
        for name, value in module.__dict__.items():
            if name not in twin.__dict__:
                twin.__dict__[name] = copy.deepcopy(value, memo)
        _keep_hooks(module, twin, memo)


def _keep_hooks(module: nn.Module, twin: nn.Module, memo: dict[int, Any]) -> None:
    for name in _HOOKS:
        for key, hook in module.__dict__[name].items():
            # torch.export looks at inputs of the sizes that it saw: no part of the function.
            if not str(getattr(hook, "__module__", "")).startswith("torch.export"):
                twin.__dict__[name].setdefault(key, copy.deepcopy(hook, memo))


def has_gradient_hooks(tensor: torch.Tensor) -> bool:
    """Whether the user looks at, or changes, the gradients of `tensor`."""
    return bool(tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None))


def _keep_together(tensors: Sequence[torch.Tensor], memo: Mapping[int, Any]) -> None:
    """Let the copies of tensors that lie on one another do so too."""
    twins = [memo.get(id(tensor), tensor) for tensor in tensors]
    if any(twin is own for twin, own in zip(twins, tensors, strict=True)):
        return  # not copied
    memory = tensors[0].untyped_storage().clone()
    for tensor, twin in zip(tensors, twins, strict=True):
        place = tensor.storage_offset(), tensor.size(), tensor.stride()
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        twin.data = empty.set_(memory, *place)


def _keep_strides(parameter: nn.Parameter, twin: nn.Parameter) -> None:
    """Python's copy of one that leaves elements out, or has some several times, lies densely."""
    if parameter.layout is not torch.strided or parameter.stride() == twin.stride():
        return
    pairs = zip(parameter.shape, parameter.stride(), strict=True)
    span = 1 + sum((size - 1) * stride for size, stride in pairs)
    memory = parameter.detach().as_strided((span,), (1,)).clone()
    twin.data = memory.as_strided(parameter.shape, parameter.stride())


def _keep_gradient_hooks(parameter: nn.Parameter, twin: nn.Parameter) -> None:
    """A parameter that was copied is trained as it was: by the very hooks of the user's."""
    for hook in (parameter._backward_hooks or {}).values():
        twin.register_hook(hook)
    for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
        twin.register_post_accumulate_grad_hook(hook)


def copied(
    model: nn.Module, *, share: bool, instead: Mapping[nn.Module, nn.Module] | None = None
) -> nn.Module:
    """A deep copy of `model`, which shares its parameters or has its own.

    Where a module is a key of `instead`, the copy holds the other module itself. Raises
    `ModelError`, with what is in the way, where Python cannot copy the model.
    """
    memo = share_tensors(model) if share else _detached_attributes(model)
    memo.update(_python_modules(model))
    memo.update({id(old): new for old, new in (instead or {}).items()})
    replaced = {each for new in (instead or {}).values() for each in new.modules()}
    try:
        with torch.no_grad():
            twin = copy.deepcopy(model, memo)
        _complete(model, memo)
    except Exception as error:
        what = f"{type(model).__name__} cannot be copied{_because_of(model)}"
        raise ModelError(
            f"{what} ({kind_and_line(error)}): this works on a copy so that your model stays "
            "as it is; pass inplace=True to work on the model itself"
        ) from error
    own = {id(module) for module in model.modules()}
    same = next(
        (p for p, each in twin.named_modules() if each not in replaced and id(each) in own), None
    )
    if same is not None:
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {same or 'it'} gives itself where a copy is "
            "asked for (its __deepcopy__); pass inplace=True to work on the model itself"
        )
    return twin


def _because_of(model: nn.Module) -> str:
    """`, because of its NAME` for the first attribute or tensor that cannot be copied alone."""
    modules = {id(module): module for module in model.modules()}
    for path, module in model.named_modules():
        fields = {name: value for name, value in vars(module).items() if name not in _HELD}
        for name, value in {**fields, **module._parameters, **module._buffers}.items():
            detached = isinstance(value, torch.Tensor) and value.grad_fn is not None
            try:
                copy.deepcopy(value.detach() if detached else value, dict(modules))
            except Exception:
                return f", because of its {joined(path, name)}"
    return ""
