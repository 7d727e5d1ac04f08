"""Carry out a pass over operations, and prove what it did."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import fx

from ..errors import GroupfxError, InternalError
from ..plan.site_plan import NOTE, site_of
from ..state.map import Entry, Requirement
from ..tracing.places import owner_of
from ..tracing.program import Fragment, Program
from ..tracing.varying import VaryingAxes
from ..verify import Proved, Region, SiteVerdict, compare_regions
from .operation_pass import (
    OperationPass,
    Place,
    Respelled,
    Spelling,
    example_of,
    respelled_at,
    shape_of,
)
from .pass_ import Skip
from .report import SkippedSite
from .store import Store

_SIZES = frozenset(range(2, 16))
"""Every axis behind the channels."""

_NO_GRAPH = (
    "it takes a graph of the whole model, and this one was opened by its modules ({reasons})"
)


def run_operations(
    pass_: OperationPass, program: Program, store: Store
) -> tuple[list[Respelled], list[SkippedSite]]:
    """Give each operation of the working graph the spelling that `pass_` says."""
    name = pass_.pass_name()
    if program.way == "modules":
        reason = _NO_GRAPH.format(reasons="; ".join(program.notes) or "as asked for")
        return [], [SkippedSite("the model", "operation", name, reason)]
    fragment = program.whole
    axes = VaryingAxes(fragment.working, program.inputs)
    done: list[Respelled] = []
    skipped: list[SkippedSite] = []
    numbers: Counter[str] = Counter()
    nodes = list(fragment.working.graph.nodes)
    gone: set[fx.Node] = set()
    for node in reversed(nodes) if pass_.backwards else nodes:
        if node in gone or node.op in ("placeholder", "output"):
            continue
        place = Place(node, fragment, store, axes)
        spelling = pass_.spell(place)
        if isinstance(spelling, Skip):
            where = f"{owner_of(node) or 'the model'}: {place.operation}"
            skipped.append(SkippedSite(where, "operation", name, spelling.reason))
        elif spelling is not None:
            numbers[owner_of(node)] += 1
            done.append(_respell(place, name, spelling, numbers[owner_of(node)], gone))
    if done:
        _finish(name, fragment)
    return done, skipped


def _respell(
    place: Place, pass_name: str, spelling: Spelling, number: int, gone: set[fx.Node]
) -> Respelled:
    record = respelled_at(place, pass_name, spelling, number)
    node, fragment = place.node, place.fragment
    called = place.module
    try:
        with place.graph.inserting_before(node):
            made = spelling.emit()
    except GroupfxError:
        raise
    except Exception as error:
        raise InternalError(
            f"{pass_name} failed at {record.name} ({type(error).__name__}: {error}); "
            "a rewrite must not fail after a match: this is a bug of the pass"
        ) from error
    if made is not None:
        shape = shape_of(node)
        if shape is not None:
            made.meta.setdefault("shape", shape)
            if "dtype" in node.meta:
                made.meta.setdefault("dtype", node.meta["dtype"])
        node.replace_all_uses_with(made)
        fragment.stand_in(node, made)
    if made is not None and spelling.same_piece and NOTE in node.meta:
        made.meta[NOTE] = node.meta[NOTE]
    else:
        _forget_plan(fragment, node)
    _erase(fragment, node, spelling.inputs, gone)
    if called is not None:
        place.drop_module(called)
    return replace(record, valued=made is not None)


def _forget_plan(fragment: Fragment, node: fx.Node) -> None:
    """Take off the graph what it remembers of a site of which `node` is a part: it has another."""
    site = site_of(node.meta)
    if site is None:
        return
    for other in fragment.working.graph.nodes:
        if site_of(other.meta) == site:
            other.meta.pop(NOTE, None)


def _erase(
    fragment: Fragment, end: fx.Node, stops: Collection[fx.Node], gone: set[fx.Node]
) -> None:
    """Erase `end` and what only it needed, back to `stops`."""
    pending = [end]
    while pending:
        node = pending.pop()
        if node in gone or node.users or node in stops or node.op == "placeholder":
            continue
        if node is not end and node.is_impure():
            continue
        sources = node.all_input_nodes
        if node is not end:
            _forget_plan(fragment, node)
        fragment.forget(node)
        fragment.working.graph.erase_node(node)
        gone.add(node)
        pending += sources


def _finish(name: str, fragment: Fragment) -> None:
    try:
        fragment.working.graph.lint()
        fragment.working.recompile()
    except Exception as error:
        raise InternalError(
            f"{name} left a graph that does not compile ({type(error).__name__}: {error})"
        ) from error
    fragment.changed = True


def checked(
    respelled: Collection[Respelled],
    entries: Mapping[str, Entry | Requirement],
    program: Program,
    *,
    modes: bool = True,
) -> Iterator[Respelled]:
    """Each with a verdict, but for what has no value; `modes`: the model has a train mode.

    What differs in sizes to which no input of `program` leads is compared in those that it has.
    """
    rows = {key: entry for key, entry in entries.items() if isinstance(entry, Entry)}
    proved = Proved()
    nodes: dict[int, dict[str, fx.Node]] = {}
    for each in respelled:
        fragment = each.fragment
        if id(fragment) not in nodes:
            nodes[id(fragment)] = {node.name: node for node in fragment.reference.graph.nodes}
        known = nodes[id(fragment)]
        if each.valued:
            starts = [known[name] for name in each.starts]
            kept = _SIZES if each.fixes_sizes else frozenset()
            verdict = _verdict(each, starts, known[each.end], rows, proved, kept, modes=modes)
            if not verdict.ok:
                kept |= _never_other(fragment, starts, program)
                verdict = _verdict(each, starts, known[each.end], rows, proved, kept, modes=modes)
            if not verdict.ok and _count_others(starts):
                kept |= {0}
                verdict = _verdict(each, starts, known[each.end], rows, proved, kept, modes=modes)
            each = replace(each, verdict=verdict)
        yield each


def _never_other(fragment: Fragment, starts: Sequence[fx.Node], program: Program) -> frozenset[int]:
    """Axes of a region's inputs that are as long on every input of the model."""
    axes = VaryingAxes(fragment.reference, program.inputs)
    main = [node for node in starts if len(shape_of(node) or ()) > 1]
    rank = max((len(shape_of(node) or ()) for node in main), default=0)
    other = {axis for node in main for axis in axes.rows(node)}
    if program.dynamic and axes.takes_other_sizes:
        other |= {axis for node in main for axis in axes.sized(node, rank)}
    return frozenset(range(rank)) - other


def _count_others(starts: Sequence[fx.Node]) -> bool:
    """Whether one input has several rows for each of another, which no drawn sizes hold to."""
    shapes = [shape for shape in map(shape_of, starts) if shape is not None and len(shape) > 1]
    return len({shape[0] for shape in shapes}) > 1


def _verdict(
    each: Respelled,
    starts: Sequence[fx.Node],
    before: fx.Node,
    rows: Mapping[str, Entry],
    proved: Proved,
    kept: frozenset[int],
    *,
    modes: bool,
) -> SiteVerdict:
    fragment = each.fragment
    end = fragment.standing.get(each.end)
    if end is None:
        raise InternalError(f"{each.name}: nothing computes {each.end} any more")
    # Of what was read for its size alone, nothing is left, and nothing asks for it.
    now = [fragment.standing.get(node.name, node) for node in starts]
    reference = Region(fragment.reference, tuple(starts), before, fragment.original_key)
    working = Region(fragment.working, tuple(now), end, fragment.working_key)
    examples = [example_of(node) for node in starts]
    return compare_regions(
        reference,
        working,
        examples,
        exact=False,
        rows=rows,
        proved=proved,
        modes=modes,
        kept=kept,
        rounding=each.rounding,
    )
