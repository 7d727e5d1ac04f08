"""A network that hides nearly all of itself, and a split that spoils something outside its sites.

The branch with both sites ends in a BatchNorm whose weight is zero, so that no run end to end can
see what is done to it in eval mode, in any dtype.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from groupfx.passes import SplitGroupedConv
from groupfx.rewriting import Rewritten, Site
from groupfx.running.inputs import ExampleInputs
from groupfx.tracing import Program, open_model
from tests.models import zoo

Spoil = Callable[[Program], None]
X = torch.randn(2, 6, 9, 7, generator=torch.Generator().manual_seed(1))


class HiddenBranch(nn.Module):
    """`stem(x) + last(branch)`, where the weight of `last` is zero."""

    scale: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6, 8, 1)
        self.a = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.a_norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.3)
        self.mid = nn.Conv2d(8, 8, 3, padding=1)
        self.mid_norm = nn.BatchNorm2d(8)
        self.shrink = nn.Softshrink(0.25)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.b_norm = nn.BatchNorm2d(8)
        self.last = nn.BatchNorm2d(8)
        self.spare = nn.Linear(3, 2)
        self.tied = nn.Linear(3, 2)
        self.tied.weight = self.spare.weight
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 8)[:, None, None], persistent=False)
        self.register_buffer("table", torch.arange(5))
        self.options = {"widths": [3, 5], "rate": 0.1}
        self.mid_norm.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        y = self.drop(self.relu(self.a_norm(self.a(stem))))
        y = self.shrink(self.mid_norm(self.mid(y))) * self.scale
        y = torch.sigmoid(self.b_norm(self.b(y)))
        return stem + self.last(y)


def build(*, training: bool = False) -> nn.Module:
    """The network with random statistics."""
    torch.manual_seed(11)
    model = HiddenBranch()
    zoo.give_statistics(model)
    nn.init.zeros_(model.last.weight)
    return model.train(training)


@cache
def exported() -> fx.GraphModule:
    """What `torch.export` makes of it, to be opened as it is."""
    program = open_model(build(), ExampleInputs.of((X,)), way="export")
    result = program.result
    assert isinstance(result, fx.GraphModule)
    return result


class SpoiledElsewhere(SplitGroupedConv):
    """The right split, which at its last site spoils something that is none of its business."""

    spoil: Spoil

    def rewrite(self, site: Site, description: Any) -> Rewritten:
        made = super().rewrite(site, description)
        if site.name == "b":
            with torch.no_grad():
                type(self).spoil(site.store.program)
        return made


def wrong(spoil: Spoil) -> SplitGroupedConv:
    """The pass with this mistake."""
    kind = type("WrongElsewhere", (SpoiledElsewhere,), {"spoil": staticmethod(spoil)})
    kind.__doc__ = "Wrong."
    made: SplitGroupedConv = dataclasses.dataclass(frozen=True)(kind)()
    return made


# How something is spoiled: a tensor or a module by its name, a node by its target.


def tensor(name: str, change: Callable[[Tensor], object]) -> Spoil:
    """Change a parameter or a buffer in place."""

    def spoil(program: Program) -> None:
        path, _, own = name.rpartition(".")
        change(getattr(program.result.get_submodule(path), own))

    return spoil


def module(name: str, change: Callable[[Any], object]) -> Spoil:
    """Change a module, or put what `change` returns in its place if that is a module."""

    def spoil(program: Program) -> None:
        other = change(program.result.get_submodule(name))
        if isinstance(other, nn.Module):
            program.result.set_submodule(name, other)

    return spoil


def field(name: str, **values: object) -> Spoil:
    """Set attributes of a module."""
    return module(name, lambda each: vars(each).update(values))


def node(name: str, change: Callable[[fx.Graph, fx.Node], object]) -> Spoil:
    """Change the node whose name starts like this, in the first graph that has one."""

    def spoil(program: Program) -> None:
        for fragment in program.fragments:
            for each in fragment.working.graph.nodes:
                if each.name.startswith(name):
                    change(fragment.working.graph, each)
                    return
        raise AssertionError(f"there is no {name}")

    return spoil


def behind(name: str, function: Callable[..., Any], *arguments: object) -> Spoil:
    """Put `function` behind the node `name`, for all that use it."""

    def insert(graph: fx.Graph, found: fx.Node) -> None:
        with graph.inserting_after(found):
            extra = graph.call_function(function, (found, *arguments))
        found.replace_all_uses_with(extra, delete_user_cb=lambda user: user is not extra)

    return node(name, insert)


def dropped(name: str) -> Spoil:
    """Leave the node out: its users get its input."""

    def drop(graph: fx.Graph, found: fx.Node) -> None:
        found.replace_all_uses_with(found.all_input_nodes[0])
        graph.erase_node(found)

    return node(name, drop)


def argument(name: str, position: int, value: object) -> Spoil:
    """Another value for one argument of a node."""
    return node(name, lambda _, found: found.update_arg(position, value))


# Functions that are the identity in the runs end to end, and something else in others.


def louder_in_float32(x: Tensor) -> Tensor:
    return x * 1.01 if x.dtype is torch.float32 else x


def through_half(x: Tensor) -> Tensor:
    return x.half().to(x.dtype) if x.dtype is torch.float32 else x


def through_bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype) if x.dtype is torch.float32 else x


def wrong_above_batch_4(x: Tensor) -> Tensor:
    return -x if x.shape[0] > 4 else x


def wrong_above_width_40(x: Tensor) -> Tensor:
    return -x if x.shape[-1] > 40 else x


def wrong_for_grad(x: Tensor) -> Tensor:
    return x * 2 if torch.is_grad_enabled() else x


def wrong_for_large(x: Tensor) -> Tensor:
    return torch.where(x.abs() > 1e3, x.new_zeros(()), x)


def wrong_for_one_sample(x: Tensor) -> Tensor:
    return x + 1 if x.shape[0] == 1 else x


def noisy(x: Tensor) -> Tensor:
    return x + torch.randn_like(x) * 1e-7


def rounded(x: Tensor) -> Tensor:
    return (x * 4096).round() / 4096
