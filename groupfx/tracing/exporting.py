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

from ..errors import kind_and_line, no_exit
from ..running.alone import beside
from ..running.inputs import ExampleInputs, in_order
from ..running.unchanged import evaluate, unchanged
from .graphs import adopt, restore_order
from .tracer import CannotTrace


class ExportedModule(fx.GraphModule):
    """A graph that `torch.export` made, which has one mode for good and says so."""

    @classmethod
    def of(cls, graph: fx.GraphModule) -> "ExportedModule":
        """The same graph, tensors and children, as this class."""
        made = cls(graph, graph.graph, class_name=type(graph).__name__)
        for held in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            made.__dict__[held].update(graph.__dict__[held])
        made.training = False
        return made

    def train(self, mode: bool = True) -> "ExportedModule":
        """Refused: what train mode does differently is not in the graph any more."""
        if mode:
            raise NotImplementedError(
                "this model was exported in eval mode, and its graph is that mode's: "
                "train the original and rewrite it again"
            )
        return self


Axes = Callable[[torch.Tensor], Collection[int]]
"""Which dimensions of an input may have other sizes."""


def all_axes(tensor: torch.Tensor) -> Collection[int]:
    """Every dimension."""
    return range(tensor.dim())


def export_program(
    model: nn.Module, inputs: ExampleInputs, axes: Axes = all_axes, batch: int | None = 2
) -> torch.export.ExportedProgram:
    """`torch.export` in eval mode and with a batch of 2, the sizes in `axes` dynamic that can be.

    `batch` is another number of rows to export with, None those of the inputs.

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
    with unchanged(model), torch.no_grad():
        evaluate(model)
        said = io.StringIO()
        try:
            # Where it refuses, torch prints the graph; the error says what matters.
            with (
                contextlib.redirect_stderr(said),
                no_exit(type(model).__name__),
                beside(model),
            ):
                program = torch.export.export(
                    model, pair.args, dict(pair.kwargs), dynamic_shapes=dict(shapes)
                )
        except Exception as error:
            raise CannotTrace(kind_and_line(error)) from error
        sys.stderr.write(said.getvalue())
        return program


def as_exported_module(program: torch.export.ExportedProgram) -> ExportedModule:
    """The graph of an exported program as a module."""
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return ExportedModule.of(module)


@dataclass(frozen=True)
class Exported:
    """A graph of `torch.export` in eval mode, and notes on what it fixed.

    `dynamic` is False where it fixed sizes of the inputs.
    """

    module: fx.GraphModule
    notes: tuple[str, ...]
    dynamic: bool


def exported(model: nn.Module, inputs: ExampleInputs) -> Exported:
    """Graph of `torch.export` in eval mode.

    Raises `CannotTrace` with the reason where the exporter refuses.
    """
    module = as_exported_module(export_program(model, inputs))
    adopt(module, model)
    restore_order(module, model)
    notes = ["exported in eval mode: result.model stays in it"]
    fixed = list(_assert_fixed_sizes(module))
    if fixed:
        notes.append(f"sizes that the export fixed: {', '.join(fixed)}")
    return Exported(module, tuple(notes), dynamic=not fixed)


def _assert_fixed_sizes(module: fx.GraphModule) -> Iterator[str]:
    """Make the graph refuse a batch or spatial size that the exporter took for a constant.

    Without the exporter's guards another size might run and compute something else.
    """
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        for axis, open_size in enumerate(value.shape):
            size = open_size if isinstance(open_size, int) else open_size.node.maybe_as_int()
            if axis == 1 or size is None:
                continue
            with module.graph.inserting_after(placeholders[-1]):
                found = module.graph.call_method("size", (node, axis))
            with module.graph.inserting_after(found):
                same = module.graph.call_function(operator.eq, (found, size))
            message = f"{node.name} was exported with size {size} in dimension {axis}"
            with module.graph.inserting_after(same):
                module.graph.call_function(torch._assert, (same, message))
            yield f"{node.name}: dimension {axis} = {size}"
    module.recompile()
