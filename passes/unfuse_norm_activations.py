"""Take a module that normalises and activates apart: a BatchNorm, then its activation.

Before:  y = m(x)                    m normalises by batch statistics, drops and activates in one
After:   y = act(drop(bn(x)))        bn a plain BatchNorm with the tensors of m

Libraries fuse the two (timm's `BatchNormAct2d`, in-place ABN and their kin), and a toolchain that
knows `BatchNorm2d` knows none of them. Their forward also reads its mode, so that no trace can be
made through it. Which modules those are is told by their structure: a subclass of a BatchNorm with
a forward of its own, or a module that holds the four tensors of one, and besides them activations
and dropout. What it computes is then tried, in both modes: what differs from the parts stays whole.
"""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from groupfx.convs.spec import BATCHNORMS, original_type
from groupfx.rewriting import OperationPass, Place, Skip, Spelling
from groupfx.running.unchanged import seed_torch, unchanged
from groupfx.tracing.hooks import lost_with

_TENSORS = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"
_BY_DIMS = {dims: kind for kind, dims in BATCHNORMS.items()}
_BY_NAME = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "identity": nn.Identity,
    "": nn.Identity,
}
_COMMON: tuple[nn.Module, ...] = (
    *(nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.LeakyReLU(), nn.ELU(), nn.GELU(), nn.Hardswish()),
)
_TRIES = (2, 3)


@dataclass(frozen=True)
class UnfuseNormActivations(OperationPass):
    """Modules that normalise and activate in one become a BatchNorm and an activation."""

    refuses = (
        "modules that compute something else than a BatchNorm and their own activation",
        "hooks on the module",
    )

    @classmethod
    def keeps_whole(cls, module: nn.Module) -> bool:
        return _is_candidate(module)

    def spell(self, place: Place) -> Spelling | Skip | None:
        module, path = place.module, str(place.node.target)
        parted = module is not None and place.is_restructured(path)
        if module is None or not (parted or _is_candidate(module)):
            return None
        hooks = place.store.hooks(module)
        if hooks:
            return Skip(lost_with(hooks))
        given = place.node.all_input_nodes
        shape = given[0].meta.get("shape") if len(given) == 1 else None
        if shape is None or len(place.node.args) + len(place.node.kwargs) != 1:
            return Skip("it is not called with one tensor")
        parts = module if parted else _parts(module, len(shape) - 2)
        if parts is None:
            return Skip(
                f"{type(module).__name__} computes something else than a BatchNorm and its own "
                "activation; write it as those two modules"
            )
        held = {name: f"bn.{name}" for name in (*module._parameters, *module._buffers)}

        def emit() -> object:
            place.restructure(path, parts, held)
            value = given[0]
            for name, _ in place.root.get_submodule(path).named_children():
                value = place.call_part(f"{path}.{name}", value)
                value.meta["shape"] = shape
            return value

        after = " + ".join(f"nn.{type(part).__name__}" for part in parts.children())
        return Spelling(after, (given[0],), emit)  # type: ignore[arg-type]


def _is_candidate(module: nn.Module) -> bool:
    """Whether it holds what a BatchNorm holds, and has a forward of its own."""
    kind = original_type(module)
    synced = kind is nn.SyncBatchNorm
    if kind in BATCHNORMS or (kind.__module__.startswith("torch.nn") and not synced):
        return False
    held = (*module._parameters.items(), *module._buffers.items())
    tensors = {name: tensor for name, tensor in held if tensor is not None}
    if not {*_TENSORS} <= tensors.keys() <= {*_TENSORS, _COUNTER}:
        return False
    sizes = {tuple(tensors[name].shape) for name in _TENSORS}
    inner = [child for child in module.modules() if child is not module]
    plain = all(not child.state_dict() for child in inner)
    return len(sizes) == 1 and len(next(iter(sizes))) == 1 and plain


def _parts(module: nn.Module, dims: int) -> nn.Module | None:
    """A holder of `bn` and what follows it, which computes what `module` does; None without one."""
    kind = next((each for each in BATCHNORMS if isinstance(module, each)), _BY_DIMS.get(dims))
    if kind is None or BATCHNORMS.get(kind) != max(dims, 1):
        return None
    norm = _batchnorm(module, cast(type[_BatchNorm], kind))
    for behind in _activations(module):
        holder = nn.Module()
        holder.training = module.training
        holder.add_module("bn", norm)
        for name, part in behind:
            holder.add_module(name, part)
        if _compute_the_same(module, holder, dims):
            return holder
    return None


def _batchnorm(module: nn.Module, kind: type[_BatchNorm]) -> _BatchNorm:
    """A plain BatchNorm with the very tensors of `module`."""
    fields: Any = module
    norm = kind(_channels(module), eps=fields.eps, momentum=getattr(module, "momentum", 0.1))
    norm.training = module.training
    for name in _TENSORS:
        held = norm._parameters if name in norm._parameters else norm._buffers
        source = module._parameters if name in module._parameters else module._buffers
        held[name] = source[name]  # type: ignore[assignment]
    if _COUNTER in module._buffers:
        norm._buffers[_COUNTER] = module._buffers[_COUNTER]
    else:
        norm._buffers[_COUNTER] = None
    return norm


def _channels(module: nn.Module) -> int:
    return {**module._parameters, **module._buffers}["running_mean"].numel()  # type: ignore[union-attr]


def _activations(module: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """What may follow the norm: the module's own children, or what an attribute names."""
    children = [
        (name, child)
        for name, child in module.named_children()
        if not isinstance(child, nn.Identity)
    ]
    for order in itertools.permutations(children):
        yield [(name if name != "bn" else "act", _out_of_place(child)) for name, child in order]
    named = getattr(module, "activation", None)
    if isinstance(named, str) and named in _BY_NAME:
        slope = getattr(module, "activation_param", 0.01)
        act = nn.LeakyReLU(slope) if named == "leaky_relu" else _BY_NAME[named]()
        yield [("act", act)]
    # Written out in its forward.
    yield from ([("act", copy.deepcopy(act))] for act in _COMMON if not children)


def _out_of_place(module: nn.Module) -> nn.Module:
    """The same, on a copy of its own; on a value of the graph's own, in place or not is one."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]
    return twin


def _compute_the_same(module: nn.Module, parts: nn.Module, dims: int) -> bool:
    """Whether both compute, and remember, the same in both modes, on a few inputs."""
    channels = _channels(module)
    for training in (False, True):
        before, after = copy.deepcopy(module), copy.deepcopy(parts)
        for side in (before, after):
            side.double().train(training)
        for batch in _TRIES:
            generator = torch.Generator().manual_seed(batch)
            sizes = (batch, channels, *(3 + n for n in range(dims)))
            x = torch.randn(sizes, generator=generator, dtype=torch.float64) * 3
            with unchanged(), torch.no_grad():
                # Of dropout, both sides draw the same.
                seed_torch(batch)
                try:
                    value = before(x.clone())
                except Exception:
                    return False
                seed_torch(batch)
                other = x.clone()
                for part in after.children():
                    other = part(other)
            if not isinstance(value, torch.Tensor) or not torch.equal(value, other):
                return False
        kept = dict(after.get_submodule("bn").named_buffers())
        if any(not torch.equal(tensor, kept[name]) for name, tensor in before.named_buffers()):
            return False
    return True
