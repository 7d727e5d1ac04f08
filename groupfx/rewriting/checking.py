"""The check at the end of a rewrite: each site on its own, then the whole model.

A site is compared between the same two values on both sides: what went into the convolution, and
what came out of it (or out of the BatchNorm that moved with it). The reference graph says what was
there; the working graph says what stands for it now.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import fx

from ..convs.calls import OPERAND, Computed, ConvCall, Recomputed, Source, Stored, read_conv
from ..convs.names import split_number, unnumbered
from ..convs.sources import sources
from ..errors import InternalError, MismatchError
from ..learned.groups import deciding_tensors
from ..running.inputs import ExampleInputs
from ..running.weightless import is_weightless, why_not_compared
from ..state.map import Entry, Requirement
from ..tracing import Fragment, Program
from ..verify import (
    Proved,
    Region,
    SiteVerdict,
    compare_models,
    compare_regions,
    observable_sites,
    observed_at,
    other_spatial,
    small_inputs,
)
from .learned_sites import learned_calls
from .operation_pass import example_of
from .report import Report, RewrittenSite
from .zeroed import checked_against

Progress = Callable[[int, int], None]
"""Called with how many sites are checked, and of how many."""

# An uncalled module has no example shape: a few positions beyond the reach of its kernel do.
_FREE_POSITIONS = (5, 7, 3)


def check_program(program: Program, report: Report) -> Report:
    """`report` with a verdict for the whole model, whose sites have theirs."""
    if is_weightless(program.model):
        return replace(report, notes=(*report.notes, why_not_compared(program.model)))
    program, _, notes = checked_against(program, report.sites)
    native = deciding_tensors(program.model)
    assert program.inputs is not None
    whole = compare_models(
        program.model,
        program.result,
        program.inputs,
        native=native,
        vary=program.dynamic,
        once=True,
        small=program.small,
    )
    return replace(report, model=whole, notes=(*report.notes, *notes))


def check_sites(
    program: Program,
    sites: Sequence[RewrittenSite],
    entries: Mapping[str, Entry | Requirement],
    progress: Progress | None = None,
) -> tuple[RewrittenSite, ...]:
    """`sites` with a verdict each; one that has a verdict keeps it.

    `entries` is the map of the rewrite. What was rewritten twice is checked as it is now.
    """
    against, compared, _ = checked_against(program, sites)
    return _checked_sites(against, sites, compared, entries, progress)


def _checked_sites(
    program: Program,
    sites: Sequence[RewrittenSite],
    compared: Sequence[RewrittenSite],
    entries: Mapping[str, Entry | Requirement],
    progress: Progress | None,
) -> tuple[RewrittenSite, ...]:
    """`sites`, each as its twin of `compared` fares; one that has a verdict keeps it."""
    nodes = {
        id(fragment): {node.name: node for node in fragment.reference.graph.nodes}
        for fragment in program.fragments
    }
    if all(site.verdict is not None for site in sites):
        return tuple(sites)
    seen = _observable(program, compared, nodes)
    rows = {key: entry for key, entry in entries.items() if isinstance(entry, Entry)}
    native = deciding_tensors(program.model)
    checked: list[RewrittenSite] = []
    by_path: dict[str, list[RewrittenSite]] = defaultdict(list)
    proved = Proved()
    for site, twin in zip(sites, compared, strict=True):
        outer = _outer(site, by_path)
        if site.verdict is not None:
            verdict = site.verdict
        elif outer is not None and outer.verdict is not None:
            verdict = outer.verdict
        else:
            verdict = _check_site(twin, nodes[id(twin.fragment)], rows, native, proved)
        checked.append(replace(site, verdict=verdict, observable=seen.get(site.name)))
        by_path[unnumbered(site.name)].append(checked[-1])
        if progress is not None:
            progress(len(checked), len(sites))
    return tuple(checked)


def require_ok(report: Report) -> None:
    """Raise `MismatchError`, with the report as its `report`, where a check failed."""
    if report.ok:
        return
    wrong = [each for each in report.judged if each.verdict is not None and not each.verdict.ok]
    if wrong:
        first = wrong[0]
        reason = first.verdict.reason if first.verdict else None
        message = f"{first.name} does not compute what it did: {reason}"
        if len(wrong) > 1:
            message += f" (and {len(wrong) - 1} more sites)"
    elif report.changes:
        message = f"what a rewrite must keep was changed: {report.changes[0]}"
        if len(report.changes) > 1:
            message += f" (and {len(report.changes) - 1} more changes)"
    else:
        reason = report.model.reason if report.model else None
        message = f"every site computes what it did, but the model does not: {reason}"
    raise MismatchError(message, report=report)


def _outer(
    site: RewrittenSite, earlier: Mapping[str, Sequence[RewrittenSite]]
) -> RewrittenSite | None:
    """The site that an earlier pass rewrote and that `site` was made in, if there is one.

    `earlier` has those that were checked, by their paths. Nothing in the original stands for what
    lies inside one: it is checked as a whole, as it is now.
    """
    path, call = split_number(site.name)
    parts = path.split(".")
    around = [
        other
        for length in range(1, len(parts))
        for other in earlier.get(".".join(parts[:length]), ())
        if other.fragment is site.fragment
    ]
    same_call = (other for other in around if split_number(other.name)[1] == call)
    return next(same_call, around[0] if around else None)


def _check_site(
    site: RewrittenSite,
    nodes: Mapping[str, fx.Node],
    rows: Mapping[str, Entry],
    native: Collection[str],
    proved: Proved,
) -> SiteVerdict:
    fragment = site.fragment
    if site.start is None or site.end is None:
        raise InternalError(f"{site.name}: nothing in the original stands for it")
    reference = _region(fragment, nodes[site.start], nodes[site.end])
    now = [fragment.standing.get(node.name) for node in reference.inputs]
    end = fragment.standing.get(site.end)
    missing = [node.name for node, twin in zip(reference.inputs, now, strict=True) if twin is None]
    if missing or end is None:
        raise InternalError(f"{site.name}: nothing computes {(missing or [site.end])[0]} any more")
    working = Region(
        fragment.working, tuple(n for n in now if n is not None), end, fragment.working_key
    )
    examples = [_example(site, node) for node in reference.inputs]
    if site.joined:
        # The original is what the merged one would be split into.
        return compare_regions(
            working, reference, examples, exact=site.exact, rows=site.joined, native=native
        )
    return compare_regions(
        reference,
        working,
        examples,
        exact=site.exact,
        # What is picked of a weight that forward computes says nothing of the stored tensors:
        # there, gradients are compared at the input alone.
        rows=rows if site.exact or site.kind == "learned" else None,
        native=native,
        proved=proved,
    )


def _region(fragment: Fragment, start: fx.Node, end: fx.Node) -> Region:
    """From `start` to `end`; other inputs of the model that it needs are inputs as well."""
    needed = sources(end, given=(start,))
    inputs = (start, *(node for node in needed if node.op == "placeholder"))
    return Region(fragment.reference, inputs, end, fragment.original_key)


def _example(site: RewrittenSite, node: fx.Node) -> Any:
    """Shape of what goes into a region, or the value of an argument that was left out."""
    if node.name != site.start:
        example = example_of(node)
        return (node.args[0] if node.args else None) if example is None else example
    if site.input_shape is not None:
        dtype = node.meta.get("dtype")
        # Beside a weight that is made complex in forward, of real parameters, nothing tells.
        told = dtype is None or not dtype.is_complex
        return site.input_shape if told else torch.zeros(site.input_shape, dtype=dtype)
    spec = site.spec
    reach = [(k - 1) * d + 1 for k, d in zip(spec.kernel_size, spec.dilation, strict=True)]
    sizes = [r + free for r, free in zip(reach, _FREE_POSITIONS, strict=False)]
    return (2, spec.in_channels, *sizes)


def _observable(
    program: Program, sites: Sequence[RewrittenSite], nodes: Mapping[int, Mapping[str, fx.Node]]
) -> dict[str, bool | None]:
    assert program.inputs is not None
    if is_weightless(program.model):
        return {}
    parameters = {}
    for site in sites:
        if site.conv is None:
            continue
        node, root = nodes[id(site.fragment)][site.conv], site.fragment.reference
        call = read_conv(node, root) or learned_calls(root).get(node)
        if isinstance(call, ConvCall):
            parameters[site.name] = list(_weight_parameters(site.fragment, call.weight))
    if program.dynamic:
        seen_first = _at_smallest(program, parameters)
        if all(seen_first.values()):
            return seen_first
    # What reaches no output of a small input is looked for in a larger one.
    for inputs in _smaller(program.inputs) if program.dynamic else ():
        seen = observable_sites(program.model, inputs, parameters)
        if None not in seen.values():
            return seen
    return observable_sites(program.model, program.inputs, parameters)


def _at_smallest(
    program: Program, parameters: Mapping[str, Sequence[str]]
) -> dict[str, bool | None]:
    """What is seen at the smallest size that the model takes, which the program is told."""
    assert program.inputs is not None
    for inputs in small_inputs(program.inputs):
        seen = observed_at(program.model, inputs, parameters)
        if seen is not None:
            program.small = inputs
            return seen
    return dict.fromkeys(parameters)


def _smaller(inputs: ExampleInputs) -> Iterator[ExampleInputs]:
    """Smaller inputs, on which gradients arrive wherever they do on larger ones."""
    if inputs.batch:
        single = inputs.with_batch(1)
        yield from (single.resized(size) for size in islice(other_spatial(single.spatial), 1))
        yield single


def _weight_parameters(fragment: Fragment, weight: Source) -> Iterable[str]:
    """Full names, in the original, of the parameters that make up a weight."""
    root = fragment.reference
    if isinstance(weight, Stored):
        yield fragment.original_key(weight.key)
        return
    if isinstance(weight, Recomputed):
        for name, _ in root.get_submodule(weight.path).named_parameters():
            if not name.startswith("bias"):
                yield fragment.original_key(f"{weight.path}.{name}")
        return
    assert isinstance(weight, Computed)
    for node in sources(weight.node):
        if node.op == "get_attr":
            yield fragment.original_key(str(node.target))
        elif OPERAND in node.meta:
            yield node.meta[OPERAND]
        elif node.op == "call_module":
            path = str(node.target)
            for name, _ in root.get_submodule(path).named_parameters():
                yield fragment.original_key(f"{path}.{name}")
