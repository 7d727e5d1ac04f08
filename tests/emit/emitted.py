"""Emitted files, executed, and what tells their models from those that they were made of."""

import ast
import compileall
import copy
import random
import subprocess
import types
from pathlib import Path
from typing import Any

import torch
from ruff import find_ruff_bin
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import groupfx
from groupfx.rewriting import Result
from groupfx.tracing import ExportedModule
from tests.models import zoo


def double(value: Any) -> Any:
    """Tensors of floating-point numbers in float64."""

    def one(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(one, value)


def executed(source: str) -> dict[str, Any]:
    """The names that the file defines; it may not ask for groupfx."""
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
    }
    assert "groupfx" not in imported
    module = types.ModuleType("emitted")
    exec(compile(source, "emitted.py", "exec"), module.__dict__)
    return module.__dict__


def loaded(source: str, result: Result) -> nn.Module:
    """The model that a file with a graph makes, with the numbers of the rewritten one."""
    kinds = [v for v in executed(source).values() if isinstance(v, type)]
    model: nn.Module = [kind for kind in kinds if kind.__module__ == "emitted"][-1]()
    model.load_state_dict(result.model.state_dict(), strict=True)
    return model.train(result.model.training)


def changed(source: str, original: nn.Module) -> nn.Module:
    """The original, changed by the file; state_dicts are carried there and back."""
    names = executed(source)
    state = {key: tensor.clone() for key, tensor in original.state_dict().items()}
    model: nn.Module = names["rewrite"](original)
    assert model is original
    if "to_branches" in names:
        assert equal(names["to_branches"](state), model.state_dict()), "to_branches"
        more = (state,) if "FROZEN" in names else ()
        assert equal(names["from_branches"](model.state_dict(), *more), state), "from_branches"
    return model


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two state_dicts are the same to the bit; groups that nobody chose are NaN."""
    return one.keys() == other.keys() and all(
        same(one[key].nan_to_num(1e9), other[key].nan_to_num(1e9)) for key in one
    )


def made_from(source: str, result: Result, original: nn.Module) -> nn.Module:
    """The model that the file gives, of either kind."""
    return changed(source, original) if "\ndef rewrite(" in source else loaded(source, result)


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
    found = []
    if trained(made) != trained(result.model):
        found.append("gradients")
    modes = ("as it is",) if fixed(result.model) else ("as it is", "eval", "train")
    for mode in modes:
        if mode != "as it is":
            made.train(mode == "train")
            result.model.train(mode == "train")
        pairs = zip(outputs(made, inputs), outputs(result.model, inputs), strict=True)
        if not all(same(one, other) for one, other in pairs):
            found.append(f"outputs, {mode}")
    if numbers(made) != numbers(result.model):
        found.append("state after a call, train")
    return found


def fixed(model: nn.Module) -> bool:
    """Whether a model is an exported program, which refuses to be in another mode."""
    if isinstance(model, ExportedModule):
        return True
    try:
        model.train(model.training)
    except NotImplementedError:
        return True
    return False


def trained(model: nn.Module) -> int:
    """How many numbers of a model have a gradient."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def numbers(model: nn.Module) -> list[float]:
    """The numbers of a state_dict in the order of their size, wherever they lie (NaN as one)."""
    tensors = [t.nan_to_num(1e9) for t in model.state_dict().values() if t.is_floating_point()]
    return sorted(x for tensor in tensors for x in tensor.flatten().tolist())


def complaints(source: str, folder: Path) -> str:
    """What Python, the linter and the formatter have to say about a file of this text."""
    path = folder / "emitted.py"
    path.write_text(source, encoding="ascii")
    assert compileall.compile_file(path, quiet=1)
    ruff = [find_ruff_bin()]
    common = ["--isolated", "--no-cache", "--line-length", "100", str(path)]
    commands = [
        [*ruff, "check", "--select", "E,F,I", *common],
        [*ruff, "format", "--diff", *common],
    ]
    runs = [subprocess.run(c, capture_output=True, text=True, check=False) for c in commands]
    return "".join(run.stdout + run.stderr for run in runs if run.returncode)


def rewritten(case: zoo.Case, way: str = "auto", **options: Any) -> tuple[nn.Module, Any, Result]:
    """The original in float64, its inputs, and the result."""
    model, inputs = case.build().double(), double(case.inputs())
    return model, inputs, groupfx.rewrite(model, inputs, way=way, verify=False, **options)
