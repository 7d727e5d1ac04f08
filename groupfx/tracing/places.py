"""What a node of a graph does and where it is written, in the words of whoever wrote the model."""

import re
import sys
from pathlib import Path
from types import FrameType

import torch
from torch import fx, nn

from ..running.grouped_runs import is_users

# In the meta of a node: the file and the line of the user's code that made it.
LINE = "line"

# What is further out called the trace, and is no part of the model.
_TRACE = fx.Tracer.trace.__code__
_LIBRARIES = ("torch", __name__.partition(".")[0])
_FRAME = re.compile(r'^\s*File "(.+)", line (\d+), in ', re.MULTILINE)


def user_line() -> str | None:
    """File and line of the innermost frame of a trace that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _TRACE:
        room = frame.f_globals.get("__name__", "").partition(".")[0]
        # Code that torch.fx made has no file.
        if room not in _LIBRARIES and not frame.f_code.co_filename.startswith("<"):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def innermost_line(trace: str) -> str | None:
    """As `user_line`, of a stack that `torch.export` noted as text."""
    # What torch adds by itself has a line of its own source, from its folder on.
    frames = [(file, line) for file, line in _FRAME.findall(trace) if Path(file).is_absolute()]
    found = [(file, line) for file, line in frames if is_users(file)]
    return ":".join(found[-1]) if found else None


def line_of(node: fx.Node) -> str | None:
    """Where the user wrote what `node` does, as `file:line`; None where that is not known."""
    line = node.meta.get(LINE)
    return None if line is None else str(line)


_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
"""What torch.export says of a size, which no module's forward computed."""


def owner_of(node: fx.Node) -> str:
    """Path of the module whose forward made `node`; empty for the model's own."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = str(next(reversed(stack.values()))[0])
    if path == _NO_MODULE:
        return ""
    # A call of a module is written in the forward of the module around it.
    if node.op == "call_module" and path == node.target:
        return path.rpartition(".")[0]
    return path


def operation_of(node: fx.Node, root: nn.Module) -> str:
    """What `node` does, as it would be written: `F.relu`, `.view`, `nn.GELU`, `a + b`."""
    if node.op == "call_module":
        kind = type(root.get_submodule(str(node.target)))
        return f"nn.{kind.__name__}" if getattr(nn, kind.__name__, None) is kind else kind.__name__
    if node.op == "call_method":
        return f".{node.target}"
    if node.op != "call_function":
        return node.op
    name = getattr(node.target, "__name__", str(node.target))
    if getattr(nn.functional, name, None) is node.target:
        return f"F.{name}"
    if getattr(torch, name, None) is node.target:
        return f"torch.{name}"
    return str(node.target) if isinstance(node.target, torch._ops.OpOverload) else name
