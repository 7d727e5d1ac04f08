"""What a node of a graph does and where it is written, in the words of whoever wrote the model."""

import sys
from types import FrameType

import torch
from torch import fx, nn

# In the meta of a node: the file and the line of the user's code that made it.
LINE = "line"

# What is further out called the trace, and is no part of the model.
_TRACE = fx.Tracer.trace.__code__
_LIBRARIES = ("torch", __name__.partition(".")[0])


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


def line_of(node: fx.Node) -> str | None:
    """Where the user wrote what `node` does, as `file:line`; None where that is not known."""
    line = node.meta.get(LINE)
    return None if line is None else str(line)


def owner_of(node: fx.Node) -> str:
    """Path of the module whose forward made `node`; empty for the model's own."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = str(next(reversed(stack.values()))[0])
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
