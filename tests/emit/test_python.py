"""Rewritten models as Python: the file that is written is executed, and is the same model."""

import ast
import compileall
import copy
import inspect
import random
import subprocess
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruff import find_ruff_bin
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import groupfx
from groupfx.emit import emit_python
from groupfx.errors import GroupfxError, RewriteError
from groupfx.rewriting import Result
from tests.emit import models as em
from tests.emit import refused as refused
from tests.emit.texts import TEXTS
from tests.models import zoo

CASES = zoo.CASES
HOOKED = ("forward-hook", "forward-pre-hook", "backward-hook", "bn-hook")
WRITTEN = [name for name in CASES if name not in HOOKED]

# The other two ways, for cases that take them and show something of their own in them.
EXPORTED = [
    "resnext",
    "grouped-1d",
    "transposed-2d",
    "transposed-output-size",
    "tied-weights",
    "weight-read-elsewhere",
    "positional-transposed",
    "torch-functions",
    "standardised",
    "masked",
    "spectral-norm",
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
LONG = ("se-resnext50-3d", "shufflenet-g2", "regnet-y")
WAYS = [
    *((name, CASES[name].way) for name in WRITTEN),
    *((name, "export") for name in EXPORTED if CASES[name].way != "export"),
    *((name, "modules") for name in SWAPPED if CASES[name].way != "modules"),
]


def double(value: Any) -> Any:
    """Tensors of floating-point numbers in float64."""

    def one(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(one, value)


def executed(source: str) -> dict[str, Any]:
    """The names that the file defines."""
    module = types.ModuleType("emitted")
    exec(compile(source, "emitted.py", "exec"), module.__dict__)
    return module.__dict__


def made_from(source: str, result: Result, original: nn.Module) -> nn.Module:
    """The model that the file makes, with the numbers of the rewritten one."""
    names = executed(source)
    if result.program.way == "modules":
        swapped: nn.Module = names["rewrite"](original)
        assert swapped is original
        return swapped
    kinds = [v for v in names.values() if isinstance(v, type) and v.__module__ == "emitted"]
    model: nn.Module = next(kind for kind in reversed(kinds) if kind.__name__ != "Parts")()
    model.load_state_dict(result.model.state_dict(), strict=True)
    return model


def facts(model: nn.Module) -> dict[str, object]:
    """What must be the same in two models besides what they compute."""
    named = list(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    return {
        "keys": list(model.state_dict()),
        "order": [name for name, _ in model.named_parameters()],
        "ties": [first.setdefault(id(p), name) for name, p in named],
        "shapes": {key: (t.shape, t.dtype) for key, t in model.state_dict().items()},
        "gradients": {name: p.requires_grad for name, p in named},
        "mode": model.training,
    }


def outputs(model: nn.Module, inputs: zoo.Inputs) -> list[Any]:
    torch.manual_seed(1)
    random.seed(1)
    given = copy.deepcopy(inputs)
    with torch.no_grad():
        found = zoo.run(model, given)
    return tree_leaves(dict(found) if hasattr(found, "to_tuple") else found)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def differences(made: nn.Module, result: Result, inputs: zoo.Inputs) -> list[str]:
    """What tells the emitted model from the rewritten one: nothing, if all is well."""
    ours, theirs = facts(made), facts(result.model)
    found = [name for name in ours if ours[name] != theirs[name]]
    if found:
        return found
    # An exported model is fixed to eval mode, and refuses to be anything else.
    modes = ("as it is",) if result.program.way == "export" else ("as it is", "eval", "train")
    for mode in modes:
        if mode != "as it is":
            made.train(mode == "train")
            result.model.train(mode == "train")
        pairs = zip(outputs(made, inputs), outputs(result.model, inputs), strict=True)
        if not all(same(one, other) for one, other in pairs):
            found.append(f"outputs, {mode}")
        state = result.model.state_dict()
        if not all(same(tensor, state[key]) for key, tensor in made.state_dict().items()):
            found.append(f"state after a call, {mode}")
    return found


def complaints(source: str, folder: Path, *, formatted: bool = True) -> str:
    """What Python, the linter and the formatter have to say about a file of this text."""
    path = folder / "emitted.py"
    path.write_text(source, encoding="ascii")
    assert compileall.compile_file(path, quiet=1)
    ruff = [find_ruff_bin()]
    common = ["--isolated", "--no-cache", "--line-length", "100", str(path)]
    third_party = 'lint.isort.known-third-party=["groupfx", "tests"]'
    commands = [[*ruff, "check", "--select", "E,F,I", "--config", third_party, *common]]
    if formatted:
        commands.append([*ruff, "format", "--diff", *common])
    runs = [subprocess.run(c, capture_output=True, text=True, check=False) for c in commands]
    return "".join(run.stdout + run.stderr for run in runs if run.returncode)


def rewritten(case: zoo.Case, way: str = "auto", **options: Any) -> tuple[nn.Module, Any, Result]:
    """The original in float64, its inputs, and the result."""
    model, inputs = case.build().double(), double(case.inputs())
    return model, inputs, groupfx.rewrite(model, inputs, way=way, verify=False, **options)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(*pair, id="-".join(pair), marks=pytest.mark.long if pair[0] in LONG else ())
        for pair in WAYS
    ],
)
def test_the_file_makes_the_same_model(name: str, way: str, tmp_path: Path) -> None:
    original, inputs, result = rewritten(CASES[name], way)
    source = emit_python(result)
    assert differences(made_from(source, result, original), result, inputs) == []
    assert complaints(source, tmp_path) == ""


@pytest.mark.parametrize("case", em.CASES, ids=lambda case: case.id)
def test_what_is_easily_lost_is_there(case: zoo.Case, tmp_path: Path) -> None:
    model, inputs = case.make(), case.example()
    result = groupfx.rewrite(model, inputs, way=case.way, verify=False)
    source = emit_python(result)
    assert differences(made_from(source, result, model), result, inputs) == []
    assert complaints(source, tmp_path, formatted=case.id not in em.TABLES) == ""


def test_a_checked_rewrite_is_written_as_well() -> None:
    case = CASES["resnext"]
    model, inputs = case.build(), case.inputs()
    result = groupfx.rewrite(model, inputs)
    assert result.report.verified
    assert differences(made_from(emit_python(result), result, model), result, inputs) == []


# The checks above see what is wrong

SPOILED = {
    "slice": ("2 * i : 2 * i + 2", "0 : 2", "outputs, as it is"),
    "order": ("zip(self.layer1[0].conv2,", "zip(self.layer1[0].conv2[::-1],", "outputs, as it is"),
    "padding": ("3, padding=1, bias", "3, padding=1, padding_mode='reflect', bias", "outputs"),
    "eps": ("nn.BatchNorm2d(2)", "nn.BatchNorm2d(2, eps=0.1)", "outputs, as it is"),
    "momentum": (
        "nn.BatchNorm2d(2)",
        "nn.BatchNorm2d(2, momentum=0.2)",
        "state after a call, train",
    ),
    "rounding": ("return self.fc(x)", "return self.fc(x) * (1 + 1e-15)", "outputs, as it is"),
    "name": ("self.fc", "self.head", "Missing key"),
    "order-of-keys": ("self.stem = ", "self.fc = nn.Identity()\n        self.stem = ", "keys"),
    "bias": (
        "self.fc = nn.Linear(11, 13)",
        "self.fc = nn.Linear(11, 13, bias=False)",
        "Unexpected",
    ),
    "frozen": ("self.eval()", "self.eval()\n        self.stem.requires_grad_(False)", "gradients"),
    "tie": (
        "self.eval()",
        "self.eval()\n        self.layer1[0].bn1.bias = self.layer1[0].bn1.weight",
        "ties",
    ),
    "precision": ("self.to(torch.float64)", "self.float()", "shapes"),
    "mode": ("self.eval()", "self.train()", "mode"),
}


@pytest.mark.parametrize("change", SPOILED.values(), ids=SPOILED)
def test_a_spoiled_file_is_caught(change: tuple[str, str, str]) -> None:
    old, new, expected = change
    original, inputs, result = rewritten(CASES["resnext"])
    source = emit_python(result)
    assert old in source
    try:
        made = made_from(source.replace(old, new), result, original)
        found = differences(made, result, inputs)
    except RuntimeError as error:
        found = [str(error)]
    assert found
    assert any(expected in text for text in found)


@pytest.mark.parametrize("line", ["import os", f"x = {'1' * 100}", "y = x"])
def test_an_untidy_file_is_caught(line: str, tmp_path: Path) -> None:
    _, _, result = rewritten(CASES["bare"])
    assert complaints(f"{emit_python(result)}\n\n{line}\n", tmp_path)


# How it reads


@pytest.mark.parametrize(("make", "inputs", "expected"), TEXTS.values(), ids=TEXTS)
def test_it_reads_as_if_written_by_hand(
    make: Callable[[], nn.Module], inputs: tuple[Any, ...], expected: str
) -> None:
    result = groupfx.rewrite(make(), inputs, verify=False)
    body = emit_python(result).split('"""\n\n', 1)[1]
    assert body == expected


@pytest.mark.parametrize("way", ["trace", "modules"])
def test_many_branches_are_one_line(way: str) -> None:
    model = nn.Sequential(nn.Conv2d(1024, 2048, 1, groups=512), nn.ReLU())
    result = groupfx.rewrite(model, (torch.randn(2, 1024, 1, 1),), way=way, verify=False)
    assert emit_python(result).count("\n") < 70


def test_the_signature_is_that_of_the_original() -> None:
    def forward(self: Any, x: Any, /, y: Any = 3.5, *, scale: Any = 2, conv: Any = None) -> Any:
        return self.c(x) * y

    model = em.with_forward(forward)
    result = groupfx.rewrite(model, (torch.randn(2, 4, 7),), way="trace", verify=False)
    made = made_from(emit_python(result), result, model)
    ours = inspect.signature(made.forward).parameters.values()
    theirs = inspect.signature(model.forward).parameters.values()
    assert [(p.name, p.kind, p.default) for p in ours] == [
        (p.name, p.kind, p.default) for p in theirs
    ]


@pytest.mark.parametrize(("module", "expected"), em.LEAVES, ids=[text for _, text in em.LEAVES])
def test_a_layer_is_written_with_the_arguments_that_matter(
    module: nn.Module, expected: str
) -> None:
    result = groupfx.rewrite(em.Unused(module), (torch.randn(2, 4, 5),), way="trace", verify=False)
    source = "".join(emit_python(result).split()).replace(",)", ")").replace(",]", "]")
    assert f"range(2)), {expected}])".replace(" ", "") in source


# Names are text, and text does not become code

ODD_NAMES = ["a b", "1", "class", "__mangled", "é", "x'y", 'x"); raise SystemExit #', "a\nb", "\\"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_an_odd_name_stays_a_name_in_a_model_of_swaps(name: str, tmp_path: Path) -> None:
    model = refused.named(name)
    result = groupfx.rewrite(model, (torch.randn(2, 4, 7),), way="modules", verify=False)
    source = emit_python(result)
    made = executed(source)["rewrite"](copy.deepcopy(model))
    assert list(made.state_dict()) == list(result.model.state_dict())
    assert complaints(source, tmp_path) == ""


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_an_odd_name_stays_a_name_in_a_graph(name: str, tmp_path: Path) -> None:
    model = refused.named("plain")
    result = groupfx.rewrite(model, (torch.randn(2, 4, 7),), way="trace", verify=False)
    # fx pastes names into source as they are, so that such a graph comes from elsewhere.
    refused.rename(result.model, "plain", name)
    source = emit_python(result)
    made = made_from(source, result, model)
    assert list(made.state_dict()) == list(result.model.state_dict())
    assert made(torch.randn(2, 4, 7)).shape == (2, 4, 7)
    assert complaints(source, tmp_path) == ""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise)]
    assert calls == []


@pytest.mark.parametrize("name", ["Parts", "F", "torch", "Tensor", "list", "__X", "class", "é"])
def test_a_class_may_have_any_name(name: str) -> None:
    model = type(name, (em.Grouped,), {})()
    result = groupfx.rewrite(model, (torch.randn(2, 4, 7),), verify=False)
    made_from(emit_python(result), result, model)


# Refusals


@pytest.mark.parametrize("name", HOOKED)
def test_hooks_are_refused_by_name(name: str) -> None:
    _, _, result = rewritten(CASES[name])
    with pytest.raises(RewriteError, match=r"(conv|bn) .*hooks, which a file cannot hold"):
        emit_python(result)


@pytest.mark.parametrize(
    ("model", "inputs", "way", "message"), refused.REFUSED.values(), ids=refused.REFUSED
)
def test_what_cannot_be_written_is_refused(
    model: nn.Module, inputs: tuple[Any, ...], way: str, message: str
) -> None:
    result = groupfx.rewrite(model, inputs, way=way, verify=False)
    with pytest.raises(GroupfxError, match=message) as caught:
        emit_python(result)
    assert isinstance(caught.value, RewriteError)


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
