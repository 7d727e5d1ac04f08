"""The rewritten model as readable Python, for those who split grouped convolutions by hand."""

from __future__ import annotations

from torch import fx

from ..errors import RewriteError
from ..rewriting import Result
from .checked import checked
from .graph import graph_file
from .model import model_file

__all__ = ["emit_python"]


def emit_python(result: Result) -> str:
    """The text of a Python file that gives what `result` holds, without the numbers.

    Where the model has a class of its own, the file changes a model of that class: `rewrite(model)`
    puts containers in the place of its convolutions, and gives another forward to those modules
    alone in which other operations changed as well; `to_branches` and `from_branches` carry
    state_dicts there and back. Where it has none (a graph, an exported program), or where channels
    changed their order in other layers too, the file has a class with the keys of `result.model`,
    whose numbers it loads, and says why. Either file needs torch alone, and was run and compared
    before it is returned.

    Raises RewriteError for what cannot be written: hooks in a graph, layers without a constructor
    call, constants of thousands of numbers.
    """
    try:
        return checked(model_file(result), result)
    except RewriteError as error:
        if not isinstance(result.model, fx.GraphModule) or result.program.way == "modules":
            raise
        reason = error
    try:
        return checked(graph_file(result, result.model, str(reason)), result)
    except RewriteError as error:
        raise RewriteError(f"{error}; and no file can change the model, for {reason}") from error
