"""A written file is run before it is given out, and its model compared with the rewritten one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from inspect import isfunction
from typing import Any

import torch
from torch import fx, nn

from ..errors import ModelError, RewriteError
from ..rewriting import Result
from ..running.copies import copied
from ..running.grouped_runs import GroupedRuns, at
from ..running.inputs import ExampleInputs
from ..running.unchanged import evaluate, seed_torch, unchanged
from ..verify import compare_models
from .changes import where


def checked(text: str, result: Result) -> str:
    """`text`, whose model computes what that of `result` does. Raises RewriteError."""
    try:
        made = _made(text, result)
    except ModelError:  # there is no copy of the model that could be changed
        return text
    except RewriteError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise RewriteError(f"the file that was made does not run ({problem})") from error
    if result.program.inputs is not None:
        sides = (_PlainOutput(result.model), _PlainOutput(made))
        verdict = compare_models(*sides, result.program.inputs, vary=False)
        if not verdict.ok:
            raise RewriteError(f"what the file makes is another function: {verdict.reason}")
        _require_branches(sides, result, result.program.inputs)
    return text


def _require_branches(sides: Sequence[nn.Module], result: Result, inputs: ExampleInputs) -> None:
    """That as many convolutions run in as many groups in both models. Raises RewriteError."""
    there, here = (_grouped_runs(side, inputs) for side in sides)
    if there != here:
        left = [site for site in result.report.sites if here[site.spec.groups]]
        places = [site.fragment.place for site in left if site.fragment.place]
        raise RewriteError(
            f"a convolution{at((*places, '')[0])} is called in a way that the file does not "
            "see, and stays in groups: call a function of torch.nn.functional there, or keep the "
            "rewritten model with result.save"
        )


def _grouped_runs(model: nn.Module, inputs: ExampleInputs) -> Counter[int]:
    """How many convolutions in groups run, by their numbers of groups."""
    convs: GroupedRuns[None] = GroupedRuns(lambda: None)
    with unchanged(model), torch.no_grad(), convs:
        evaluate(model)
        seed_torch(0)
        inputs.map(torch.clone).call(model)
    return Counter(run.groups for run in convs.runs)


class _PlainOutput(nn.Module):
    """A model whose output is a plain dict where it is one of a class of a library's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.model(*args, **kwargs)
        return dict(output) if isinstance(output, dict) else output


def require_form(model: nn.Module, result: Result) -> None:
    """That a toolchain which traces the changed model finds the operations of the result.

    Raises RewriteError otherwise; of a result that it refuses, nothing is asked.
    """
    if result.report.obstacles != () or not isinstance(result.model, fx.GraphModule):
        return
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise RewriteError(f"torch.fx alone cannot trace your model ({error})") from error
    own = Counter(_operations(graph, model).values())
    there = _operations(result.model.graph, result.model)
    if own != Counter(there.values()):
        others = (node for node, done in there.items() if not own[done])
        raise RewriteError(
            f"your model's own code{where(*others)} cannot be brought into the form asked for"
        )


def _operations(graph: fx.Graph, model: nn.Module) -> dict[fx.Node, object]:
    """What each call of a graph does, but for those that do nothing."""
    calls = [node for node in graph.nodes if node.op.startswith("call_")]
    held = {n: type(model.get_submodule(str(n.target))) for n in calls if n.op == "call_module"}
    found = {node: held.get(node, node.target) for node in calls}
    return {node: done for node, done in found.items() if done is not nn.Identity}


def _made(text: str, result: Result) -> nn.Module:
    """A copy of the original that the file has changed, or the model that it makes, loaded."""
    space: dict[str, Any] = {"__name__": "emitted"}
    exec(compile(text, "emitted.py", "exec"), space)
    if isfunction(space.get("rewrite")):
        changed: nn.Module = space["rewrite"](copied(result.program.model, share=False))
        require_form(changed, result)
        return changed
    kinds = [kind for kind in space.values() if isinstance(kind, type)]
    model: nn.Module = [kind for kind in kinds if kind.__module__ == "emitted"][-1]()
    model.load_state_dict(result.model.state_dict())
    return model.train(result.model.training)
