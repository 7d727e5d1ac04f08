"""The third way in: the graph of `torch.export`."""

import contextlib
import inspect
import io
import operator
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..convs.calls import ConvCall, read_conv
from ..errors import kind_and_line, no_exit
from ..nn import ByMode
from ..running.alone import beside
from ..running.grouped_runs import at
from ..running.inputs import ExampleInputs, in_order
from ..running.log_lines import held_back
from ..running.unchanged import evaluate, unchanged
from .both_modes import knows_modes, made_of_both
from .graphs import adopt, inner_graphs, keep_transient, restore_order
from .hooks import backward_hooked
from .places import LINE, innermost_line, line_of
from .tracer import CannotTrace

_WHY_FIXED = "why it is of one mode"


class ExportedModule(fx.GraphModule):
    """A graph that `torch.export` made of one mode, which it has for good and says so."""

    @property
    def why_fixed(self) -> str | None:
        """Why it is not of both modes, where that was tried."""
        return self.meta.get(_WHY_FIXED)

    @classmethod
    def of(cls, graph: fx.GraphModule) -> "ExportedModule":
        """The same graph, tensors and children, as this class."""
        made = _rebuilt(graph, cls)
        assert isinstance(made, cls)
        made.training = False
        keep_transient(made)
        return made

    def train(self, mode: bool = True) -> "ExportedModule":
        """Refused: what train mode does differently is not in the graph any more."""
        if mode:
            raise NotImplementedError(
                "this graph was exported in one mode, and knows no other: rewrite the model that "
                "it was made of, which keeps both, with way='export' too"
            )
        return self


def _rebuilt(graph: fx.GraphModule, kind: type[fx.GraphModule]) -> fx.GraphModule:
    """The same graph, tensors and children, of another class."""
    # Whoever reads a pickle of it needs no tracer, and could not make one.
    graph.graph._tracer_cls = None
    made = kind(graph, graph.graph, class_name=type(graph).__name__)
    for held in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        made.__dict__[held].update(graph.__dict__[held])
    made.training = graph.training
    return made


def in_its_modes(graph: fx.GraphModule) -> fx.GraphModule:
    """What an export wrote, as a model with a train mode where its graph knows of one."""
    return graph if knows_modes(graph) else ExportedModule.of(graph)


Axes = Callable[[torch.Tensor], Collection[int]]
"""Which dimensions of an input may have other sizes."""


def all_axes(tensor: torch.Tensor) -> Collection[int]:
    """Every dimension."""
    return range(tensor.dim())


def first_axis(tensor: torch.Tensor) -> Collection[int]:
    """The batch alone."""
    return range(min(tensor.dim(), 1))


def export_program(
    model: nn.Module,
    inputs: ExampleInputs,
    axes: Axes = all_axes,
    batch: int | None = 2,
    *,
    training: bool = False,
    grad: bool = False,
    levels: bool = False,
) -> torch.export.ExportedProgram:
    """`torch.export` in eval mode and with a batch of 2, the sizes in `axes` dynamic that can be.

    `batch` is another number of rows to export with, None those of the inputs; `training` exports
    in train mode, and with `grad` the graph tells which parts of it have no gradient. Where the
    model calls `torch.vmap` or its kin, the graph holds what that computes; with `levels` it holds
    the calls that open and close it, which are of use all together alone.

    Raises `CannotTrace` with the reason where the exporter refuses.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise CannotTrace("the model is TorchScript")
    pair = in_order(model, inputs if batch is None else inputs.with_batch(batch))
    dynamic = torch.export.Dim.AUTO

    def sizes(value: Any) -> Any:
        return dict.fromkeys(axes(value), dynamic) if isinstance(value, torch.Tensor) else None

    shapes = torch.utils._pytree.tree_map(
        sizes, inspect.signature(model.forward).bind(*pair.args, **pair.kwargs).arguments
    )
    with unchanged(model), torch.set_grad_enabled(grad):
        evaluate(model, training=training)
        said = io.StringIO()
        try:
            # Where it refuses, torch prints the graph; the error says what matters.
            with (
                contextlib.redirect_stderr(said),
                no_exit(type(model).__name__),
                beside(model),
                held_back(),
            ):
                program = torch.export.export(
                    model, pair.args, dict(pair.kwargs), dynamic_shapes=dict(shapes)
                )
                if not levels and any(map(_of_a_level, program.graph.nodes)):
                    program = program.run_decompositions({})
        except Exception as error:
            raise CannotTrace(kind_and_line(error)) from error
        sys.stderr.write(said.getvalue())
        return program


def as_exported_module(program: torch.export.ExportedProgram) -> ExportedModule:
    """The graph of an exported program as a module."""
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return ExportedModule.of(module)


_BOTH = "exported in both modes"


@dataclass(frozen=True)
class Exported:
    """A graph of `torch.export`, of both modes or in eval mode, and notes on what it fixed.

    `dynamic` is False where it fixed sizes of the inputs.
    """

    module: fx.GraphModule
    notes: tuple[str, ...]
    dynamic: bool


def exported(
    model: nn.Module,
    inputs: ExampleInputs,
    axes: Axes = all_axes,
    *,
    trained: bool = True,
    apart: bool = True,
) -> Exported:
    """Graph of `torch.export`, the sizes in `axes` dynamic that can be.

    Of both modes, where both can be had and, run, are the model's; else, or where nobody asks for a
    train mode (`trained`), of the eval mode. Where the two are built otherwise they lie side by
    side, unless not even that is wanted (`apart`). Raises `CannotTrace` with the reason where the
    exporter refuses.
    """
    lost = backward_hooked(model)
    if lost is not None:
        raise CannotTrace(f"{lost}, which an export would drop")
    evaluated = _of_program(model, inputs, axes)
    made = _of_both(evaluated, model, inputs, axes, apart=apart) if trained else ""
    if isinstance(made, fx.GraphModule):
        module, notes = _rebuilt(made, fx.GraphModule), [_BOTH]
        if any(isinstance(each, ByMode) for each in made.modules()):
            notes = [f"{_BOTH}, with a graph for each: no part of it has a mode of its own"]
    else:
        module = ExportedModule.of(evaluated)
        module.meta[_WHY_FIXED] = made or None
        why = f" ({made})" if made else ""
        notes = [f"exported in eval mode: result.model stays in it{why}"]
    adopt(module, model)
    restore_order(module, model)
    for graph in (module, *(inner for _, inner in inner_graphs(module))):
        for node in graph.graph.nodes:
            node.meta.setdefault(LINE, innermost_line(str(node.meta.get("stack_trace", ""))))
    fixed = list(_assert_fixed_sizes(module))
    if fixed:
        notes.append(f"sizes that the export fixed: {', '.join(fixed)}")
    values = list(_assert_fixed_values(module))
    if values:
        notes.append(f"arguments that the export fixed: {', '.join(values)}")
    return Exported(module, tuple(notes), dynamic=not fixed)


def _of_program(
    model: nn.Module, inputs: ExampleInputs, axes: Axes, *, training: bool = False
) -> fx.GraphModule:
    try:
        program = export_program(model, inputs, axes, training=training, grad=True, levels=True)
    except CannotTrace:
        # An operator may refuse a parameter for which it has no gradient.
        program = export_program(model, inputs, axes, training=training, levels=True)
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    for node in module.graph.find_nodes(op="get_attr"):
        if isinstance(operator.attrgetter(node.target)(module), FakeTensor):
            # Such as the input of `torch.func.grad`, which is none of the graph's any more.
            raise CannotTrace(f"torch.export left a value out, and {node.target} in its place")
    for node in module.graph.nodes:
        node.meta[LINE] = innermost_line(str(node.meta.get("stack_trace", "")))
    vmapped = _conv_under_vmap(module)
    if vmapped is not None:
        where = at(line_of(vmapped) or "")
        raise CannotTrace(f"a grouped convolution{where} runs under torch.vmap, for samples alone")
    return module


def _of_a_level(node: fx.Node) -> bool:
    """Whether a node opens, closes or crosses a level of `torch.vmap` or its kin."""
    return getattr(node.target, "__module__", None) == "torch._functorch.predispatch"


def _conv_under_vmap(module: fx.GraphModule) -> fx.Node | None:
    """A grouped convolution between two calls that open and close a level of `torch.vmap`."""
    level = 0
    node: fx.Node
    for node in module.graph.nodes:
        name = getattr(node.target, "__name__", "")
        level += (name == "_vmap_increment_nesting") - (name == "_vmap_decrement_nesting")
        call = read_conv(node, module) if level else None
        if call is not None and not (isinstance(call, ConvCall) and call.spec.groups == 1):
            return node
    return None


def _of_both(
    evaluated: fx.GraphModule, model: nn.Module, inputs: ExampleInputs, axes: Axes, *, apart: bool
) -> fx.GraphModule | str:
    """One graph of both modes; why there is none."""
    try:
        trained = _of_program(model, inputs, axes, training=True)
    except CannotTrace as error:
        return f"in train mode it cannot be exported: {error}"
    made = made_of_both(evaluated, trained, model, inputs, apart=apart)
    return f"in train mode its graph is another model: {made}" if isinstance(made, str) else made


def _assert_fixed_sizes(module: fx.GraphModule) -> Iterator[str]:
    """Make the graph refuse a batch or spatial size that the exporter took for a constant.

    Without the exporter's guards another size might run and compute something else.
    """
    for node in module.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        for axis, open_size in enumerate(value.shape):
            size = open_size if isinstance(open_size, int) else open_size.node.maybe_as_int()
            if axis == 1 or size is None:
                continue
            message = f"{node.name} was exported with size {size} in dimension {axis}"
            with module.graph.inserting_after(_last_placeholder(module)):
                found = module.graph.call_method("size", (node, axis))
            _assert(module, found, operator.eq, size, message)
            yield f"{node.name}: dimension {axis} = {size}"
    module.recompile()


def _assert_fixed_values(module: fx.GraphModule) -> Iterator[str]:
    """Make the graph refuse another value than it was exported with, where it takes no tensor."""
    for node in module.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if value is None or isinstance(value, bool | int | float | str):
            same = operator.is_ if value is None else operator.eq
            message = f"{node.name} was exported as {value!r}, and the graph knows nothing else"
            _assert(module, node, same, value, message)
            yield f"{node.name} = {value!r}"
    module.recompile()


def _last_placeholder(module: fx.GraphModule) -> fx.Node:
    nodes: list[fx.Node] = list(module.graph.find_nodes(op="placeholder"))
    return nodes[-1]


def _assert(
    module: fx.GraphModule, found: fx.Node, same: Callable[..., bool], value: Any, message: str
) -> None:
    """An assertion on `found`, behind it and all placeholders."""
    behind = _last_placeholder(module) if found.op == "placeholder" else found
    with module.graph.inserting_after(behind):
        held = module.graph.call_function(same, (found, value))
    with module.graph.inserting_after(held):
        module.graph.call_function(torch._assert, (held, message))
