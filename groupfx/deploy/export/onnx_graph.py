"""From a graph of `torch.export` to an ONNX graph: exporter, clean-up, BatchNorm, forms, names.

torch's own exporter translates the operators. What it would do besides is done here: it folds a
BatchNorm in float32 and under the BatchNorm's name, and writes paths of source files into the
graph.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from onnxscript.optimizer import fold_constants

from ...convs.names import module_path, numbered, unnumbered
from ...errors import InternalError, ModelError, UsageError
from ...plan.blocks import BlockStructure
from ...plan.branches import Branches
from ...plan.channel_order import AS_THEY_WERE
from ...plan.forms import FormPlan
from ...running.alone import beside
from ...running.log_lines import held_back
from ...version import __version__
from ..forms.absorbing import absorb
from ..forms.activating import activate_branches
from ..forms.chaining import join_gathers
from ..forms.fastest import Blocks, Fastest, fastest_forms
from ..forms.forming import apply_form
from ..forms.splitting import split_conv
from ..graph.batchnorm import drop_zero_bias, fold_batchnorms
from ..graph.channel_order import write_orders
from ..graph.conv_nodes import CONVS, ConvNode, conv_nodes
from ..graph.files import PRODUCER, check_onnx
from ..graph.free_names import Names
from ..graph.identities import drop_identities
from ..graph.metadata import mark, strip
from ..graph.opsets import FIRST_WRITTEN, lower_opset
from .bound_sizes import OpenSizeError, open_size
from .constant_sizes import HIDE_SIZES, write_sizes
from .joined_reshapes import join_reshapes
from .pads_of_pools import keep_pads_of_pools
from .torch_export import ConvName, Sizes, TracedModel
from .translations import translations_read_once
from .whole_indices import widen_indices

DEFAULT_OPSET = 20
LEAST_OPSET = 11
_FIRST_WITH_WRAP = 19
_NEWEST_EXPORTED = 24
_WEIGHT = ".weight"
_NO_KERNELS = (ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_LARGEST_FOLDED = 1 << 24
_GRAPH_NAME = "main_graph"


SiteForms = Literal["planned", "fastest", "whole"]
"""As the rewrite planned them, or as is expected to be fastest, or each site as one convolution,
with the mask folded into its weight."""


@dataclass(frozen=True)
class OnnxGraph:
    """An ONNX model, the forms of its sites, notes on it, and what it is expected to take."""

    model: ir.Model
    forms: Mapping[str, Branches | FormPlan]
    notes: tuple[str, ...]
    fastest: Fastest | None


def onnx_graph(traced: TracedModel, opset: int, *, forms: SiteForms = "planned") -> OnnxGraph:
    """The ONNX model of a traced one, its sites in their forms.

    Names of inputs and outputs are those of `traced`. Raises `ModelError` for an operator that the
    exporter does not know, `UsageError` for an opset in which the model cannot be written.
    """
    written = max(opset, FIRST_WRITTEN)
    model = _translated(traced, written)
    _require_opset(model, written, opset)
    model.graph.name = _GRAPH_NAME
    _clean(model)
    chosen = _mark_convs(model, traced)
    # In a graph from which permutations were folded away, what now stands behind a convolution
    # may have come there by that, and is no part of its site: the runtime folds it.
    notes = () if traced.orders else fold_batchnorms(model)
    fastest = fastest_forms(model, _blocks_in(chosen)) if forms == "fastest" else None
    if fastest is not None:
        chosen = fastest.forms
    if forms == "whole":
        chosen = {}
    done = absorb(model, fastest.absorbed, chosen) if fastest is not None else frozenset()
    _apply_forms(model, {name: form for name, form in chosen.items() if name not in done})
    if fastest is not None:
        join_gathers(model)
        activate_branches(model)
    if opset < written:
        lower_opset(model, opset)
    keep_pads_of_pools(model, opset)
    _rename(model, traced)
    moved = fastest is not None and any(form.form != "dense" for form in fastest.forms.values())
    _finish(model, traced.sizes, moved=moved)
    told = fastest if fastest is not None and fastest.summary is not None else None
    return OnnxGraph(model, chosen, notes, told)


def checked(model: ir.Model, traced: TracedModel, opset: int) -> bytes | None:
    """What `check_onnx` gives of the file of a traced model.

    Raises `ModelError` where what torch's exporter wrote does not pass either, and `InternalError`
    where that does.
    """
    try:
        return check_onnx(model)
    except InternalError:
        written = _translated(traced, max(opset, FIRST_WRITTEN))
        common.InlinePass()(written)
        try:
            check_onnx(written, ModelError)
        except ModelError as error:
            raise ModelError(f"torch's exporter writes no valid ONNX: {error}") from error
        raise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and log lines of the exporter back that a user can do nothing about."""
    with warnings.catch_warnings(), held_back():
        warnings.simplefilter("ignore")
        yield


def _translated(traced: TracedModel, opset: int) -> ir.Model:
    with quiet():
        try:
            with beside(traced.program.graph_module), translations_read_once():
                program = torch.onnx.export(
                    traced.program, dynamo=True, optimize=False, verbose=False, opset_version=opset
                )
        except Exception as error:
            found = open_size(traced.program, error)
            if found is not None:
                raise OpenSizeError(found) from error
            raise ModelError(_not_translated(traced, error)) from error
    assert program is not None
    return program.model


def _not_translated(traced: TracedModel, error: BaseException) -> str:
    """Which operator the exporter does not know, and the module that calls it."""
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(str(cause))
        cause = cause.__cause__
    text = "\n".join(chain)
    # The same operator under the names that the exporter and the graph have for it.
    for node in traced.program.graph.nodes:
        if node.op == "call_function" and _mentions(text, node.target):
            where = module_path(node) or "the model itself"
            return (
                f"the ONNX exporter does not know the operator {node.target} (in {where}): "
                "replace it in the model by operators that it knows, or leave that part out"
            )
    lines = [line.strip() for part in chain for line in part.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith("<class") or "Error" in line]
    return f"the ONNX exporter failed: {(reasons or lines or [type(error).__name__])[0]}"


def _mentions(text: str, target: Any) -> bool:
    name = getattr(target, "name", None)
    if not callable(name):
        return False
    names = (str(name()), str(target), repr(target))
    found = re.search(r"No ONNX function found for (.*)", text)
    return found is not None and any(name in found[1] for name in names)


def _require_opset(model: ir.Model, written: int, opset: int) -> None:
    reached = model.graph.opset_imports.get("", 0)
    if reached != written:
        raise UsageError(
            f"the exporter cannot write the model in opset {written}, but in opset {reached}"
        )
    wraps = [n for n in model.graph if n.op_type == "Pad" and _mode(n) == "wrap"]
    if wraps and opset < _FIRST_WITH_WRAP:
        raise UsageError(
            f"the model pads circularly, which opset {opset} cannot do: take opset "
            f"{_FIRST_WITH_WRAP} or newer"
        )


def _mode(node: ir.Node) -> str:
    return node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"


def _clean(model: ir.Model) -> None:
    """Fold what is constant, and drop what is unused; no convolution is touched."""
    with quiet():
        common.InlinePass()(model)
        widen_indices(model)
        fold_constants(
            model,
            onnx_shape_inference=False,
            input_size_limit=_LARGEST_FOLDED,
            output_size_limit=_LARGEST_FOLDED,
        )
        common.RemoveUnusedNodesPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        drop_identities(model)
        common.RemoveUnusedNodesPass()(model)
        common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass()(model)
        common.OutputFixPass()(model)
    write_sizes(model)
    join_reshapes(model)


def _mark_convs(model: ir.Model, traced: TracedModel) -> Mapping[str, Any]:
    """Write on each convolution which site it is; the forms of those that have one.

    They come in the order of the torch graph. Where there are others (from a part of the model
    that is a graph of its own, as under autocast), their weights tell.
    """
    nodes = [node for node in model.graph if node.op_type in CONVS and not node.domain]
    _require_kernels(nodes)
    names = traced.convs
    if len(nodes) != len(names) or any(
        name.groups not in (None, _groups(node)) for node, name in zip(nodes, names, strict=True)
    ):
        names = _names_by_weight(nodes, traced)
    for node, name in zip(nodes, names, strict=True):
        mark(node, name.name)
        write_orders(node, name.orders)
        _mark_pad(node, name)
        node.name = name.name
        if not name.bias:
            # The exporter adds zeros where there is none.
            drop_zero_bias(model.graph, node)
        _name_weight(model.graph, node, name.name)
    return {name.name: name.form for name in names if name.form is not None}


def _mark_pad(node: ir.Node, name: ConvName) -> None:
    """A Pad in front belongs to the site where the convolution itself pads in torch."""
    value = node.inputs[0]
    pad = None if value is None else value.producer()
    if name.same and pad is not None and pad.op_type == "Pad":
        mark(pad, name.name)


def _require_kernels(nodes: Sequence[ir.Node]) -> None:
    for node in nodes:
        value = node.inputs[0]
        if value is not None and value.dtype in _NO_KERNELS:
            raise ModelError(
                f"the model computes {node.name} in {value.dtype.name.lower()}, for which ONNX "
                "Runtime's CPU has no convolutions: take the autocast or the cast out"
            )


def _names_by_weight(nodes: Sequence[ir.Node], traced: TracedModel) -> tuple[ConvName, ...]:
    plans = {plan.path: plan for plan in traced.planned}
    weights = [node.inputs[1] for node in nodes]
    paths = [
        (w.name if w is not None and w.name else "conv").removesuffix(_WEIGHT) for w in weights
    ]
    bases = [plans[path].name if path in plans else path for path in paths]
    forms = [plans[path].form if path in plans else None for path in paths]
    return tuple(
        ConvName(name, form, True, _groups(node), orders=traced.orders.get(path, AS_THEY_WERE))
        for name, form, node, path in zip(numbered(bases), forms, nodes, paths, strict=True)
    )


def _name_weight(graph: ir.Graph, node: ir.Node, site: str) -> None:
    """Call a weight that was computed beforehand `<site>.weight`."""
    weight, name = node.inputs[1], f"{unnumbered(site)}{_WEIGHT}"
    if weight is None or not weight.is_initializer() or name in graph.initializers:
        return
    if (weight.name or "").startswith("folded_"):
        graph.initializers.pop(weight.name or "")
        weight.name = name
        graph.register_initializer(weight)


def _groups(node: ir.Node) -> int:
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def _blocks_in(forms: Mapping[str, Any]) -> Blocks:
    """What the rewrite says of the blocks of each site."""

    def blocks(conv: ConvNode) -> BlockStructure | None:
        form = forms.get(conv.name)
        return form.blocks(conv.spec.in_channels) if isinstance(form, FormPlan) else None

    return blocks


def _apply_forms(model: ir.Model, forms: Mapping[str, Any]) -> None:
    if not forms:
        return
    names = Names(model)
    convs, _ = conv_nodes(model)
    for conv in convs:
        form = forms.get(conv.name)
        if isinstance(form, FormPlan):
            apply_form(model, conv, form, names)
        elif form is not None:
            _split(model, conv, form)


def _split(model: ir.Model, conv: ConvNode, branches: Branches) -> None:
    groups = branches.total
    if conv.spec.groups != groups:
        raise InternalError(f"{conv.name} has {conv.spec.groups} groups in ONNX, not {groups}")
    split_conv(model, conv, branches)


def _rename(model: ir.Model, traced: TracedModel) -> None:
    graph = model.graph
    pairs = [(graph.inputs, traced.inputs), (graph.outputs, traced.outputs)]
    for values, names in pairs:
        if len(values) != len(names):
            raise InternalError(
                f"the exported graph has {len(values)} inputs or outputs, the model {len(names)}"
            )
    wanted = {id(v): name for values, names in pairs for v, name in zip(values, names, strict=True)}
    _make_room(graph, wanted)
    for values, names in pairs:
        for value, name in zip(values, names, strict=True):
            value.name = name


def _make_room(graph: ir.Graph, wanted: Mapping[int, str]) -> None:
    """Give another name to each inner value that has one of the wanted ones."""
    taken = set(wanted.values())
    held = [*graph.initializers.values(), *graph.inputs]
    values = [*held, *(value for node in graph for value in node.outputs)]
    used = {value.name for value in values} | taken
    for value in values:
        if value.name in taken and wanted.get(id(value)) != value.name:
            name = f"{value.name}_inner"
            while name in used:
                name += "_"
            value.name = name
            used.add(name)


def _finish(model: ir.Model, sizes: Sizes, *, moved: bool) -> None:
    """Names of sizes and nodes, shapes in between, and nothing that tells of this machine.

    Where channels were `moved` between convolutions, there may be others than the shapes say.
    """
    _name_sizes(model.graph, sizes, whole=not moved)
    strip(model)
    model.metadata_props.clear()
    model.producer_name, model.producer_version = PRODUCER, __version__
    model.domain = model.model_version = None
    seen: Counter[str] = Counter()
    for node in model.graph:
        base = node.name or f"{node.op_type}.{node.outputs[0].name}"
        seen[base] += 1
        node.name = base if seen[base] == 1 else f"{base}.{seen[base]}"
    common.TopologicalSortPass()(model)


def _name_sizes(graph: ir.Graph, sizes: Sizes, *, whole: bool) -> None:
    """Give the open sizes of inputs plain names, and drop the shapes in between.

    They stay behind operators of which the runtime does not see that a size is that of an input,
    `whole` or for the open ones alone.

    A size that the model fixes, as `sizes` says, is written as the number that it is.
    """
    names: dict[str, str | int] = {}
    for position, value in enumerate(graph.inputs):
        for axis, size in enumerate(value.shape or ()):
            symbol = getattr(size, "value", None)
            if isinstance(size, ir.SymbolicDim) and symbol is not None and symbol not in names:
                name = f"size_{axis}_{value.name}" if axis else "batch"
                taken = name in names.values()
                plain = f"{name}_{value.name}" if taken else name
                names[symbol] = sizes.get((position, axis), plain)
    ends = {id(value) for value in (*graph.inputs, *graph.outputs)}
    computed = [(node.op_type, value) for node in graph for value in node.outputs]
    for kind, value in (*computed, *(("", value) for value in graph.initializers.values())):
        # Whoever reads the file works them out again; written down, they are most of its size.
        if id(value) in ends:
            continue
        kept = _open_sizes(value, names, whole) if kind in HIDE_SIZES else None
        if kept is None:
            value.type = None
        value.shape = kept
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([_named(size, names) for size in value.shape])


def _open_sizes(value: ir.Value, names: Mapping[str, str | int], whole: bool) -> ir.Shape | None:
    """The shape of a value with sizes that are open in the inputs, where `whole` with all others;
    None where there are none.
    """
    if value.type is None or value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else names.get(str(size.value)) for size in value.shape]
    named = [size if whole or isinstance(size, str) else None for size in sizes]
    return ir.Shape(named) if any(isinstance(size, str) for size in named) else None


def _named(size: Any, names: Mapping[str, str | int]) -> Any:
    if not isinstance(size, ir.SymbolicDim):
        return size
    name = names.get(str(size.value))
    return name if isinstance(name, int) else ir.SymbolicDim(name)


def newest_opset() -> int:
    """The newest opset that both the installed onnx and the exporter write."""
    return min(onnx.defs.onnx_opset_version(), _NEWEST_EXPORTED)
