"""Split the grouped convolutions of an ONNX model that came from anywhere.

The argument is never changed: the work is done on a clone, which shares the numbers of the weights
that stay. Which sites are split is the pass's decision, asked for by a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import onnx
import onnx_ir as ir

from ...convs.spec import ConvSpec
from ...version import __version__
from ..graph.conv_nodes import (
    FIRST_IR_WITH_DEFAULTS,
    ConvNode,
    LeftNode,
    Shapes,
    conv_nodes,
    is_convolution,
)
from ..graph.files import PRODUCER
from ..graph.metadata import mark
from ..graph.tensors import nodes, tensors
from .splitting import Names, following_norm, split_conv

Declines = Callable[[str, ConvSpec, bool], str | None]
"""Name and fields of a site, and whether freezing made it; a reason to leave it, or None."""

_MOST_BYTES_OF_SCALES = 64
_PARAMETER_TYPES = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)


@dataclass(frozen=True)
class OnnxSite:
    """One grouped convolution: what it is, and what a split makes of it.

    `macs` are multiply-accumulates of one call for one sample, None where shapes are not known.
    `reason` says why it is left as it is, `after` then is None and `branches` 0.
    """

    name: str
    kind: str
    groups: int | None
    before: str
    after: str | None
    branches: int
    macs: int | None
    notes: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class OnnxSkipped:
    """A grouped convolution that was left as it is, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class OnnxTotals:
    """Size of a model. `macs` are those of its convolutions for one sample."""

    convs: int
    grouped: int
    parameters: int
    macs: int | None


@dataclass(frozen=True)
class OnnxRewrite:
    """The rewritten model, and what was done at each site."""

    model: ir.Model
    sites: tuple[OnnxSite, ...]
    skipped: tuple[OnnxSkipped, ...]
    before: OnnxTotals
    after: OnnxTotals
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Planned:
    """A site, and where it is split the convolution and the normalisation to go with it."""

    site: OnnxSite
    conv: ConvNode | None = None
    norm: ir.Node | None = None


def find_onnx(model: ir.Model, declines: Declines, *, norms: bool = True) -> tuple[OnnxSite, ...]:
    """Every grouped convolution of `model`, in order, and what `split_onnx` would make of it."""
    work = model.clone()
    _without_listed_initializers(work)
    return tuple(planned.site for planned in _plan(work, declines, norms, static_shapes(work)))


def split_onnx(model: ir.Model, declines: Declines, *, norms: bool = True) -> OnnxRewrite:
    """Split every grouped convolution that `declines` takes; `model` is not changed.

    `norms` moves a BatchNormalization that follows into the branches. Inputs and outputs keep
    their names.
    """
    work = model.clone()
    notes = _without_listed_initializers(work)
    shapes = static_shapes(work)
    before = _totals(work, shapes)
    planned = _plan(work, declines, norms, shapes)
    # What stays in one piece is a site too: it is compared with the original's by its name.
    for conv in conv_nodes(work, shapes)[0]:
        mark(conv.node, conv.name)
    _split_all(work, planned)
    work.producer_name, work.producer_version = PRODUCER, __version__
    sites = [plan.site for plan in planned]
    changed = any(site.reason is None for site in sites)
    return OnnxRewrite(
        model=work,
        sites=tuple(site for site in sites if site.reason is None),
        skipped=tuple(
            OnnxSkipped(site.name, site.kind, site.reason) for site in sites if site.reason
        ),
        before=before,
        after=_totals(work, static_shapes(work)) if changed else before,
        notes=notes,
    )


def _split_all(model: ir.Model, planned: tuple[_Planned, ...]) -> None:
    names = Names(model)
    for plan in planned:
        if plan.conv is not None:
            split_conv(model, plan.conv, norm=plan.norm, names=names)


def static_shapes(model: ir.Model) -> Shapes:
    """The shapes of the main graph that are numbers when the batch is 1, by the names of values.

    Empty where onnx's shape inference fails. The model is not changed.
    """
    work = model.clone()
    for value in tuple(work.graph.inputs):
        if not value.is_initializer():
            _set_batch_one(value)
    for name, value in tuple(work.graph.initializers.items()):
        if _is_weight(value.const_value):
            del work.graph.initializers[name]
            if not value.is_graph_input():
                work.graph.inputs.append(value)
    try:
        inferred = onnx.shape_inference.infer_shapes(ir.to_proto(work), data_prop=True)
    except Exception:
        # What the C++ code raises on a graph that it cannot digest is not of one kind.
        return {}
    graph = inferred.graph
    found = {}
    for info in (*graph.input, *graph.value_info, *graph.output):
        shape = _static(info.type.tensor_type)
        if shape is not None:
            found[info.name] = shape
    return found


def _is_weight(tensor: ir.TensorProtocol | None) -> bool:
    """Whether inference needs its shape only; of sizes and scales it reads the numbers."""
    if tensor is None or tensor.dtype not in _PARAMETER_TYPES:
        return False
    return tensor.nbytes > _MOST_BYTES_OF_SCALES


def _set_batch_one(value: ir.Value) -> None:
    shape = value.shape
    if shape is None or len(shape) == 0 or isinstance(shape[0], int):
        return
    value.shape = ir.Shape([1, *shape[1:]])


def _static(kind: onnx.TypeProto.Tensor) -> tuple[int, ...] | None:
    if not kind.HasField("shape"):
        return None
    if not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return None
    return tuple(dim.dim_value for dim in kind.shape.dim)


def _without_listed_initializers(model: ir.Model) -> tuple[str, ...]:
    """Bring a file of IR version 3 to one in which an initialiser is no input; what was done.

    Up to version 3 every initialiser had to be listed as an input and was a constant all the same.
    """
    if model.ir_version >= FIRST_IR_WITH_DEFAULTS:
        return ()
    old = model.ir_version
    kept = [value for value in model.graph.inputs if not value.is_initializer()]
    removed = len(model.graph.inputs) - len(kept)
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    imports = [onnx.helper.make_opsetid(*entry) for entry in model.opset_imports.items()]
    needed = onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True)
    model.ir_version = max(FIRST_IR_WITH_DEFAULTS, needed)
    return (
        f"IR version {old} became {model.ir_version}: {removed} initializers that it listed as "
        "inputs are no inputs any more",
    )


def _plan(model: ir.Model, declines: Declines, norms: bool, shapes: Shapes) -> tuple[_Planned, ...]:
    convs, left = conv_nodes(model, shapes)
    found = [_plan_site(conv, declines, norms, shapes) for conv in convs if conv.spec.groups > 1]
    return (*found, *map(_left, left))


def _plan_site(conv: ConvNode, declines: Declines, norms: bool, shapes: Shapes) -> _Planned:
    spec, groups = conv.spec, conv.spec.groups
    macs = _macs(conv, shapes)
    reason = declines(conv.name, spec, False)
    if reason is not None:
        return _Planned(
            OnnxSite(conv.name, spec.kind, groups, spec.describe(), None, 0, macs, reason=reason)
        )
    norm = following_norm(conv) if norms else None
    branch = spec.with_channels(spec.in_channels // groups, spec.out_channels // groups, groups=1)
    moved = isinstance(norm, ir.Node)
    site = OnnxSite(
        name=conv.name,
        kind=spec.kind,
        groups=groups,
        before=spec.describe(),
        after=f"{groups} x {branch.describe()}" + (" + BatchNorm" if moved else ""),
        branches=groups,
        macs=macs,
        notes=_notes(conv, norm),
    )
    return _Planned(site, conv, norm if isinstance(norm, ir.Node) else None)


def _notes(conv: ConvNode, norm: ir.Node | str | None) -> tuple[str, ...]:
    notes = []
    if isinstance(norm, str):
        notes.append(f"BatchNorm stays after the concat: {norm}")
    for value, tensor in ((conv.weight, conv.weight_tensor), (conv.bias, conv.bias_tensor)):
        if value is not None and tensor is None:
            how = "an input with a default" if value.is_graph_input() else "computed"
            notes.append(f"{value.name} is {how}: it is cut in the graph")
    return tuple(notes)


def _left(node: LeftNode) -> _Planned:
    groups = "groups unknown" if node.groups is None else f"groups {node.groups}"
    return _Planned(
        OnnxSite(
            node.name,
            node.kind,
            node.groups,
            f"{node.kind}, {groups}",
            None,
            0,
            None,
            reason=node.reason,
        )
    )


def _macs(conv: ConvNode, shapes: Shapes) -> int | None:
    data = conv.node.inputs[0]
    before = shapes.get((data.name if data is not None else None) or "")
    after = shapes.get(conv.node.outputs[0].name or "")
    if before is None or after is None:
        return None
    return conv.spec.macs(before, after)


def _totals(model: ir.Model, shapes: Shapes) -> OnnxTotals:
    convs, left = conv_nodes(model, shapes)
    macs = [_macs(conv, shapes) for conv in convs]
    known = [number for number in macs if number is not None]
    count = sum(map(is_convolution, nodes(model)))
    return OnnxTotals(
        convs=count,
        grouped=sum(conv.spec.groups > 1 for conv in convs) + len(left),
        parameters=_parameters(model),
        macs=sum(known) if len(known) == count else None,
    )


def _parameters(model: ir.Model) -> int:
    """Numbers in floating-point initialisers and constants."""
    return sum(
        prod(tensor.shape.numpy()) for tensor in tensors(model) if tensor.dtype in _PARAMETER_TYPES
    )
