"""Rewrite the convolutions of an ONNX model that came from anywhere.

A pass says what it does to a convolution as a plan in integers: the branches to split it into, or
how the blocks of its weight are executed. Here that is carried out on the nodes. The
argument is never changed: the work is done on a clone, which shares the numbers of the weights that
stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, cast

import onnx
import onnx_ir as ir

from ...convs.spec import describe_branches
from ...folding.fold import Fold
from ...parallel.naming import joint_name
from ...parallel.planning import ParallelConvs, Refusal
from ...plan.branches import Branches
from ...plan.forms import FormPlan
from ...rewriting.graph_pass import GraphPass
from ...rewriting.pass_ import Pass, Skip, require_named
from ...rewriting.region_pass import RegionPass
from ...rewriting.report import SkippedSite
from ...running.totals import Totals
from ...version import __version__
from ..graph.batchnorm import norm_behind
from ..graph.conv_nodes import (
    FIRST_IR_WITH_DEFAULTS,
    WHOLE,
    ConvNode,
    LeftNode,
    Shapes,
    conv_nodes,
    is_convolution,
)
from ..graph.files import PRODUCER
from ..graph.free_names import Names
from ..graph.metadata import mark, mark_of
from ..graph.tensors import nodes, tensors
from ..quantised.convs import SPLIT, Pairs, pairs_around, quantised_conv
from ..quantised.kernels import bias_rounded_in_branches, kernels_lost, quantised_weights
from ..quantised.misfits import misfit
from ..quantised.tensors import is_stored
from .absorbing import absorb
from .activating import activate_branches
from .chaining import join_gathers
from .fastest import Fastest, fastest_forms
from .folding import carry_out, problem_of
from .forming import apply_form
from .merging import find_parallel, merge
from .splitting import number_branches, split_conv
from .static_shapes import PARAMETER_TYPES, static_shapes
from .zero_blocks import zero_blocks

_COMPUTED = "its weight or its bias is computed, or an input of the graph"
_WHOLE = "its weight is in whole numbers, of which only branches are made"
_PAIRS_STAY = (
    "its Q/DQ pairs stay around the branches: in them ONNX Runtime would round its bias, which is "
    "in floating point, to whole numbers, as it does not in the convolution in one piece"
)
_NOT_PADDED = (
    "their weights are in whole numbers, and are not filled up with zeros: unequal=bucketed makes "
    "a convolution for each size"
)
_NOT_FASTER = "no other form is expected to be faster"
_NO_PASS = "the target leaves grouped convolutions as they are"


@dataclass(frozen=True)
class OnnxSite:
    """One convolution: what it is, and what the passes make of it.

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
    pass_name: str = ""


@dataclass(frozen=True)
class OnnxRewrite:
    """The rewritten model, what was done at each site, and to the graph as a whole.

    `original` is the model that was read, which shares the weights that stay.
    """

    original: ir.Model
    model: ir.Model
    sites: tuple[OnnxSite, ...]
    skipped: tuple[SkippedSite, ...]
    before: Totals
    after: Totals
    notes: tuple[str, ...]
    folds: tuple[Fold, ...] = ()
    fastest: Fastest | None = None
    """what forms were chosen for a target that takes the fastest"""

    @property
    def changed(self) -> bool:
        """Whether anything was done."""
        return bool(self.sites) or any(fold.changes for fold in self.folds)


@dataclass(frozen=True)
class _Planned:
    """A site, and where it is rewritten the convolution, its plan and nodes behind to go along.

    The plan are the branches to split it into, or how its blocks are executed.
    """

    site: OnnxSite
    conv: ConvNode | None = None
    plan: Branches | FormPlan | None = None
    along: tuple[ir.Node, ...] = ()
    pairs: Pairs | None = None


def find_onnx(model: ir.Model, passes: Sequence[Pass[Any]]) -> tuple[OnnxSite, ...]:
    """Every grouped convolution of `model`, in order, and what the passes would make of it.

    Dense ones are there where a pass would rewrite them.
    """
    sited = [p for p in passes if not isinstance(p, (GraphPass, RegionPass))]
    work = model.clone()
    _without_listed_initializers(work)
    shapes = static_shapes(work)
    convs, left = conv_nodes(work, shapes, SPLIT)
    # A later pass may be about sites that an earlier one would make.
    for pass_ in passes[:1]:
        _require_sites(work, pass_, convs, left)
    found = [
        _merged_site(each, pass_, convs)
        for pass_ in passes
        if isinstance(pass_, RegionPass)
        for each in find_parallel(work, shapes, pass_.unequal)
    ]
    for conv in convs:
        planned = [_plan_site(conv, pass_, shapes).site for pass_ in sited if pass_.wants(conv)]
        taken = [site for site in planned if site.reason is None]
        if taken or conv.spec.groups > 1:
            found.append((taken or planned or [_declined(conv, _NO_PASS, shapes)])[0])
    return (*found, *map(_left, left))


def rewrite_graph(
    model: ir.Model, passes: Sequence[Pass[Any]], *, fastest: bool = False
) -> OnnxRewrite:
    """Run the passes over `model`, one after another; `model` is not changed.

    Inputs and outputs keep their names. In the end convolutions take the form that is expected to
    be `fastest`: those with groups, and those whose weights are blocks, with zeros between them.
    """
    work = model.clone()
    notes = _without_listed_initializers(work)
    shapes = static_shapes(work)
    before = _totals(work, shapes)
    convs, left = conv_nodes(work, shapes, SPLIT)
    # What stays in one piece is a site too: it is compared with the original's by its name.
    for conv in convs:
        if mark_of(conv.node) is None:
            mark(conv.node, conv.name)
    sites: list[OnnxSite] = []
    folds: list[Fold] = []
    left_folding: list[SkippedSite] = []
    for pass_ in passes:
        if isinstance(pass_, GraphPass):
            folds.append(_fold(work, pass_, shapes))
            left_folding += pass_.left(folds[-1])
            continue
        if isinstance(pass_, RegionPass):
            sites += _merge(work, pass_, shapes)
            shapes = static_shapes(work)
            convs, _ = conv_nodes(work, shapes, SPLIT)
            continue
        _require_sites(work, pass_, convs, left)
        planned = [_plan_site(c, pass_, shapes) for c in convs if pass_.wants(c)]
        notes += kernels_lost(
            entry.conv for entry in planned if entry.conv is not None and entry.pairs is None
        )
        _carry_out(work, planned)
        sites += [plan.site for plan in planned]
        shapes = static_shapes(work)
        convs, _ = conv_nodes(work, shapes, SPLIT)
    chosen = None
    if fastest:
        chosen = fastest_forms(work, zero_blocks, shapes)
        about = [conv for conv in convs if chosen.about(conv)]
        sites += [_in_fastest(conv, chosen, shapes) for conv in about]
        done = absorb(work, chosen.absorbed, chosen.forms, shapes)
        taken = {site.name for site in sites if site.reason is None} - done
        names = Names(work)
        for conv in about:
            if conv.name in taken:
                apply_form(work, conv, chosen.forms[conv.name], names)
        join_gathers(work)
        activate_branches(work)
        shapes = static_shapes(work) if done else shapes
    elif not passes:
        sites = [_declined(conv, _NO_PASS, shapes) for conv in convs if conv.spec.groups > 1]
    sites += [_left(node) for node in left]
    work.producer_name, work.producer_version = PRODUCER, __version__
    changed = tuple(site for site in sites if site.reason is None)
    return OnnxRewrite(
        original=model,
        model=work,
        sites=changed,
        skipped=(
            *(
                SkippedSite(site.name, site.kind, site.pass_name, site.reason)
                for site in sites
                if site.reason is not None
            ),
            *left_folding,
        ),
        before=before,
        after=_totals(work, shapes) if changed else before,
        notes=notes,
        folds=tuple(folds),
        fastest=chosen,
    )


def _in_fastest(conv: ConvNode, chosen: Fastest, shapes: Shapes) -> OnnxSite:
    """The site of a convolution that is to have the form chosen for it, or is left as it is."""
    plan = chosen.forms.get(conv.name)
    if plan is None or (conv.spec.groups == 1 and plan.form == "dense"):
        return _declined(conv, _NOT_FASTER, shapes)
    return _taken(conv, shapes, chosen.describe(conv.name), len(plan.convs))


def _require_sites(
    model: ir.Model, pass_: Pass[Any], convs: Sequence[ConvNode], left: Sequence[LeftNode]
) -> None:
    wanted = [conv.name for conv in convs if pass_.wants(conv)]
    # What was rewritten before is no site any more, and still known by its name.
    wanted += [done.site for node in nodes(model) if (done := mark_of(node)) is not None]
    others = [conv.name for conv in convs if not pass_.wants(conv)]
    require_named(pass_, [*wanted, *(node.name for node in left)], others)


def _fold(model: ir.Model, pass_: GraphPass, shapes: Shapes) -> Fold:
    problem, shapes = problem_of(model, shapes)
    fold = pass_.plan_graph(problem)
    if fold.changes:
        carry_out(model, fold, shapes)
    return fold


def _merge(model: ir.Model, pass_: RegionPass, shapes: Shapes) -> Iterator[OnnxSite]:
    names, convs = Names(model), conv_nodes(model, shapes, SPLIT)[0]
    for found in list(find_parallel(model, shapes, pass_.unequal)):
        site = _merged_site(found, pass_, convs)
        if isinstance(found, ParallelConvs) and site.reason is None:
            merge(model, found, names)
        yield site


def _merged_site(
    found: ParallelConvs | Refusal, pass_: RegionPass, convs: Sequence[ConvNode]
) -> OnnxSite:
    by_node = {conv.node: conv for conv in convs}
    named = [branch.conv.name for branch in found.branches]
    name = joint_name(named)
    own = [by_node[node] for b in found.branches if (node := cast(ir.Node, b.conv.node)) in by_node]
    specs = [conv.spec for conv in own]
    reason = pass_.declines((name, *named))
    if isinstance(found, Refusal):
        reason = found.reason
    elif found.form.form == "padded" and any(map(quantised_conv, own)):
        reason = _NOT_PADDED
    else:
        reason = next((text for conv in own if (text := misfit(conv)) is not None), reason)
    if len(specs) < len(named):
        reason = "one of them does not fit its weight"
    groups = sum(spec.groups for spec in specs)
    after, convs_after = None, 0
    notes: tuple[str, ...] = ()
    if isinstance(found, ParallelConvs) and reason is None:
        sides = (sum(spec.in_channels for spec in specs), sum(spec.out_channels for spec in specs))
        merged = specs[0].with_channels(*sides, groups=groups)
        after = merged.describe() if found.form.form == "grouped" else found.form.describe()
        convs_after, notes = len(found.form.convs), found.notes()
    return OnnxSite(
        name=name,
        kind="parallel",
        groups=groups,
        before=describe_branches(spec.describe() for spec in specs),
        after=after,
        branches=convs_after,
        macs=None,
        notes=notes,
        reason=reason,
        pass_name=pass_.pass_name(),
    )


def _carry_out(model: ir.Model, planned: Sequence[_Planned]) -> None:
    names = Names(model)
    for entry in planned:
        if entry.conv is None:
            continue
        if isinstance(entry.plan, FormPlan):
            apply_form(model, entry.conv, entry.plan, names)
        else:
            along, pairs = entry.along, entry.pairs
            split_conv(model, entry.conv, entry.plan, along=along, pairs=pairs, names=names)
    outer = [entry.conv.branch_of for entry in planned if entry.conv is not None]
    number_branches(model, {site for site in outer if site is not None})


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


def _plan_site(conv: ConvNode, pass_: Pass[Any], shapes: Shapes) -> _Planned:
    plan = pass_.plan(conv)
    if isinstance(plan, Skip):
        return _Planned(_declined(conv, plan.reason, shapes, pass_.pass_name()))
    if isinstance(plan, FormPlan):
        return _plan_form(conv, plan, pass_, shapes)
    reason = misfit(conv)
    if reason is not None:
        return _Planned(_declined(conv, reason, shapes, pass_.pass_name()))
    norm = norm_behind(conv.node) if pass_.moves_norms else None
    along = [norm] if isinstance(norm, ir.Node) else []
    after = describe_branches(branch.describe() for branch in conv.spec.branches(plan))
    after += " + BatchNorm" if along else ""
    pairs = pairs_around(conv, [conv.node, *along][-1]) if pass_.moves_quantisation else None
    notes = _notes(conv, norm)
    if pairs is not None and bias_rounded_in_branches(conv):
        pairs, notes = None, (*notes, _PAIRS_STAY)
    along += [] if pairs is None else pairs.between
    site = replace(_taken(conv, shapes, after, len(plan)), notes=notes, pass_name=pass_.pass_name())
    return _Planned(site, conv, plan, tuple(along), pairs)


def _plan_form(conv: ConvNode, plan: FormPlan, pass_: Pass[Any], shapes: Shapes) -> _Planned:
    if not conv.constant or conv.node.op_type in WHOLE:
        reason = _WHOLE if quantised_conv(conv) is not None else _COMPUTED
        return _Planned(_declined(conv, reason, shapes, pass_.pass_name()))
    site = _taken(conv, shapes, plan.describe(), len(plan.convs))
    return _Planned(replace(site, pass_name=pass_.pass_name()), conv, plan)


def _taken(conv: ConvNode, shapes: Shapes, after: str, branches: int) -> OnnxSite:
    spec = conv.spec
    return OnnxSite(
        name=conv.name,
        kind=spec.kind,
        groups=spec.groups,
        before=spec.describe(),
        after=after,
        branches=branches,
        macs=_macs(conv, shapes),
    )


def _declined(conv: ConvNode, reason: str, shapes: Shapes, pass_name: str = "") -> OnnxSite:
    left = _taken(conv, shapes, "", 0)
    return replace(left, after=None, reason=reason, pass_name=pass_name)


def _notes(conv: ConvNode, norm: ir.Node | str | None) -> tuple[str, ...]:
    notes = []
    if isinstance(norm, str):
        notes.append(f"BatchNorm stays after the concat: {norm}")
    for value in (conv.weight, conv.bias):
        if value is not None and not is_stored(value):
            how = "an input with a default" if value.is_graph_input() else "computed"
            notes.append(f"{value.name} is {how}: it is cut in the graph")
    return tuple(notes)


def _left(node: LeftNode) -> OnnxSite:
    groups = "groups unknown" if node.groups is None else f"groups {node.groups}"
    return OnnxSite(
        name=node.name,
        kind=node.kind,
        groups=node.groups,
        before=f"{node.kind}, {groups}",
        after=None,
        branches=0,
        macs=None,
        reason=node.reason,
    )


def _macs(conv: ConvNode, shapes: Shapes) -> int | None:
    data = conv.node.inputs[0]
    before = shapes.get((data.name if data is not None else None) or "")
    after = shapes.get(conv.node.outputs[0].name or "")
    if before is None or after is None:
        return None
    return conv.spec.macs(before, after)


def _totals(model: ir.Model, shapes: Shapes) -> Totals:
    convs, left = conv_nodes(model, shapes, SPLIT)
    macs = [_macs(conv, shapes) for conv in convs]
    known = [number for number in macs if number is not None]
    count = sum(map(is_convolution, nodes(model)))
    return Totals(
        convs=count,
        grouped_convs=sum(conv.spec.groups > 1 for conv in convs) + len(left),
        parameters=_parameters(model),
        macs=sum(known) if len(known) == count else None,
    )


def _parameters(model: ir.Model) -> int:
    """Numbers in floating-point initialisers and constants, and quantized weights."""
    floats = (tensor for tensor in tensors(model) if tensor.dtype in PARAMETER_TYPES)
    return sum(prod(tensor.shape.numpy()) for tensor in (*floats, *quantised_weights(model)))
