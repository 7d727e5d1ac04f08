"""What tells two models apart, bit by bit: values, gradients, keys, ties, formats, modes.

`test_archive` feeds it models that differ in one of these and sees that it says so.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

SHAPE = (2, 6, 7, 5)


def example(model: nn.Module) -> Tensor:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    generator = torch.Generator().manual_seed(7)
    return torch.randn(SHAPE, generator=generator).to(min(dtypes, default=torch.float32, key=str))


def outcome(model: nn.Module) -> tuple[Any, dict[str, Tensor | None], dict[str, Tensor]]:
    """Outputs, gradients, and the state after one call, from one random state."""
    model = copy.copy(model)
    model.zero_grad()
    torch.manual_seed(3)
    outputs = model(example(model))
    leaves = [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.requires_grad]
    if leaves:
        sum((t.double() ** 2).nan_to_num(0).sum() for t in leaves).backward()
    gradients = {name: p.grad for name, p in model.named_parameters(remove_duplicate=False)}
    return outputs, gradients, {k: t.detach().clone() for k, t in model.state_dict().items()}


def differences(one: nn.Module, other: nn.Module) -> list[str]:
    """What tells two models apart: nothing, for a model and what came back from a file."""
    found = []
    for what, of in FACETS.items():
        if of(one) != of(other):
            found.append(what)
    saved = [{k: t.clone() for k, t in m.state_dict().items()} for m in (one, other)]
    (out, grads, state), (out2, grads2, state2) = outcome(one), outcome(other)
    one.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    leaves, leaves2 = pytree.tree_leaves(out), pytree.tree_leaves(out2)
    if pytree.tree_structure(out) != pytree.tree_structure(out2):
        found.append("structure of the outputs")
    if not all(identical(a, b) for a, b in zip(leaves, leaves2, strict=True)):
        found.append("outputs")
    if grads.keys() != grads2.keys() or not all(identical(grads[k], grads2[k]) for k in grads):
        found.append("gradients")
    if not all(identical(state[k], state2.get(k)) for k in state):
        found.append("state after the call")
    return found


def identical(a: object, b: object) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a == b
    same = a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
    return same and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def ties(model: nn.Module) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    for name, module in model.named_modules(remove_duplicate=False):
        groups.setdefault(id(module), []).append(name)
    return sorted(group for group in groups.values() if len(group) > 1)


def modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules but the one by which torch.export checks its inputs: no part of the model."""
    return [(name, child) for name, child in model.named_modules() if name != "_guards_fn"]


FACETS: dict[str, Callable[[nn.Module], object]] = {
    "keys": lambda m: list(m.state_dict()),
    "parameters": lambda m: [
        (name, p.dtype, p.shape, p.stride(), p.requires_grad) for name, p in m.named_parameters()
    ],
    "buffers": lambda m: [(name, b.dtype, b.shape, b.stride()) for name, b in m.named_buffers()],
    "modes": lambda m: [(name, child.training) for name, child in modules_of(m)],
    "ties": ties,
    "modules": lambda m: [(name, type(child).__name__) for name, child in modules_of(m) if name],
}
