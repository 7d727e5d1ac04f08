"""What a graph does not say of a model: classes of the user's, and what was put on an instance."""

from torch import fx, nn
from torch.utils._pytree import tree_leaves

from ..convs.spec import written_class
from ..nn.swapped import is_compiled
from ..running.grouped_runs import place_of
from ..running.inputs import ExampleInputs
from .hooks import hooked
from .tracer import CannotTrace


def users_input(inputs: ExampleInputs) -> str | None:
    """Name of a class of the user's among the arguments, whose attributes a graph would read."""
    for value in (*inputs.args, *inputs.kwargs.values()):
        for leaf in tree_leaves(value):
            kind = type(leaf)
            if kind.__module__.partition(".")[0] not in ("builtins", "torch") or callable(leaf):
                return f"{kind.__module__}.{kind.__qualname__}"
    return None


def users_output(graph: fx.GraphModule) -> str | None:
    """Name of a class of the user's in the output, which a graph would have to call."""
    pending = list(graph.graph.output_node().all_input_nodes)
    while pending:
        node = pending.pop()
        if node.op == "call_function" and isinstance(node.target, type):
            if node.target.__module__ != "builtins":
                return f"{node.target.__module__}.{node.target.__qualname__}"
            pending += node.all_input_nodes
    return None


def is_plain_graph(graph: fx.GraphModule) -> bool:
    """Whether a model is its graph and nothing else: of a class of torch's or of ours."""
    return written_class(graph).__module__.startswith(("torch.", "groupfx."))


def closing_over_modules(module: nn.Module) -> str | None:
    """Where a function is written that is the forward of one instance and closes over modules."""
    forward = vars(module).get("forward")
    cells = getattr(forward, "__closure__", None) or ()
    held = (cell.cell_contents for cell in cells)
    if is_compiled(module) or not any(
        isinstance(getattr(v, "__self__", v), nn.Module) for v in held
    ):
        return None
    code = getattr(forward, "__code__", None)
    return "" if code is None else f", {place_of(code.co_filename, code.co_firstlineno)}"


def require_no_more(graph: fx.GraphModule) -> None:
    """Raise `CannotTrace` where somebody added to a graph what is not in it."""
    if "forward" in vars(graph):
        raise CannotTrace("its forward was put on this instance, not on its class")
    kinds = hooked(graph)
    if kinds:
        raise CannotTrace(f"the model has {kinds[0]}, which are not in its graph")
