"""The rewritten model as readable Python, for those who split grouped convolutions by hand."""

from __future__ import annotations

from torch import fx

from ..rewriting import Result
from .model import graph_file
from .swaps import swaps_file

__all__ = ["emit_python"]


def emit_python(result: Result) -> str:
    """The text of a Python file that holds what `result` holds, without the numbers.

    Where the model is one graph, the file has one class of the model's name: its state_dict has the
    keys of `result.model`, whose numbers it loads. Where modules were put into the user's own
    model, the file has a class for each kind of them and a function `rewrite(model)`, which puts
    them into the original and takes its weights over.

    Raises RewriteError for what cannot be written: a leaf module or a function that cannot be
    imported by name, hooks, constants of thousands of numbers.
    """
    model = result.model
    if isinstance(model, fx.GraphModule) and result.program.way != "modules":
        return graph_file(result, model)
    return swaps_file(result)
