"""Carry out a pass over operations, and prove what it did."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from torch import fx

from ..errors import GroupfxError, InternalError
from ..plan.site_plan import NOTE, site_of
from ..state.map import Entry, Requirement
from ..tracing.places import owner_of
from ..tracing.program import Fragment, Program
from ..verify import Proved, Region, SiteVerdict, compare_regions
from .operation_pass import OperationPass, Place, Respelled, Spelling, respelled_at, shape_of
from .pass_ import Skip
from .report import SkippedSite
from .store import Store

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
    (fragment,) = program.fragments
    done: list[Respelled] = []
    skipped: list[SkippedSite] = []
    numbers: Counter[str] = Counter()
    nodes = list(fragment.working.graph.nodes)
    gone: set[fx.Node] = set()
    for node in reversed(nodes) if pass_.backwards else nodes:
        if node in gone or node.op in ("placeholder", "output"):
            continue
        place = Place(node, fragment, store)
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
    *,
    modes: bool = True,
) -> Iterator[Respelled]:
    """Each with a verdict, but for what has no value; `modes`: the model has a train mode."""
    rows = {key: entry for key, entry in entries.items() if isinstance(entry, Entry)}
    proved: Proved = {}
    nodes: dict[int, dict[str, fx.Node]] = {}
    for each in respelled:
        fragment = each.fragment
        if id(fragment) not in nodes:
            nodes[id(fragment)] = {node.name: node for node in fragment.reference.graph.nodes}
        known = nodes[id(fragment)]
        if each.valued:
            each = replace(each, verdict=_verdict(each, known, rows, proved, modes=modes))
        yield each


def _verdict(
    each: Respelled,
    nodes: Mapping[str, fx.Node],
    rows: Mapping[str, Entry],
    proved: Proved,
    *,
    modes: bool,
) -> SiteVerdict:
    fragment = each.fragment
    starts = [nodes[name] for name in each.starts]
    end = fragment.standing.get(each.end)
    if end is None:
        raise InternalError(f"{each.name}: nothing computes {each.end} any more")
    # Of what was read for its size alone, nothing is left, and nothing asks for it.
    now = [fragment.standing.get(node.name, node) for node in starts]
    reference = Region(fragment.reference, tuple(starts), nodes[each.end], fragment.original_key)
    working = Region(fragment.working, tuple(now), end, fragment.working_key)
    examples = [shape_of(node) for node in starts]
    return compare_regions(
        reference, working, examples, exact=False, rows=rows, proved=proved, modes=modes
    )
