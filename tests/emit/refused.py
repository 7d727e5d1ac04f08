"""Odd names for `test_python`, and models that cannot be written as Python at all."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from tests.emit.models import Grouped, Rates, SharedLayers, behind, with_forward
from tests.models import zoo_traps as traps

# Names


def named(name: str) -> nn.Module:
    """A grouped convolution under a name of the caller's choice."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        found = self._modules[name]
        assert found is not None
        return found(self.c(x))

    model = type("Named", (Grouped,), {"forward": forward})()
    model.add_module(name, nn.Conv1d(4, 4, 1, groups=2))
    return model


def rename(model: nn.Module, old: str, new: str) -> None:
    """Give a child another name, in the module tree and in the graph."""
    assert isinstance(model, fx.GraphModule)
    children = {new if name == old else name: child for name, child in model._modules.items()}
    model._modules.clear()
    model._modules.update(children)
    for node in model.graph.nodes:
        first, dot, rest = str(node.target).partition(".")
        if node.op == "call_module" and first == old:
            node.target = f"{new}{dot}{rest}"


# What cannot be written


def local_class() -> nn.Module:
    class Local(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return traps.Round.apply(x)

    return behind(Local())


def replaced_forward() -> nn.Module:
    leaf = nn.ReLU()
    leaf.forward = torch.tanh  # type: ignore[method-assign,assignment]
    return behind(leaf)


def changed_fields() -> nn.Module:
    layer = nn.Conv1d(4, 4, 3)
    layer.padding_mode = "reflect"
    layer.padding = (1,)
    return behind(layer)


def hooked() -> nn.Module:
    layer = nn.Conv1d(4, 4, 1)
    layer.register_forward_hook(lambda module, args, output: None)
    return behind(layer)


def mixed_precision() -> nn.Module:
    model = with_forward(lambda self, x: self.line(self.c(x).double()))
    model.line = nn.Linear(7, 7).double()
    return model


def large_constant() -> nn.Module:
    model = with_forward(lambda self, x: self.c(x) + self.noise.sum())
    model.register_buffer("noise", torch.randn(100, 100), persistent=False)
    return model


@torch.library.custom_op("emit_models::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


_X = (torch.ones(2, 4, 7),)

REFUSED: dict[str, tuple[nn.Module, tuple[Any, ...], str, str]] = {
    "local-class": (local_class(), _X, "trace", r"1 \(Local\) .*a class of its own in a graph"),
    "own-class": (behind(Rates(5)), _X, "trace", r"1 \(Rates\) .*a class of its own in a graph"),
    "changed-fields": (changed_fields(), _X, "trace", r"1 \(Conv1d\) .*fields were changed"),
    "hooked": (hooked(), _X, "trace", r"1 \(Conv1d\) .*forward hooks, which a file cannot hold"),
    "recurrent": (behind(nn.GRU(7, 4)), _X, "trace", r"1 \(GRU\) cannot be written"),
    "precisions": (mixed_precision(), _X, "trace", r"several precisions .*float64.*\.to\(\)"),
    "replaced-forward": (replaced_forward(), _X, "trace", r"1 \(ReLU\) .*forward was put"),
    "orthogonal": (
        behind(parametrizations.orthogonal(nn.Linear(7, 7))),
        _X,
        "trace",
        r"1 \(Linear\) .*parametrisation; remove_parametrizations",
    ),
    "large-constant": (large_constant(), _X, "trace", r"noise holds 10000 numbers .* persistent"),
    "argument": (
        with_forward(lambda self, nn: self.c(nn)),
        _X,
        "trace",
        "the argument 'nn' .*rename",
    ),
    "foreign-operator": (
        with_forward(lambda self, x: twice(self.c(x))),
        _X,
        "export",
        "emit_models.twice.default is not torch's own",
    ),
    "shared": (SharedLayers(), _X, "trace", r"layers.0.weight and layers.2.weight are one param"),
    "autocast": (traps.LowPrecisionPart(), (torch.ones(2, 6, 7),), "export", "a graph inside the"),
}

# Of what is found in a graph that has no class, these cannot be written.
TIED = ("two-names", "tied-weights")
NOT_AS_A_GRAPH = (
    *TIED,
    "forward-hook",
    "forward-pre-hook",
    "backward-hook",
    "bn-hook",
    "custom-backward",
    "weight-norm",
    "weight-norm-dim-2",
    "spectral-norm",
    "weight-norm-old",
    "spectral-norm-old",
    "pruned",
)
