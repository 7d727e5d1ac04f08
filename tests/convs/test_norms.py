"""Which BatchNorm belongs to a convolution: the one that alone takes its value."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from groupfx.convs.calls import convs
from groupfx.convs.norms import norm_behind
from groupfx.running.inputs import ExampleInputs
from groupfx.tracing.exporting import export_program

X = torch.randn(2, 3, 5, 5)


class ConvAndNorms(nn.Module):
    def __init__(self, forward: Callable[["ConvAndNorms", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.InstanceNorm2d(3)
        self.bare = nn.BatchNorm2d(3, affine=False)
        self.moving = nn.BatchNorm2d(3, track_running_stats=False)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def found(graph: fx.GraphModule) -> fx.Node | None:
    (conv,) = convs(graph)
    return norm_behind(conv, graph)


def scaled(m: ConvAndNorms, x: Tensor) -> Tensor:
    # The running mean is computed in forward.
    return F.batch_norm(m.conv(x), m.norm.running_mean * 2, m.norm.running_var)


def scaled_by_the_input(m: ConvAndNorms, x: Tensor) -> Tensor:
    return F.batch_norm(m.conv(x), m.norm.running_mean * x.mean(), m.norm.running_var)


def drawn(m: ConvAndNorms, x: Tensor) -> Tensor:
    return F.batch_norm(m.conv(x), torch.rand(3), m.norm.running_var)


def in_train_mode(m: ConvAndNorms, x: Tensor) -> Tensor:
    mean, variance = m.norm.running_mean, m.norm.running_var
    return F.batch_norm(m.conv(x), mean, variance, training=True)


CASES: dict[str, tuple[Callable[[ConvAndNorms, Tensor], Tensor], str | None]] = {
    "behind": (lambda m, x: m.norm(m.conv(x)), "norm"),
    "without-weight": (lambda m, x: m.bare(m.conv(x)).relu(), "bare"),
    "by-name": (lambda m, x: m.norm(input=m.conv(x)), "norm"),
    "twice": (lambda m, x: m.norm(m.norm(m.conv(x))), "norm"),
    "two-users": (lambda m, x: (lambda y: m.norm(y) * m.bare(y))(m.conv(x)), None),
    "used-too": (lambda m, x: (lambda y: m.norm(y) + y)(m.conv(x)), None),
    "another-kind": (lambda m, x: m.other(m.conv(x)), None),
    "later": (lambda m, x: m.norm(m.conv(x).relu()), None),
    "none": (lambda m, x: m.conv(x), None),
}


@pytest.mark.parametrize(("forward", "name"), CASES.values(), ids=CASES.keys())
def test_a_module_that_alone_takes_the_value(
    forward: Callable[[ConvAndNorms, Tensor], Tensor], name: str | None
) -> None:
    graph = fx.symbolic_trace(ConvAndNorms(forward).eval())
    (conv, *_) = convs(graph)
    norm = norm_behind(conv, graph)
    assert (None if norm is None else norm.target) == name


OPERATORS: dict[str, tuple[Callable[[ConvAndNorms, Tensor], Tensor], bool]] = {
    "behind": (lambda m, x: m.norm(m.conv(x)), True),
    "without-weight": (lambda m, x: m.bare(m.conv(x)), True),
    "statistics-of-the-batch": (lambda m, x: m.moving(m.conv(x)), False),
    "computed-mean": (scaled, True),
    "mean-of-the-input": (scaled_by_the_input, False),
    "drawn-mean": (drawn, False),
    "train-mode": (in_train_mode, False),
    "used-too": (lambda m, x: (lambda y: m.norm(y) + y)(m.conv(x)), False),
}


@pytest.mark.parametrize(("forward", "belongs"), OPERATORS.values(), ids=OPERATORS.keys())
def test_an_operator_in_eval_mode_on_tensors_that_no_input_bears_on(
    forward: Callable[[ConvAndNorms, Tensor], Tensor], belongs: bool
) -> None:
    program = export_program(ConvAndNorms(forward).eval(), ExampleInputs.of(X))
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    assert [n for n in graph.graph.nodes if "batch_norm" in str(n.target)]
    assert (found(graph) is not None) == belongs
