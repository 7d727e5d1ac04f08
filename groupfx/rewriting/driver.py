"""Run one pass over every site of a program.

The driver owns what passes should not repeat: finding sites, deciding which tensors may be cut,
replacing nodes, cleaning up, recompiling once, and writing down what happened.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..convs.calls import ConvCall, Recomputed, Unreadable, convs
from ..convs.names import call_name, numbered, unnumbered
from ..errors import GroupfxError, InternalError
from ..folding.fold import Fold
from ..plan.notes import Note
from ..plan.site_plan import site_of
from ..state.map import Entry, Requirement
from ..tracing import Fragment, Program, Shapes, SwappedConv
from ..tracing.graphs import CALLS
from ..tracing.swapping import put
from .folding import carry_out, read_problem, whole_graph
from .graph_pass import GraphPass
from .operation_pass import OperationPass, Respelled
from .parallel import merge_parallel
from .pass_ import Pass, Rewritten, Skip, require_named
from .places import erase
from .region_pass import RegionPass
from .remembering import remember
from .report import RewrittenSite, SkippedSite
from .respelling import run_operations
from .site import Site
from .store import Store


@dataclass(frozen=True)
class UnreadableSite:
    """A grouped convolution whose numbers are not constants of the graph."""

    name: str
    reason: str
    calls: int = 1


@dataclass(frozen=True)
class PassResult:
    """What one pass did: the sites or operations it rewrote, and those it left; or its fold."""

    pass_: Pass[Any]
    sites: tuple[RewrittenSite, ...]
    skipped: tuple[SkippedSite, ...]
    fold: Fold | None = None
    respelled: tuple[Respelled, ...] = ()


Read = Callable[[fx.GraphModule], Mapping[fx.Node, ConvCall | Unreadable]]


def find_sites(
    program: Program, store: Store, read: Read = convs
) -> Iterator[Site | UnreadableSite]:
    """Every call of the program that `read` finds, in graph order; all convolutions by default."""
    found = [
        (fragment, node, call)
        for fragment in program.fragments
        for node, call in read(fragment.working).items()
    ]
    bases = [call_name(call, fragment.site_name) for fragment, _, call in found]
    counts: Counter[str] = Counter()
    for (_, node, _), base in zip(found, bases, strict=True):
        counts[base] += node.meta.get(CALLS, 1)
    for (fragment, node, call), base, name in zip(found, bases, numbered(bases), strict=True):
        if isinstance(call, Unreadable):
            if call.groups != 1:
                yield UnreadableSite(name, call.reason)
            continue
        # Those of the module are not those of the call, where its forward moves axes first.
        shapes = _node_shapes(call, node) or fragment.shapes
        calls = fragment.calls if fragment.is_part else counts[base]
        yield Site(name, fragment, call, store, calls, shapes)
    for path, unreachable in program.unreachable.items():
        yield UnreadableSite(path, unreachable.reason, unreachable.calls)
    for path in program.uncalled:
        yield UnreadableSite(path, "it is not called in this forward", calls=0)


def _node_shapes(call: ConvCall, node: fx.Node) -> Shapes | None:
    shapes = [_shape(n) for n in (call.input, node)]
    return None if shapes[0] is None or shapes[1] is None else Shapes(shapes[0], shapes[1])


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    if "shape" in node.meta:
        return tuple(node.meta["shape"])
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    # A size that torch.export left open is a symbol; its hint is the size of the example.
    return tuple(n if isinstance(n, int) else int(n.node.hint) for n in value.shape)


@dataclass
class _Match:
    site: Site
    description: Any


def run_pass(
    pass_: Pass[Any], program: Program, entries: dict[str, Entry | Requirement]
) -> PassResult:
    """Apply `pass_` to the working side of `program`; `entries` is brought up to date.

    Raises RewriteError where an option names a site that is not there, and InternalError where the
    pass breaks a rule of its own.
    """
    store = Store(program, entries)
    name = pass_.pass_name()
    if isinstance(pass_, GraphPass):
        return _run_on_graph(pass_, program, store)
    if isinstance(pass_, RegionPass):
        sites, left = merge_parallel(pass_, program, store)
        return PassResult(pass_, tuple(sites), tuple(left))
    if isinstance(pass_, OperationPass):
        respelled, left = run_operations(pass_, program, store)
        return PassResult(pass_, (), tuple(left), respelled=tuple(respelled))
    matches: list[_Match] = []
    skipped: list[SkippedSite] = []
    found = list(find_sites(program, store, pass_.calls))
    require_sites(pass_, store, found)
    for site in found:
        if isinstance(site, UnreadableSite):
            skipped.append(SkippedSite(site.name, "unknown", name, site.reason))
            continue
        if not pass_.wants(site):
            continue
        description = pass_.match(site)
        if isinstance(description, Skip):
            skipped.append(_skipped(site, name, description.reason))
        else:
            matches.append(_Match(site, description))
    matches, dropped = _whole_modules(matches, store)
    skipped += [_skipped(site, name, reason) for site, reason in dropped]
    rewritten = _rewrite_all(pass_, matches, store)
    return PassResult(pass_, tuple(rewritten), tuple(skipped))


def require_sites(pass_: Pass[Any], store: Store, found: Iterable[Site | UnreadableSite]) -> None:
    """Raise `RewriteError` where an option of the pass names a site that was not found.

    One that was rewritten before is none any more, and still known by its name.
    """
    if not (getattr(pass_, "only", ()) or getattr(pass_, "skip", ())):
        return
    wanted = list(_done(store))
    others: list[str] = []
    for site in found:
        if isinstance(site, UnreadableSite):
            wanted.append(site.name)
            continue
        names = wanted if pass_.wants(site) else others
        names.append(site.name)
    aliases = _aliases(store.program.model)
    require_named(pass_, *(_with_aliases(names, aliases) for names in (wanted, others)))


def _aliases(root: nn.Module) -> dict[str, list[str]]:
    """For each path of a module that holds tensors, all paths where the same tensors are."""
    paths: dict[frozenset[int], list[str]] = defaultdict(list)
    for path, module in root.named_modules(remove_duplicate=False):
        held = frozenset(map(id, (*module.parameters(), *module.buffers())))
        # What holds one layer and nothing else is not another name of it.
        if path and held and not any(path.startswith(f"{other}.") for other in paths[held]):
            paths[held].append(path)
    return {path: group for group in paths.values() if len(group) > 1 for path in group}


def _with_aliases(names: Iterable[str], aliases: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for name in names:
        yield from (name, *aliases.get(unnumbered(name), ()))


def _done(store: Store) -> Iterator[str]:
    """Names of the sites that were rewritten before the program was opened."""
    for path, module in store.program.result.named_modules(remove_duplicate=False):
        if isinstance(module, SwappedConv):
            yield path
    for fragment in store.program.fragments:
        for node in fragment.working.graph.nodes:
            site = site_of(node.meta)
            if site is not None:
                yield fragment.full_name(site)


def _run_on_graph(pass_: GraphPass, program: Program, store: Store) -> PassResult:
    fragment = whole_graph(program)
    if isinstance(fragment, str):
        names = getattr(pass_, "only", ()) or ("the model",)
        left = (SkippedSite(name, "unknown", pass_.pass_name(), fragment) for name in names)
        return PassResult(pass_, (), tuple(left))
    fold = pass_.plan_graph(read_problem(program, fragment, store))
    if fold.changes:
        carry_out(fragment, store, fold)
    return PassResult(pass_, (), pass_.left(fold), fold)


def _skipped(site: Site, pass_name: str, reason: str) -> SkippedSite:
    return SkippedSite(site.name, site.kind, pass_name, reason)


def _whole_modules(
    matches: list[_Match], store: Store
) -> tuple[list[_Match], list[tuple[Site, str]]]:
    """Decide which weights stay whole; drop calls whose recomputed weight other calls need."""
    claims = [(match.site.fragment, match.site.call) for match in matches]
    whole = store.kept_whole(claims)
    kept, dropped = [], []
    for match in matches:
        call = match.site.call
        recomputed = any(isinstance(source, Recomputed) for source in (call.weight, call.bias))
        if recomputed and not store.all_claimed(match.site.module):
            dropped.append((match.site, "another call of the module keeps its recomputed weight"))
            continue
        match.site.whole_weights = whole.get(call.node)
        kept.append(match)
    return kept, dropped


def _rewrite_all(pass_: Pass[Any], matches: Sequence[_Match], store: Store) -> list[RewrittenSite]:
    by_fragment: dict[int, list[_Match]] = defaultdict(list)
    for match in matches:
        by_fragment[id(match.site.fragment)].append(match)
    done = []
    for group in by_fragment.values():
        fragment = group[0].site.fragment
        done += [_rewrite_site(pass_, match) for match in group]
        _finish(pass_, fragment, store.program)
    return done


def _rewrite_site(pass_: Pass[Any], match: _Match) -> RewrittenSite:
    site, fragment = match.site, match.site.fragment
    node, data = site.call.node, site.call.input
    before = node.prev
    try:
        with site.graph.inserting_before(node):
            made: Rewritten = pass_.rewrite(site, match.description)
    except GroupfxError:
        raise
    except Exception as error:
        raise InternalError(
            f"{pass_.pass_name()} failed at {site.name} ({type(error).__name__}: {error}); "
            "a rewrite must not fail after a match: this is a bug of the pass"
        ) from error
    record = RewrittenSite(
        name=site.name,
        kind=site.kind,
        pass_name=pass_.pass_name(),
        before=site.spec.describe(),
        after=made.form,
        branches=made.branches,
        macs=site.macs,
        macs_after=site.macs if made.macs is None else made.macs,
        notes=_notes(site, made),
        fragment=fragment,
        exact=pass_.exact,
        spec=site.spec,
        input_shape=None if site.shapes is None else site.shapes.input,
        conv=fragment.stands_for(node),
        start=fragment.stands_for(data),
        end=fragment.stands_for(made.end),
        zeroed=made.zeroed,
        brief=made.form if made.brief is None else made.brief,
        choice=made.choice,
    )
    remember(site, made, before)
    made.end.replace_all_uses_with(made.output)
    fragment.stand_in(made.end, made.output)
    erase(fragment, made.end, stop=data)
    return record


def _notes(site: Site, made: Rewritten) -> tuple[str, ...]:
    if site.whole_weights is not None:
        return (*made.notes, Note("the weight stays whole and is sliced", site.whole_weights))
    if site.call.computed:
        return (*made.notes, "the weight is computed in each forward and is sliced there")
    return made.notes


def _finish(pass_: Pass[Any], fragment: Fragment, program: Program) -> None:
    """Lint and recompile once; put the fragment in place of the module that it came from."""
    working = fragment.working
    try:
        working.graph.lint()
        working.recompile()
    except Exception as error:
        raise InternalError(
            f"{pass_.pass_name()} left a graph that does not compile in "
            f"{fragment.path or 'the model'} ({type(error).__name__}: {error})"
        ) from error
    fragment.changed = True
    if fragment.is_part:
        put(program.result, fragment.path, fragment.working, fragment.calls_of)
