"""Export a torch model to an ONNX file, its sites in the forms that were planned for them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import fx, nn

from ...errors import UsageError
from ...nn import Flgc1d, Flgc2d, Flgc3d
from ...plan.branches import Branches
from ...plan.forms import FormPlan
from ...report.pieces import Piece
from ...running.alone import alone
from ...running.copies import copied
from ...running.inputs import ExampleInputs, in_order
from ...tracing.quantised import refuse_packed
from ..forms.site_drawings import site_pieces
from ..graph.files import write_onnx
from .bound_sizes import OpenSizeError
from .io_names import chosen
from .lost_fusions import lost_fusions
from .onnx_graph import (
    DEFAULT_OPSET,
    LEAST_OPSET,
    OnnxGraph,
    SiteForms,
    checked,
    newest_opset,
    onnx_graph,
)
from .torch_export import ConvName, Dynamic, TracedModel, trace_model

DType = Literal["float32", "float16"]
_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_NO_KERNELS = (torch.float64, torch.bfloat16)
# Branches that the exporter must translate one by one: from here on it takes seconds.
_SLOW_FROM = 64


class SlowExportWarning(UserWarning):
    """The export will take long, and why."""


@dataclass(frozen=True)
class ExportOptions:
    """What the file is to be like; see `groupfx.export`."""

    dtype: DType | None = None
    opset: int = DEFAULT_OPSET
    dynamic: Dynamic = field(default_factory=Dynamic)
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    external_data: bool | None = None
    forms: SiteForms = "planned"
    """in what form sites are written, see `SiteForms`"""

    def __post_init__(self) -> None:
        newest = newest_opset()
        if not isinstance(self.opset, int) or not LEAST_OPSET <= self.opset <= newest:
            raise UsageError(
                f"opset {self.opset}: take one from {LEAST_OPSET} to {newest}, such as "
                f"{DEFAULT_OPSET}"
            )
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise UsageError(f"dtype={self.dtype!r}: choose float32 or float16")


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of the file; an open size is its name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class ExportedSite:
    """A grouped or rewritten convolution, and the form that it has in the file."""

    name: str
    form: str
    convs: int


@dataclass(frozen=True)
class Export:
    """An ONNX file that was written, and what is in it. `files` has the external data as well.

    Where forms were chosen for it, `expected` is what it takes by what it would take untouched,
    with every mask folded into its weight: by a cost model, or measured of the
    whole by tuning. `summary` says it. `pieces` are the operations of each site, for a drawing.
    """

    path: Path
    files: tuple[Path, ...]
    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    sites: tuple[ExportedSite, ...]
    nodes: int
    notes: tuple[str, ...]
    expected: float | None = None
    summary: str | None = None
    pieces: Mapping[str, tuple[Piece, ...]] = field(default_factory=dict, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "path": str(self.path),
            "files": [str(path) for path in self.files],
            "opset": self.opset,
            "inputs": [_plain(info) for info in self.inputs],
            "outputs": [_plain(info) for info in self.outputs],
            "sites": [vars(site) for site in self.sites],
            "nodes": self.nodes,
            "notes": list(self.notes),
            "expected": self.expected,
            "summary": self.summary,
        }


def _plain(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "dtype": info.dtype, "shape": list(info.shape)}


@dataclass(frozen=True)
class PreparedExport:
    """An ONNX model in memory, checked by `onnx.checker`; its sites; and notes on it."""

    model: ir.Model
    options: ExportOptions
    sites: tuple[ExportedSite, ...]
    notes: tuple[str, ...]
    data: bytes | None = field(default=None, repr=False)
    expected: float | None = None
    summary: str | None = None
    opset: int | None = None
    """that of the file, where it is not the one of the options"""
    guessed: str | None = None
    """sizes such as `224x224` that forms were chosen for, where nobody gave them"""

    @property
    def promise(self) -> str | None:
        """The summary, which says so where it is for sizes that are a guess."""
        if self.summary is None or self.guessed is None:
            return self.summary
        return f"{self.summary}; at a guessed {self.guessed}"

    def write(self, path: Path, *, overwrite: bool = False) -> Export:
        """Write it whole or not at all. Raises `FileError` where `path` must not be replaced."""
        external = self.options.external_data
        files = write_onnx(self.model, path, overwrite=overwrite, external=external, data=self.data)
        return Export(
            path=path,
            files=files,
            opset=self.options.opset if self.opset is None else self.opset,
            inputs=tuple(_info(value) for value in self.model.graph.inputs),
            outputs=tuple(_info(value) for value in self.model.graph.outputs),
            sites=self.sites,
            nodes=len(self.model.graph),
            notes=self.notes,
            expected=self.expected,
            summary=self.promise,
            pieces=site_pieces(self.model),
        )


@alone
def prepare_export(
    model: nn.Module, inputs: ExampleInputs, options: ExportOptions
) -> PreparedExport:
    """Make the file of `model`, which is not changed, in memory; see `groupfx.export`.

    Raises `ModelError` for what torch.export does not take.
    """
    refuse_packed(model)
    notes = []
    if any(_trains(module) for module in model.modules()):
        notes.append("the model is in train mode: it was exported as it is in eval mode")
    own, example = _in_dtype(model, inputs, options.dtype)
    traced, made, bound = _made(own, example, options)
    notes += [*bound, *traced.notes]
    if traced.fixed:
        notes.append(f"sizes that the model fixes: {', '.join(traced.fixed)}")
    shapes = [tuple(tensor.shape) for tensor in in_order(own, example).tensors()]
    lost = lost_fusions(made.model, shapes)
    notes += [] if lost is None else [lost]
    convs = [replace(conv, form=made.forms.get(conv.name)) for conv in traced.convs]
    return PreparedExport(
        made.model,
        options,
        sites=tuple(_sites(convs)),
        notes=(*notes, *made.notes),
        data=checked(made.model, traced, options.opset),
        expected=None if made.fastest is None else made.fastest.ratio,
        summary=None if made.fastest is None else made.fastest.summary,
        guessed=inputs.guessed,
    )


def _made(
    model: nn.Module, inputs: ExampleInputs, options: ExportOptions
) -> tuple[TracedModel, OnnxGraph, tuple[str, ...]]:
    """The traced model and its graph, with those sizes open that can be; notes on the others."""
    dynamic = options.dynamic
    notes: list[str] = []
    while True:
        traced = _with_names(trace_model(model, inputs, dynamic), options)
        slow = _slow(traced)
        if slow is not None and slow not in notes:
            notes.append(slow)
            warnings.warn(slow, SlowExportWarning, stacklevel=5)
        try:
            return traced, onnx_graph(traced, options.opset, forms=options.forms), tuple(notes)
        except OpenSizeError as error:
            size = error.found
            if not (dynamic.batch if size.batch else dynamic.sizes):
                raise
            fixed = f"the batch is fixed to {inputs.batch}" if size.batch else "they are fixed"
            notes.append(f"{size}: {fixed}")
            dynamic = replace(dynamic, batch=False) if size.batch else replace(dynamic, sizes=False)


def _trains(module: nn.Module) -> bool:
    """Whether a module that computes something is in train mode; a container has no say."""
    holds = type(module) is nn.Module or any(module.children())
    return module.training and not isinstance(module, fx.GraphModule) and not holds


def _with_names(traced: TracedModel, options: ExportOptions) -> TracedModel:
    inputs = chosen(options.input_names, traced.inputs, "input")
    outputs = chosen(options.output_names, traced.outputs, "output")
    both = set(inputs) & set(outputs)
    if both and (options.input_names or options.output_names):
        raise UsageError(f"{', '.join(sorted(both))} names an input and an output: choose others")
    while set(inputs) & set(outputs):
        # All of them, since files whose names agree in part are not compared by position.
        outputs = tuple(f"{name}_out" for name in outputs)
    return replace(traced, inputs=inputs, outputs=outputs)


def _in_dtype(
    model: nn.Module, inputs: ExampleInputs, dtype: DType | None
) -> tuple[nn.Module, ExampleInputs]:
    """The model and its inputs in the wanted dtype, or as they are."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    named = {name: t.dtype for name, t in tensors.items() if t.is_floating_point()}
    named |= {
        f"input {position}": t.dtype
        for position, t in enumerate(inputs.tensors())
        if t.is_floating_point()
    }
    if dtype is None:
        refused = next(((n, kind) for n, kind in named.items() if kind in _NO_KERNELS), None)
        if refused is not None:
            raise UsageError(_no_kernels(*refused))
        return model, inputs
    wanted = _DTYPES[dtype]
    if all(kind == wanted for kind in named.values()):
        return model, inputs
    own = copied(model, share=False)
    convert(own, wanted)
    return own, inputs.map(lambda t: t.to(wanted) if t.is_floating_point() else t)


def _no_kernels(name: str, dtype: torch.dtype) -> str:
    kind = str(dtype).removeprefix("torch.")
    return (
        f"{name} is {kind}, for which ONNX Runtime's CPU has no convolutions: export the model in "
        "another dtype, with dtype='float32' (--dtype float32)"
    )


def convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert floating tensors in place, but not the scores that decide on groups.

    In half precision scores tie that do not tie in float32, and a channel would change its group.
    """
    kept = {
        id(tensor)
        for layer in model.modules()
        if isinstance(layer, (Flgc1d, Flgc2d, Flgc3d))
        for tensor in layer._parameters.values()
    }
    model._apply(lambda t: t.to(dtype) if t.is_floating_point() and id(t) not in kept else t)


def _slow(traced: TracedModel) -> str | None:
    """A warning where the exporter has many branches to translate that it does not know as one."""
    branches = sum(
        node.target is torch.ops.aten.slice.Tensor and any(_is_conv(user) for user in node.users)
        for node in traced.program.graph.nodes
    )
    if branches < _SLOW_FROM:
        return None
    return (
        f"{branches} convolutions read slices: the model is split by hand, and exporting it takes "
        "long, about 0.1 s a branch; export the grouped model and split the file "
        "(groupfx rewrite model.onnx)"
    )


def _is_conv(node: torch.fx.Node) -> bool:
    return "conv" in str(node.target)


def _sites(convs: Sequence[ConvName]) -> Iterator[ExportedSite]:
    for conv in convs:
        if isinstance(conv.form, FormPlan):
            number = len(conv.form.convs)
            yield ExportedSite(conv.name, _plan_text(conv, conv.form), number)
        elif conv.form is not None:
            yield ExportedSite(conv.name, _split_text(conv.form), len(conv.form))
        elif conv.groups is not None and conv.groups > 1:
            yield ExportedSite(conv.name, f"one convolution, groups {conv.groups}", 1)


def _split_text(branches: Branches) -> str:
    text = f"split into {len(branches)}"
    return text if branches.single else f"{text}, {max(branches.groups)} groups each at most"


def _plan_text(conv: ConvName, plan: FormPlan) -> str:
    groups = [conv.groups for conv in plan.convs]
    if conv.groups is not None and conv.groups > 1:
        return f"{conv.groups} groups merged into {groups[0]}"
    if groups == [1]:
        return "frozen: one dense convolution"
    text = "frozen: " + ", ".join("dense" if g == 1 else f"groups {g}" for g in groups[:4])
    return text if len(groups) <= 4 else f"{text} and {len(groups) - 4} more"


def _info(value: ir.Value) -> TensorInfo:
    dtype = "unknown" if value.dtype is None else value.dtype.name.lower()
    shape = tuple(
        size if isinstance(size, int) else str(size.value or "?") for size in value.shape or ()
    )
    names = {"float": "float32", "double": "float64"}
    return TensorInfo(value.name or "", names.get(dtype, dtype), shape)
