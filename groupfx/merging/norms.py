"""The BatchNorms in the branches of a split site, put together as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..convs.names import joined
from ..convs.spec import BATCHNORMS, original_type, rebuild


@dataclass(frozen=True)
class Norms:
    """Numbered BatchNorms below `home`, one a branch."""

    home: str
    count: int

    def merged(self, root: nn.Module) -> nn.Module | None:
        """One BatchNorm with the channels of all of them; None where they differ."""
        paths = [joined(self.home, str(position)) for position in range(self.count)]
        modules = [root.get_submodule(path) for path in paths]
        first = modules[0]
        if any(_fields(m) != _fields(first) or changed(m) for m in modules):
            return None
        features = sum(int(getattr(module, "num_features")) for module in modules)  # noqa: B009
        tensors = stacked(modules, (*first._parameters, *first._buffers))
        return rebuild(first, tensors, num_features=features)


def peel_norms(
    values: Sequence[fx.Node], root: nn.Module
) -> tuple[list[fx.Node], Norms | None] | None:
    """What goes into the BatchNorms that end the branches, and those; None where only some do."""
    norms = [value for value in values if is_batchnorm(value, root)]
    if not norms:
        return list(values), None
    home = numbered_home([str(node.target) for node in norms])
    if len(norms) != len(values) or home is None or any(len(node.users) != 1 for node in norms):
        return None
    return [node.all_input_nodes[0] for node in norms], Norms(home, len(norms))


def is_batchnorm(node: fx.Node, root: nn.Module) -> bool:
    """Whether `node` calls a plain BatchNorm on one value."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    return type(root.get_submodule(str(node.target))) in BATCHNORMS


def numbered_home(paths: Sequence[str]) -> str | None:
    """`a.b` for `a.b.0`, `a.b.1`, ...; None for any other names."""
    home = paths[0].rpartition(".")[0]
    expected = [joined(home, str(position)) for position in range(len(paths))]
    return home if list(paths) == expected else None


def calls_below(root: fx.GraphModule, home: str) -> int:
    """How many calls of the numbered children of `home` the graph has."""
    prefix = f"{home}." if home else ""
    targets = (str(node.target) for node in root.graph.nodes if node.op == "call_module")
    return sum(t.startswith(prefix) and t.removeprefix(prefix).isdecimal() for t in targets)


def changed(module: nn.Module) -> bool:
    """Whether hooks or a parametrisation make more of a module than its fields say."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return any(hooks) or original_type(module) is not type(module)


def stacked(modules: Sequence[nn.Module], names: Sequence[str]) -> dict[str, Tensor | None]:
    """The tensors of all modules one after another; numbers are those of the first."""

    def stack(name: str) -> Tensor | None:
        tensors = [getattr(module, name) for module in modules]
        first = tensors[0]
        if first is None:
            return None
        whole = first.detach() if not first.dim() else torch.cat([t.detach() for t in tensors])
        is_parameter = isinstance(first, nn.Parameter)
        return nn.Parameter(whole, requires_grad=False) if is_parameter else whole

    return {name: stack(name) for name in names}


def _fields(module: nn.Module) -> tuple[object, ...]:
    fields = ("eps", "momentum", "affine", "track_running_stats")
    return (type(module), *(getattr(module, name) for name in fields))
