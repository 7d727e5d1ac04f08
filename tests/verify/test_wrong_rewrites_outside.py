"""Negative controls: rewrites whose sites are right and that changed something else.

Each is caught, and the thing named, in a network whose end sees nothing of it: every site and the
comparison end to end are content with all of them.
"""

import math

import pytest
import torch
from torch import nn

import groupfx
from groupfx.errors import MismatchError
from groupfx.passes import SplitGroupedConv
from tests.verify import wrong_passes as w
from tests.verify.wrong_passes import X, argument, behind, dropped, field, module, node, tensor

Row = tuple[w.Spoil, str]

# What every way in keeps under its name: parameters, buffers, their flags and ties.
TENSORS: dict[str, Row] = {
    "another-conv-times-3": (tensor("mid.weight", lambda t: t.mul_(3)), "mid.weight: values"),
    "one-ulp-of-one-weight": (
        tensor("mid.weight", lambda t: t[5, 3, 1].copy_(t[5, 3, 1].nextafter(t.new_tensor(9.0)))),
        "mid.weight: values",
    ),
    "minus-zero": (tensor("last.weight", lambda t: t.neg_()), "last.weight: values: 0.0"),
    "another-bias": (tensor("mid.bias", lambda t: t.add_(1)), "mid.bias: values"),
    "swapped-filters": (tensor("mid.weight", lambda t: t.copy_(t.flip(0))), "mid.weight: values"),
    "a-norm-weight": (tensor("mid_norm.weight", lambda t: t.mul_(2)), "mid_norm.weight: values"),
    "a-norm-bias": (tensor("mid_norm.bias", lambda t: t.sub_(1)), "mid_norm.bias: values"),
    "a-running-mean": (
        tensor("mid_norm.running_mean", lambda t: t.zero_()),
        "mid_norm.running_mean: values",
    ),
    "a-running-variance": (
        tensor("mid_norm.running_var", lambda t: t.mul_(1 + 1e-6)),
        "mid_norm.running_var: values",
    ),
    "a-counter": (
        tensor("mid_norm.num_batches_tracked", lambda t: t.add_(1)),
        "mid_norm.num_batches_tracked: values: 0",
    ),
    "a-buffer-out-of-the-state-dict": (tensor("scale", lambda t: t.mul_(2)), "scale: values"),
    "a-buffer-of-integers": (tensor("table", lambda t: t[3].fill_(7)), "table: values: 3 .*-> 7"),
    "nan-in-a-weight": (
        tensor("mid.weight", lambda t: t[0, 0, 0, 0].fill_(math.nan)),
        "mid.weight: values: .*nan",
    ),
    "an-unused-weight": (tensor("spare.weight", lambda t: t.zero_()), "spare.weight: values"),
    "frozen": (
        tensor("mid.weight", lambda t: t.requires_grad_(False)),
        "mid.weight: requires_grad",
    ),
    "thawed": (
        tensor("mid_norm.bias", lambda t: t.requires_grad_(True)),
        "mid_norm.bias: requires_grad: False -> True",
    ),
    "frozen-and-unused": (
        tensor("spare.bias", lambda t: t.requires_grad_(False)),
        "spare.bias: requires_grad",
    ),
    "another-dtype": (
        module("mid", lambda m: setattr(m, "weight", nn.Parameter(m.weight.half().float()))),
        "mid.weight: values",
    ),
    "bfloat16-for-good": (
        module("mid_norm", lambda m: m._parameters.update(weight=m.weight.bfloat16())),
        "mid_norm.weight: ",
    ),
    "a-double-parameter": (
        module("mid", lambda m: setattr(m, "weight", nn.Parameter(m.weight.double()))),
        "mid.weight: dtype: torch.float32 -> torch.float64",
    ),
    "a-new-buffer": (
        module("", lambda m: m.register_buffer("extra", X)),
        "extra: buffer: not there -> new",
    ),
    "a-new-parameter": (
        module("mid", lambda m: m.register_parameter("extra", nn.Parameter(X))),
        "mid.extra: parameter: not there -> new",
    ),
    "a-buffer-of-a-parameter": (
        module("spare", lambda m: m._buffers.update(bias=m._parameters.pop("bias").detach())),
        "spare.bias: kind: parameter -> buffer",
    ),
    "another-shape": (
        module("spare", lambda m: setattr(m, "bias", nn.Parameter(m.bias[:1]))),
        r"spare.bias: shape: \(2,\) -> \(1,\)",
    ),
    "another-memory-format": (
        module(
            "mid",
            lambda m: setattr(
                m, "weight", nn.Parameter(m.weight.to(memory_format=torch.channels_last))
            ),
        ),
        "mid.weight: strides",
    ),
    "untied": (
        module("tied", lambda m: setattr(m, "weight", nn.Parameter(m.weight.clone()))),
        "tied.weight: tie: the same tensor as spare.weight -> another",
    ),
    "tied": (
        module("last", lambda m: (m.bias.copy_(0), setattr(m, "weight", m.bias))),
        "last.weight: |last.bias: ",
    ),
    "parameters-in-another-order": (
        module("mid", lambda m: m._parameters.update(weight=m._parameters.pop("weight"))),
        "mid: order of its tensors",
    ),
    "a-new-module": (
        module("", lambda m: m.add_module("extra", nn.Conv2d(1, 1, 1))),
        "extra: module: not there -> Conv2d",
    ),
    "a-new-module-without-tensors": (
        module("", lambda m: m.add_module("extra", nn.ReLU())),
        "extra: module: not there -> ReLU",
    ),
}

# What is still a module where the model was not exported.
MODULES: dict[str, Row] = {
    "a-lost-bias": (module("mid", lambda m: m._parameters.update(bias=None)), "mid.bias: tensor"),
    "a-lost-buffer": (module("", lambda m: delattr(m, "table")), "table: buffer: there -> gone"),
    "a-buffer-in-the-state-dict": (
        module("", lambda m: m._non_persistent_buffers_set.discard("scale")),
        "scale: kind: buffer out of the state_dict -> buffer",
    ),
    "a-lost-module": (module("", lambda m: delattr(m, "spare")), "spare: module: .* -> gone"),
    "another-eps": (field("mid_norm", eps=1e-3), "mid_norm: eps: 1e-05 -> 0.001"),
    "another-momentum": (field("mid_norm", momentum=0.3), "mid_norm: momentum: 0.1 -> 0.3"),
    "a-cumulative-average": (field("mid_norm", momentum=None), "mid_norm: momentum: 0.1 -> None"),
    "no-statistics-kept": (field("last", track_running_stats=False), "last: track_running_stats"),
    "another-rate-of-dropout": (field("drop", p=0.5), "drop: p: 0.3 -> 0.5"),
    "dropout-in-place": (field("drop", inplace=True), "drop: inplace: False -> True"),
    "relu-in-place": (field("relu", inplace=True), "relu: inplace: False -> True"),
    "another-threshold": (field("shrink", lambd=0.2500001), "shrink: lambd: 0.25"),
    "another-stride": (field("mid", stride=(2, 2)), r"mid: stride: \(1, 1\) -> \(2, 2\)"),
    "another-padding-mode": (field("mid", padding_mode="circular"), "mid: padding_mode"),
    "a-field-that-nothing-reads": (field("spare", in_features=4), "spare: in_features: 3 -> 4"),
    "a-new-attribute": (field("mid", note="x"), "mid: note: not there -> 'x'"),
    "one-where-true-was": (field("mid_norm", affine=1), "mid_norm: affine: True -> 1"),
    "the-other-mode": (
        module("mid_norm", lambda m: m.train()),
        "mid_norm: training: False -> True",
    ),
    "dropout-that-trains": (module("drop", lambda m: m.train()), "drop: training: False -> True"),
    "a-hook": (
        module("mid", lambda m: m.register_forward_hook(lambda *_: None)),
        "mid: _forward_hooks",
    ),
    "a-hook-before": (
        module("relu", lambda m: m.register_forward_pre_hook(lambda *_: None)),
        "relu: _forward_pre_hooks",
    ),
    "a-hook-on-gradients": (
        module("mid", lambda m: m.register_full_backward_hook(lambda *_: None)),
        "mid: _",
    ),
    "a-hook-on-loading": (
        module("mid", lambda m: m.register_load_state_dict_pre_hook(lambda *_: None)),
        "mid: _load_state_dict_pre_hooks",
    ),
    "a-forward-of-its-own": (
        module("mid", lambda m: setattr(m, "forward", type(m).forward.__get__(m))),
        "mid: forward: not there",
    ),
    "another-activation": (module("relu", lambda m: nn.LeakyReLU(1e-5)), "relu: module: ReLU"),
    "relu6-for-relu": (module("relu", lambda m: nn.ReLU6()), "relu: module: ReLU -> ReLU6"),
    "an-identity-for-a-norm": (
        module("last", lambda m: nn.Identity()),
        "last: module: BatchNorm2d -> Identity",
    ),
    "a-subclass": (
        module("mid", lambda m: setattr(m, "__class__", type("Conv2d", (nn.Conv2d,), {}))),
        "mid: module: Conv2d -> Conv2d",
    ),
    "a-norm-and-its-twin-exchanged": (
        module("", lambda m: m._modules.update(last=m.mid_norm, mid_norm=m.last)),
        "last.weight: |mid_norm.weight: ",
    ),
    "modules-in-another-order": (
        module("", lambda m: m._modules.update(stem=m._modules.pop("stem"))),
        "the model: order of its parts",
    ),
}

# Graphs: way `trace` knows a node by the module that it calls, way `export` by the operator.
INSERTED = {
    "a-factor-in-float32": w.louder_in_float32,
    "through-half": w.through_half,
    "through-bfloat16": w.through_bfloat16,
    "wrong-above-batch-4": w.wrong_above_batch_4,
    "wrong-above-width-40": w.wrong_above_width_40,
    "wrong-where-gradients-are": w.wrong_for_grad,
    "wrong-for-large-values": w.wrong_for_large,
    "wrong-for-one-sample": w.wrong_for_one_sample,
    "noise": w.noisy,
    "rounded": w.rounded,
    "nan-to-num": torch.nan_to_num,
    "no-gradient": torch.detach,
}
GRAPHS: dict[str, tuple[w.Spoil, w.Spoil]] = {
    **{key: (behind("mid_norm", f), behind("batch_norm_1", f)) for key, f in INSERTED.items()},
    "clamp-30": (behind("mid", torch.clamp, -30, 30), behind("batch_norm_1", torch.clamp, -30, 30)),
    "a-relu-dropped-behind-the-first-site": (dropped("relu"), dropped("relu")),
    "a-sigmoid-dropped-behind-the-last-site": (dropped("sigmoid"), dropped("sigmoid")),
    "a-norm-dropped": (dropped("mid_norm"), dropped("batch_norm_1")),
    "another-function": (
        node("sigmoid", lambda _, n: setattr(n, "target", torch.tanh)),
        node("sigmoid", lambda _, n: setattr(n, "target", torch.ops.aten.tanh.default)),
    ),
    "another-operand": (
        node("mul", lambda _, n: n.update_arg(0, n.args[0].args[0])),
        node("mul", lambda _, n: n.update_arg(0, n.args[0].args[0])),
    ),
    "a-constant-operand": (argument("mul", 1, 1.0), argument("mul", 1, 1.0)),
    "another-norm": (
        node("mid_norm", lambda _, n: setattr(n, "target", "last")),
        argument("batch_norm_1", 7, 1e-3),
    ),
    "a-second-update-of-statistics": (
        node("mid_norm", lambda g, n: _again(g, n)),
        node("batch_norm_1", lambda g, n: _again(g, n)),
    ),
}


def _again(graph: torch.fx.Graph, found: torch.fx.Node) -> None:
    with graph.inserting_after(found):
        graph.node_copy(found)


def caught(spoil: w.Spoil, way: str, named: str, *, training: bool = False) -> None:
    """The rewrite is refused with this reason, and nothing but the structure saw it."""
    model = w.exported() if way == "export" else w.build(training=training)
    options = {} if way == "export" else {"way": way}
    with pytest.raises(MismatchError, match=f"must keep was changed: .*(?:{named})") as found:
        groupfx.rewrite(model, (X,), passes=[w.wrong(spoil)], **options)
    report = found.value.report
    assert report.way == way
    assert report.changes
    assert not report.ok
    assert len(report.sites) == 2
    # No verdict: what was changed keeps the model from running at all.
    assert all(site.verdict is None or site.verdict.ok for site in report.sites)


@pytest.mark.parametrize("way", ["trace", "modules", "export"])
def test_the_right_split_passes(way: str) -> None:
    """The control of the controls: the same pass with a mistake that does nothing."""
    model = w.exported() if way == "export" else w.build()
    options = {} if way == "export" else {"way": way}
    for passes in ([w.wrong(lambda program: None)], [SplitGroupedConv()]):
        report = groupfx.rewrite(model, (X,), passes=passes, **options).report
        assert report.ok
        assert report.changes == ()
        assert report.way == way


@pytest.mark.parametrize("way", ["trace", "modules", "export"])
@pytest.mark.parametrize(("spoil", "named"), TENSORS.values(), ids=TENSORS)
def test_a_changed_tensor_is_named(spoil: w.Spoil, named: str, way: str) -> None:
    caught(spoil, way, named)


@pytest.mark.parametrize("way", ["trace", "modules"])
@pytest.mark.parametrize(("spoil", "named"), MODULES.values(), ids=MODULES)
def test_a_changed_module_is_named(spoil: w.Spoil, named: str, way: str) -> None:
    caught(spoil, way, named)


@pytest.mark.parametrize("way", ["trace", "export"])
@pytest.mark.parametrize("spoils", GRAPHS.values(), ids=GRAPHS)
def test_a_changed_graph_is_noticed(spoils: tuple[w.Spoil, w.Spoil], way: str) -> None:
    caught(spoils[way == "export"], way, ": (?:node|args|target): ")


@pytest.mark.parametrize("function", INSERTED.values(), ids=INSERTED)
def test_what_is_put_behind_a_swapped_convolution_is_noticed(function: w.Spoil) -> None:
    """In way `modules` a graph is that of one convolution: here, of the first."""
    caught(w.behind("cat", function), "modules", r"a\.\w+: (?:node|args): ")
