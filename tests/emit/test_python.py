"""Rewritten models as Python: the file that is written is executed, and is the same model."""

import ast
import copy
import operator
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import groupfx
from groupfx.emit import emit_python
from groupfx.emit.graph import graph_file
from groupfx.emit.layers import Layers
from groupfx.emit.model import model_file
from groupfx.errors import RewriteError
from groupfx.rewriting import Result
from tests.emit import models as em
from tests.emit import refused as refused
from tests.emit.emitted import (
    changed,
    complaints,
    differences,
    loaded,
    made_from,
    numbers,
    rewritten,
)
from tests.emit.texts import TEXTS
from tests.models import frozen_cases as fz
from tests.models import zoo
from tests.thinning import long_unless, one_in

CASES = zoo.CASES

# The other two ways, for cases that take them and show something of their own in them.
EXPORTED = [
    "resnext",
    "grouped-1d",
    "transposed-2d",
    "transposed-output-size",
    "weight-read-elsewhere",
    "positional-transposed",
    "torch-functions",
    "standardised",
    "masked",
    "bn-no-statistics",
    "branches-on-shape",
    "mask-given",
    "counts-calls",
    "dict-output",
    "tuple-output",
    "keyword-inputs",
]
SWAPPED = [
    "resnext",
    "grouped-2d",
    "transposed-output-size",
    "depthwise-2d",
    "two-names",
    "tied-weights",
    "standardised",
    "scaled-subclass",
    "weight-norm",
    "weight-norm-dim-2",
    "spectral-norm",
    "weight-norm-old",
    "spectral-norm-old",
    "pruned",
    "no-groups",
]
# Large models, after which there is nothing new in the others.
LONG = ("se-resnext50-3d", "shufflenet-g2", "shufflenet-g3", "regnet-y", "se-resnext50-2d")
WAYS = [
    *((name, CASES[name].way) for name in CASES),
    *((name, "export") for name in EXPORTED if CASES[name].way != "export"),
    *((name, "modules") for name in SWAPPED if CASES[name].way != "modules"),
]
GRAPHS = [n for n in CASES if CASES[n].way == "trace" and n not in refused.NOT_AS_A_GRAPH]


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *one_in(2, {"-".join(pair): pair for pair in WAYS if pair[0] not in LONG}),
        *(pytest.param(*pair, marks=pytest.mark.long) for pair in WAYS if pair[0] in LONG),
    ],
)
def test_the_file_makes_the_same_model(name: str, way: str, tmp_path: Path) -> None:
    original, inputs, result = rewritten(CASES[name], way)
    source = emit_python(result)
    assert differences(made_from(source, result, original), result, inputs) == []
    assert complaints(source, tmp_path) == ""


@pytest.mark.parametrize(
    "name",
    long_unless({n for n in GRAPHS if n not in LONG}, GRAPHS),
)
def test_a_graph_without_a_class_is_written_as_well(name: str, tmp_path: Path) -> None:
    _, inputs, result = rewritten(CASES[name])
    source = graph_file(result, result.model)
    made = loaded(source, result)
    assert made.state_dict().keys() == result.model.state_dict().keys()
    assert differences(made, result, inputs) == []
    assert complaints(source, tmp_path) == ""


@pytest.mark.parametrize("case", em.CASES, ids=lambda case: case.id)
def test_what_is_easily_lost_is_there(case: zoo.Case, tmp_path: Path) -> None:
    result = groupfx.rewrite(case.make(), case.example(), way=case.way, verify=False)
    source = graph_file(result, result.model)
    assert differences(loaded(source, result), result, case.example()) == []
    assert complaints(source, tmp_path) == ""


def test_a_checked_rewrite_is_written_as_well() -> None:
    case = CASES["resnext"]
    model, inputs = case.build(), case.inputs()
    result = groupfx.rewrite(model, inputs)
    assert result.report.verified
    assert differences(made_from(emit_python(result), result, model), result, inputs) == []


# The user's own model


@pytest.mark.parametrize("name", ["resnext", "plinio-pair", "grouped-3d", "multiplier-2d"])
def test_a_changed_model_is_traced_into_branches(name: str) -> None:
    original, _, result = rewritten(CASES[name])
    calls = sum(isinstance(m, nn.modules.conv._ConvNd) for m in result.model.modules())
    made = changed(emit_python(result), original)
    graph = fx.symbolic_trace(made)
    found = [
        graph.get_submodule(str(node.target))
        for node in graph.graph.nodes
        if node.op == "call_module"
    ]
    convs = [module for module in found if isinstance(module, nn.modules.conv._ConvNd)]
    assert len(convs) == calls
    assert all(module.groups == 1 for module in convs)
    sliced = [node.args[1] for node in graph.graph.nodes if node.target is operator.getitem]
    assert all(index[0] == slice(None) for index in sliced)
    assert all(type(end) is int for _, part in sliced for end in (part.start, part.stop))


def test_an_output_that_plinio_must_not_prune_is_written_so() -> None:
    model = nn.Sequential(nn.Conv2d(6, 8, 1), nn.Conv2d(8, 4, 3, groups=2)).eval()
    result = groupfx.rewrite(model, torch.randn(2, 6, 7, 7), target="plinio")
    assert "dim=-3)" in emit_python(result)


def test_a_convolution_that_is_also_given_a_size_is_changed() -> None:
    original, inputs, result = rewritten(CASES["transposed-output-size"])
    assert differences(changed(emit_python(result), original), result, inputs) == []


PARTIAL = {
    "two": (nn.Conv2d(12, 18, 3, groups=6), nn.BatchNorm2d(18), "branches=4", (2, 2, 1, 1)),
    "rest": (
        nn.ConvTranspose2d(10, 15, 4, stride=2, groups=5),
        nn.BatchNorm2d(15),
        "groups_per_branch=2",
        (2, 2, 1),
    ),
}


@pytest.mark.parametrize(("conv", "norm", "option", "groups"), PARTIAL.values(), ids=PARTIAL)
def test_a_partial_split_keeps_groups_in_its_branches(
    conv: nn.Conv2d, norm: nn.Module, option: str, groups: tuple[int, ...]
) -> None:
    model = nn.Sequential(nn.Identity(), conv, norm, nn.ReLU()).double()
    x = torch.randn(2, conv.in_channels, 7, 6, dtype=torch.float64)
    result = groupfx.rewrite(model, (x,), passes=[f"split-grouped-conv:{option}"], verify=False)
    made = changed(emit_python(result), model)
    assert tuple(conv.groups for conv in made[1].convs) == groups
    assert differences(made, result, (x,)) == []


def test_a_norm_that_moved_leaves_an_identity() -> None:
    original, _, result = rewritten(CASES["resnext"])
    made = changed(emit_python(result), original)
    assert type(made.layer1[0].bn2) is nn.Identity
    assert [type(m) for m in made.layer1[0].conv2.norms] == [nn.BatchNorm2d] * 5


def test_a_changed_model_trains_as_the_rewritten_one() -> None:
    original, (x,), result = rewritten(CASES["resnext"])
    made = changed(emit_python(result), original)
    for model in (made, result.model):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(x).square().sum().backward()
        optimizer.step()
    assert numbers(made) == numbers(result.model)


SHARED = ("two-names", "tied-weights", "called-twice", "called-twice-two-norms")


@pytest.mark.parametrize("name", SHARED)
def test_what_was_shared_is_shared(name: str) -> None:
    original, _, result = rewritten(CASES[name])
    made = changed(emit_python(result), original)
    assert sum(p.numel() for p in made.parameters()) == sum(
        p.numel() for p in result.model.parameters()
    )


# The checks above see what is wrong

SPOILED = {
    "slice": ("start = stop", "start = 0", "outputs, as it is"),
    "order": ("zip(self.convs, ", "zip(self.convs[::-1], ", "outputs, as it is"),
    "no-norm": ("norm(conv(", "(conv(", "outputs, as"),
    "rounding": (
        "return torch.cat(parts, dim=1)",
        "return torch.cat(parts, 1) * (1 + 1e-15)",
        "out",
    ),
    "frozen": ("tensor.requires_grad)", "False)", "gradients"),
    "state": ("if not tensor.dim():", "if tensor.dim() < 2:", "from_branches"),
    "back": ("torch.cat(parts) if", "torch.cat(parts[::-1]) if", "from_branches"),
    "norm-left": ("nn.Identity()", "model.get_submodule(norm)", "to_branches"),
}


@pytest.mark.parametrize("change", SPOILED.values(), ids=SPOILED)
def test_a_spoiled_file_is_caught(change: tuple[str, str, str]) -> None:
    old, new, expected = change
    original, inputs, result = rewritten(CASES["resnext"])
    source = emit_python(result)
    assert old in source
    try:
        found = differences(changed(source.replace(old, new), original), result, inputs)
    except (AssertionError, IndexError) as error:
        found = [str(error)]
    assert any(expected in text for text in found), found


@pytest.mark.parametrize("line", ["import os", f"x = {'1' * 100}", "y = x"])
def test_an_untidy_file_is_caught(line: str, tmp_path: Path) -> None:
    _, _, result = rewritten(CASES["bare"])
    assert complaints(f"{emit_python(result)}\n\n{line}\n", tmp_path)


@pytest.mark.parametrize("kind", ["model", "graph"])
def test_a_file_that_is_another_function_is_not_given_out(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(result: Result, *rest: Any) -> str:
        text = (graph_file if kind == "graph" else model_file)(result, *rest)
        return text.replace("dim=1)", "dim=1) * 2").replace("+ x", "- x")

    original, inputs, result = rewritten(CASES["resnext"])
    if kind == "graph":
        graph = fx.symbolic_trace(original)
        result = groupfx.rewrite(graph, inputs, verify=False)
    monkeypatch.setattr(f"groupfx.emit.{kind}_file", spoiled)
    if kind == "model":  # then the graph is written
        assert "\nclass ResNeXtNet" in emit_python(result)
        return
    with pytest.raises(RewriteError, match="another function"):
        emit_python(result)


def test_a_change_outside_of_the_convolutions_is_not_lost() -> None:
    _, inputs, result = rewritten(CASES["resnext"])
    graph = result.model
    assert isinstance(graph, fx.GraphModule)
    for node in graph.graph.nodes:
        if node.target is F.adaptive_avg_pool2d:
            node.target = F.adaptive_max_pool2d
    graph.recompile()
    source = emit_python(result)
    assert "F.adaptive_max_pool2d" in source
    assert differences(loaded(source, result), result, inputs) == []


# Frozen layers, permutations, other targets


class BetweenOthers(nn.Module):
    """A frozen layer with a norm behind it, between others."""

    def __init__(self, layer: nn.Module, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.learned = fz.with_batchnorm(layer, channels)
        self.last = nn.Conv2d(channels, 4, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.learned(self.first(x)).relu())


GROUPS = fz.Layer("aabcabbc", "abcabcabc-cd")
EQUAL = fz.Layer("abababab", "aabbabababba")
FROZEN: dict[str, tuple[fz.Layer, dict[str, Any]]] = {
    "auto": (GROUPS, {"passes": ["freeze-learned-groups"]}),
    "equal": (EQUAL, {"passes": ["freeze-learned-groups"]}),
    "no-bias": (
        fz.Layer("aabcabbc", "abcabcabc-cd", {"bias": False}),
        {"passes": ["freeze-learned-groups"]},
    ),
    "fastest": (GROUPS, {}),
    **{
        form: (GROUPS, {"passes": [f"freeze-learned-groups:form={form}"]})
        for form in ("dense", "bucketed", "padded", "split")
    },
    "frozen and split": (GROUPS, {"passes": ["freeze-learned-groups", "split-grouped-conv"]}),
    "plinio": (GROUPS, {"target": "plinio"}),
    "onnxruntime": (GROUPS, {"target": "onnxruntime"}),
    "balanced": (EQUAL, {"passes": ["balance-groups:groups=2"]}),
    "folded": (GROUPS, {"passes": ["freeze-learned-groups", "fold-permutations"]}),
}


@pytest.mark.parametrize("graph", [False, True], ids=["model", "graph"])
@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_layer_is_written(name: str, graph: bool, tmp_path: Path) -> None:
    layer, options = FROZEN[name]
    model = BetweenOthers(layer.build(), len(layer.outputs)).double().eval()
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    result = groupfx.rewrite(model, (x,), verify=False, **options)
    source = graph_file(result, result.model) if graph else emit_python(result)
    # Padding and folded permutations are in no table of the original's numbers.
    told = name not in ("padded", "folded", "plinio")
    assert ("FROZEN = {" in source) == (told and not graph)
    assert differences(made_from(source, result, model), result, (x,)) == []
    assert complaints(source, tmp_path) == ""


# Without groupfx

ALONE = """
import sys, torch
sys.modules["groupfx"] = None  # whoever imports it fails
folder = sys.argv[1]
for name in sys.argv[2:]:
    model, inputs, state, expected = torch.load(f"{folder}/{name}.pt", weights_only=False)
    space = {"__name__": name}
    exec(compile(open(f"{folder}/{name}.py").read(), name, "exec"), space)
    if "rewrite" in space:
        made = space["rewrite"](model)
    else:
        made = [v for v in space.values() if isinstance(v, type) and v.__module__ == name][-1]()
        made.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(made.eval()(*inputs), expected), name
print("all")
"""


def test_files_run_where_there_is_no_groupfx(tmp_path: Path) -> None:
    names = []
    for name, way in (("resnext", "auto"), ("standardised", "auto"), ("masked", "export")):
        original, inputs, result = rewritten(CASES[name], way)
        with torch.no_grad():
            expected = result.model.eval()(*inputs) if way == "auto" else result.model(*inputs)
        state = result.model.state_dict()
        torch.save((original, inputs, state, expected), tmp_path / f"{name}.pt")
        (tmp_path / f"{name}.py").write_text(emit_python(result))
        names.append(name)
    run = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path), *names],
        capture_output=True,
        text=True,
        check=False,
        cwd=zoo.EXAMPLES.parent,
    )
    assert run.stdout == "all\n", run.stderr


# How it reads


@pytest.mark.parametrize(("make", "inputs", "expected"), TEXTS.values(), ids=TEXTS)
def test_it_reads_as_if_written_by_hand(
    make: Callable[[], nn.Module], inputs: tuple[Any, ...], expected: str
) -> None:
    result = groupfx.rewrite(make(), inputs, verify=False)
    assert emit_python(result).split('"""\n\n', 1)[1] == expected


@pytest.mark.parametrize("way", ["trace", "modules"])
def test_many_branches_are_one_line(way: str) -> None:
    model = nn.Sequential(nn.Conv2d(1024, 2048, 1, groups=512), nn.ReLU())
    result = groupfx.rewrite(model, (torch.randn(2, 1024, 1, 1),), way=way, verify=False)
    assert emit_python(result).count("\n") < 125
    assert way == "modules" or graph_file(result, result.model).count("\n") < 40


def test_blocks_that_are_alike_are_one_class() -> None:
    _, _, result = rewritten(CASES["resnext"])
    source = graph_file(result, result.model)
    assert source.count("class ResNeXtBlock") == 1
    assert source.count("ResNeXtBlock(\n") == 2


@pytest.mark.parametrize(("module", "expected"), em.LEAVES, ids=[text for _, text in em.LEAVES])
def test_a_layer_is_written_with_the_arguments_that_matter(
    module: nn.Module, expected: str
) -> None:
    text = str(Layers().call(module, "layer"))
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(expected))


# Names are text, and text does not become code

ODD_NAMES = ["a b", "1", "class", "__mangled", "é", "x'y", 'x"); raise SystemExit #', "a\nb", "\\"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_an_odd_name_stays_a_name_in_a_model(name: str, tmp_path: Path) -> None:
    model = refused.named(name)
    result = groupfx.rewrite(model, (torch.randn(2, 4, 7),), way="modules", verify=False)
    source = emit_python(result)
    before = copy.deepcopy(model)
    made = changed(source, before)
    x = torch.randn(2, 4, 7)
    assert torch.equal(made(x), result.model(x))
    assert complaints(source, tmp_path) == ""


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_an_odd_name_stays_a_name_in_a_graph(name: str, tmp_path: Path) -> None:
    model = refused.named("plain")
    result = groupfx.rewrite(model, (torch.randn(2, 4, 7),), way="trace", verify=False)
    # fx pastes names into source as they are, so that such a graph comes from elsewhere.
    refused.rename(result.model, "plain", name)
    source = graph_file(result, result.model)
    made = loaded(source, result)
    assert list(made.state_dict()) == list(result.model.state_dict())
    assert made(torch.randn(2, 4, 7)).shape == (2, 4, 7)
    assert complaints(source, tmp_path) == ""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise)]
    assert calls == []


@pytest.mark.parametrize("name", ["Parts", "F", "torch", "Tensor", "list", "__X", "class", "é"])
def test_a_class_may_have_any_name(name: str) -> None:
    model = type(name, (em.Grouped,), {})()
    result = groupfx.rewrite(model, (torch.randn(2, 4, 7),), verify=False)
    loaded(graph_file(result, result.model), result)
    changed(emit_python(result), model)


# Refusals


def test_a_layer_that_still_learns_is_refused_in_a_graph() -> None:
    model = BetweenOthers(GROUPS.build(), len(GROUPS.outputs))
    passes = ["split-grouped-conv"]
    result = groupfx.rewrite(model, (torch.randn(2, 3, 9, 8),), passes=passes, verify=False)
    with pytest.raises(RewriteError, match=r"learned.0 \(Flgc2d\) .*freeze-learned-groups"):
        graph_file(result, result.model)


def test_writing_leaves_no_trace() -> None:
    case = CASES["resnext"]
    model, inputs = case.build(), case.inputs()
    result = groupfx.rewrite(model, inputs, verify=False)
    before = copy.deepcopy(result.model.state_dict())
    state = torch.get_rng_state()
    first, second = emit_python(result), emit_python(result)
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[k]) for k, tensor in result.model.state_dict().items())
