"""The rewritten model as readable Python, for those who split grouped convolutions by hand."""

from __future__ import annotations

import types

from torch import fx, nn

from ..errors import ModelError, RewriteError
from ..rewriting import Result
from ..tracing.program import copied
from ..verify import compare_models
from .graph import graph_file
from .model import model_file

__all__ = ["emit_python"]


def emit_python(result: Result) -> str:
    """The text of a Python file that gives what `result` holds, without the numbers.

    Where the model has a class of its own, the file changes a model of that class: `rewrite(model)`
    puts containers in the place of its convolutions, `to_branches` and `from_branches` carry
    state_dicts there and back. Where it has none (a graph, an exported program), or where
    convolutions that are function calls leave no module to put anything into, the file has a class
    with the keys of `result.model`, whose numbers it loads. Either file needs torch alone, and was
    run and compared before it is returned.

    Raises RewriteError for what cannot be written: hooks in a graph, layers without a constructor
    call, constants of thousands of numbers.
    """
    try:
        text = model_file(result)
        _require_same(result, _changed(text, result))
    except RewriteError as error:
        if not isinstance(result.model, fx.GraphModule) or result.program.way == "modules":
            raise
        reason = error
    else:
        return text
    try:
        text = graph_file(result, result.model)
    except RewriteError as error:
        raise RewriteError(f"{error}; and no file can change the model, for {reason}") from error
    _require_same(result, _made(text, result))
    return text


def _names(text: str) -> types.ModuleType:
    module = types.ModuleType("emitted")
    exec(compile(text, "emitted.py", "exec"), module.__dict__)
    return module


def _changed(text: str, result: Result) -> nn.Module | None:
    """A copy of the original that the file has changed; None where there is no copy of it."""
    try:
        model = copied(result.program.model, share=False)
    except ModelError:
        return None
    changed: nn.Module = _names(text).rewrite(model)
    return changed


def _made(text: str, result: Result) -> nn.Module:
    """The model that the file makes, its numbers loaded."""
    kinds = [kind for kind in vars(_names(text)).values() if isinstance(kind, type)]
    model: nn.Module = [kind for kind in kinds if kind.__module__ == "emitted"][-1]()
    model.load_state_dict(result.model.state_dict())
    return model.train(result.model.training)


def _require_same(result: Result, made: nn.Module | None) -> None:
    """Raise RewriteError where a model of the file computes something else."""
    if made is None or result.program.inputs is None:
        return
    verdict = compare_models(result.model, made, result.program.inputs, vary=False)
    if not verdict.ok:
        raise RewriteError(f"what the file makes is another function: {verdict.reason}")
