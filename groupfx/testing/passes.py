"""A checker for passes: what every rewrite must hold to, in one call.

    from groupfx.testing import check_pass

    check_pass(SplitGroupedConv(), model, (x,), sites=2)

It raises `AssertionError` with the rule that was broken. The tests of groupfx use nothing else for
this, so a pass that is checked here is held to what the built-in ones are held to.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from ..api.models import load
from ..rewriting import Pass, Pipeline, Result
from ..running.inputs import ExampleInputs
from ..running.unchanged import unchanged
from ..tracing.tracer import seeded

__all__ = ["check_pass"]


def check_pass(
    pass_: Pass[Any],
    model: nn.Module,
    inputs: object,
    *,
    sites: int,
    skipped: int | None = None,
    way: str = "auto",
    again: int = 0,
    saved: bool = True,
) -> Result:
    """Run `pass_` on `model` and hold the result to every rule of a rewrite.

    Checked: the model is untouched; exactly `sites` sites, or operations, are rewritten (and
    `skipped` skipped); each of them and the whole model compute the same (float64, both modes,
    gradients); dtypes, devices, training flags and `requires_grad` are kept; the graph lints and
    holds nothing that nothing uses; a second run rewrites `again` of them; the result survives a
    deep copy, and, with `saved`, a file of ours. Returns the result for more checks.
    """
    example = ExampleInputs.of(inputs)
    before = _snapshot(model)
    result = Pipeline([pass_])(model, example, way=way)
    _same(before, _snapshot(model), "the pass changed the model that it was given")
    report = result.report
    found = [each.name for each in report.judged]
    _equal(len(found), sites, f"sites rewritten ({', '.join(found)})")
    if skipped is not None:
        reasons = [f"{site.name}: {site.reason}" for site in report.skipped]
        _equal(len(reasons), skipped, f"sites skipped ({'; '.join(reasons)})")
    assert report.verified, "the rewrite was not checked"
    assert report.ok, f"the check failed: {report.to_dict()['model']}"
    _check_attributes(model, result)
    _check_state(model, result)
    _check_graphs(result)
    twin = copy.deepcopy(result.model)
    _check_outputs(result.model, twin, example, "a deep copy")
    second = Pipeline([pass_])(result.model, example, verify=False)
    _equal(len(second.report.judged), again, "sites that a second run rewrote")
    if saved:
        _check_file(result, model, example)
    return result


def _snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that a rewrite must leave alone."""
    taken: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        taken[f"{path}: class"] = type(module)
        taken[f"{path}: training"] = module.training
        taken[f"{path}: children"] = [(name, id(child)) for name, child in module._modules.items()]
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            taken[f"{path}: {kind}"] = list(getattr(module, kind))
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                value = tensor.detach().clone()
                gradient = None if tensor.grad is None else tensor.grad.clone()
                taken[f"{path}.{name}"] = (id(tensor), tensor.requires_grad, value, gradient)
    return taken


def _same(before: Any, after: Any, rule: str) -> None:
    assert before.keys() == after.keys(), f"{rule}: {sorted(before.keys() ^ after.keys())[:3]}"
    for key, value in before.items():
        assert _equals(value, after[key]), f"{rule}: {key}"


def _equals(value: Any, other: Any) -> bool:
    if isinstance(value, tuple):
        return all(_equals(v, o) for v, o in zip(value, other, strict=True))
    if isinstance(value, torch.Tensor):
        return isinstance(other, torch.Tensor) and _same_bits(value, other)
    return bool(value == other)


def _same_bits(value: torch.Tensor, other: torch.Tensor) -> bool:
    return value.dtype == other.dtype and torch.equal(value.nan_to_num(), other.nan_to_num())


def _equal(found: int, expected: int, what: str) -> None:
    assert found == expected, f"{what}: {found}, expected {expected}"


def _check_attributes(model: nn.Module, result: Result) -> None:
    """Each tensor of the result keeps dtype, device and `requires_grad` of where it came from."""
    original = {**dict(_named(model))}
    for key, tensor in _named(result.model):
        rows = result.state_dict_map.entries.get(key)
        if rows is None:
            continue
        source = original[rows.key]
        for field in ("dtype", "device", "requires_grad"):
            kept = getattr(tensor, field) == getattr(source, field)
            assert kept, f"{key}: {field} is not that of {rows.key}"
        _equal(isinstance(tensor, nn.Parameter), isinstance(source, nn.Parameter), f"{key} is one")
    if result.report.way != "export":
        assert result.model.training == model.training, "the training flag is not the model's"


def _named(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]


def _check_state(model: nn.Module, result: Result) -> None:
    """The map carries the original's state_dict into the result and back, bit for bit."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state_map = result.state_dict_map
    unknown = set(result.model.state_dict()) ^ state_map.keys
    assert not unknown, f"the state_dict map and the model differ in {sorted(unknown)[:3]}"
    converted = state_map.convert(state)
    _same(
        dict(result.model.state_dict()), converted, "the result does not hold the model's weights"
    )
    back = state_map.to_original(fill=state)
    _same(state, back, "the way back from the result is not the model's state_dict")


def _check_graphs(result: Result) -> None:
    for fragment in result.program.fragments:
        graph, root = fragment.working.graph, fragment.working
        graph.lint()
        before = {node.name for node in fragment.reference.graph.nodes if not node.users}
        unused = [
            node.name
            for node in graph.nodes
            if node.op in ("get_attr", "call_module")
            and not (node.users or node.name in before or _writes(node, root))
        ]
        assert not unused, f"nothing uses {', '.join(unused)}"
        if fragment.changed:
            _check_orphans(fragment.reference, root)


def _writes(node: fx.Node, root: fx.GraphModule) -> bool:
    """Whether calling a module has an effect besides its output (a counter, a statistic)."""
    return node.op == "call_module" and any(
        True for _ in root.get_submodule(str(node.target)).buffers()
    )


def _check_orphans(reference: fx.GraphModule, working: fx.GraphModule) -> None:
    """Every module with tensors that the rewrite made is called or read by the graph."""
    known = {path for path, _ in reference.named_modules(remove_duplicate=False)}
    targets = [str(n.target) for n in working.graph.nodes if n.op in ("call_module", "get_attr")]
    used = {working.get_submodule(t) for t in targets if _is_module(working, t)}
    read = {t.rpartition(".")[0] for t in targets if not _is_module(working, t)}
    inner = {module for leaf in used for module in leaf.modules()}
    for path, module in working.named_modules(remove_duplicate=False):
        own = [*module._parameters.values(), *module._buffers.values()]
        if path in known or path in read or module in inner or not any(t is not None for t in own):
            continue
        raise AssertionError(f"nothing calls {path}, which the rewrite made")


def _is_module(root: nn.Module, target: str) -> bool:
    path, _, name = target.rpartition(".")
    return name in root.get_submodule(path)._modules


def _check_outputs(model: nn.Module, twin: nn.Module, inputs: ExampleInputs, what: str) -> None:
    outputs = [_outputs(m, inputs) for m in (model, twin)]
    _equal(len(outputs[1]), len(outputs[0]), f"outputs of {what}")
    for value, other in zip(*outputs, strict=True):
        assert _same_bits(value, other), f"{what} computes something else"


def _outputs(model: nn.Module, inputs: ExampleInputs) -> list[torch.Tensor]:
    with seeded(5), unchanged(model), torch.no_grad():
        found = tree_leaves(inputs.map(torch.clone).call(model))
    return [leaf for leaf in found if isinstance(leaf, torch.Tensor)]


def _check_file(result: Result, model: nn.Module, inputs: ExampleInputs) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.groupfx.pt"
        result.save(path)
        given = model if result.report.way == "modules" else None
        loaded = load(path, given)
    _check_outputs(result.model, loaded.model, inputs, "the model read back from a file")
    entries = loaded.state_dict_map.entries
    assert entries == result.state_dict_map.entries, "the file lost the state_dict map"
