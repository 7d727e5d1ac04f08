"""What a rewrite left as it was: the model outside the sites, compared with what it was before.

In the ways `trace` and `export` that is one graph over one tree of modules. In way `modules` it is
the user's own tree, but for the convolutions that were swapped, and a small graph for each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..convs.calls import attribute
from ..convs.names import joined
from ..nn.swapped import SwappedConv
from ..running.float64 import named_state
from ..running.twins import twin_tree
from ..state.map import Entry, Requirement, Rows
from ..tracing.program import Fragment, Program
from ..verify.alike import same_bits
from ..verify.structure import Change, GraphPair, Owned, TreePair
from ..verify.untouched import Fingerprint
from .operation_pass import Respelled
from .report import RewrittenSite


@dataclass(frozen=True)
class Outside:
    """A program as it was opened.

        before = Outside.of(program)
        ...                             # passes
        changes = before.changes(report.sites, entries)

    The reference says what there was; no tensor is copied. Where the caller's own model is
    rewritten in place, the two sides share their tensors and leaves: then it holds shallow copies
    of the modules and digests of the tensors.
    """

    program: Program
    roots: Mapping[int, nn.Module]
    model: nn.Module
    digests: Fingerprint | None = None

    @classmethod
    def of(cls, program: Program) -> Outside:
        """To be made before any pass runs."""
        own = {id(tensor) for tensor in program.model.parameters()}
        roots: dict[int, nn.Module] = {id(each): each.reference for each in program.fragments}
        if own.isdisjoint(map(id, program.result.parameters())):
            return cls(program, roots, program.model)
        roots = {key: twin_tree(root) for key, root in roots.items()}
        digests = Fingerprint.of(program.model)
        return cls(program, roots, twin_tree(program.model), digests)

    def changes(
        self,
        sites: Sequence[RewrittenSite],
        entries: Mapping[str, Entry | Requirement],
        respelled: Sequence[Respelled] = (),
    ) -> tuple[Change, ...]:
        """Everything outside of `sites` and of the `respelled` operations that is not what it was.

        `entries` is the map of the rewrite. To be asked before the model is run again (a forward
        may write to its modules), and before a pass over the whole graph moves channels: after
        that, `map_changes` holds each tensor to its entry.
        """
        return tuple(self._changes((*sites, *respelled), entries))

    def _changes(
        self,
        sites: Sequence[RewrittenSite | Respelled],
        entries: Mapping[str, Entry | Requirement],
    ) -> Iterator[Change]:
        program = self.program
        compared: set[str] = set()
        swapped: dict[str, nn.Module] = {}
        for fragment in program.fragments:
            if fragment.is_part and not fragment.changed:
                continue
            if fragment.is_module:
                swapped[fragment.path] = fragment.working
            yield from self._fragment_changes(fragment, sites, compared)
        if program.way == "modules":
            gone = [self.model.get_submodule(path) for path in swapped]
            owned = Owned(modules=_ids(gone), made=_ids(swapped.values()))
            tree = TreePair(self.model, program.result, owned)
            yield from tree.changes()
            compared |= tree.names
        yield from map_changes(program, entries, compared)
        if self.digests is not None:
            for name in self.digests.changes(program.model):
                yield Change(name, "itself", "as it was given", "changed in place")

    def _fragment_changes(
        self,
        fragment: Fragment,
        sites: Sequence[RewrittenSite | Respelled],
        compared: set[str],
    ) -> Iterator[Change]:
        nodes = {node.name: node for node in fragment.reference.graph.nodes}
        ends = [
            (
                tuple(nodes[start] for start in site.starts if start in fragment.standing),
                nodes[str(site.end)],
            )
            for site in sites
            if site.fragment is fragment and site.replaces
        ]
        graphs = GraphPair(fragment.reference, fragment.working, fragment.standing, ends)
        for change in (*graphs.changes(), *graphs.modes()):
            yield replace(change, place=joined(fragment.path, change.place))
        lost = [module for _, module in graphs.modules(before=True)]
        owned = Owned(
            modules=_ids(lost) | self._copies(fragment, lost),
            tensors=set(map(id, graphs.tensors(before=True))) | _unread(fragment, sites),
            made=_ids([module for _, module in graphs.modules(before=False)]),
            made_tensors=set(map(id, graphs.tensors(before=False))),
        )
        fields = {}
        if isinstance(fragment.working, SwappedConv):
            replaced = self.model.get_submodule(fragment.path)
            fields = {k: v for k, v in vars(replaced).items() if not k.startswith("_")}
        tree = TreePair(self.roots[id(fragment)], fragment.working, owned, fields)
        for change in tree.changes():
            yield replace(change, place=joined(fragment.path, change.place))
        compared.update(fragment.working_key(name) for name in tree.names)

    def _copies(self, fragment: Fragment, modules: Sequence[nn.Module]) -> set[int]:
        """The ids of what stands for `modules` in the tree that was kept of the reference."""
        root, wanted = self.roots[id(fragment)], _ids(modules)
        if root is fragment.reference:
            return wanted
        named = fragment.reference.named_modules(remove_duplicate=False)
        return {id(root.get_submodule(path)) for path, each in named if id(each) in wanted}


def _unread(fragment: Fragment, sites: Iterable[RewrittenSite | Respelled]) -> set[int]:
    """The ids of the tensors that operations took along, if the graph indeed never read them."""
    root = fragment.reference
    read = {str(node.target) for node in root.graph.find_nodes(op="get_attr") if node.users}
    names = {name for site in sites if isinstance(site, Respelled) for name in site.unread}
    return {id(attribute(root, name)) for name in names - read}


def _ids(modules: Iterable[nn.Module]) -> set[int]:
    """Of the modules and all that is in them."""
    return {id(part) for module in modules for part in module.modules()}


def map_changes(
    program: Program, entries: Mapping[str, Entry | Requirement], kept: Set[str] = frozenset()
) -> Iterator[Change]:
    """Tensors that are not what the map says of them, to the bit, or that lost a flag.

    `kept` names those that were compared with the original's of that name, which they must be.
    """
    before = named_state(program.model)
    for name, tensor in named_state(program.result).items():
        entry = entries.get(name)
        if not isinstance(entry, Entry):
            continue
        if name in kept:
            if entry != Rows(name):
                yield Change(name, "entry in the state_dict map", name, str(entry))
            continue
        source = before.get(entry.key)
        if source is not None:
            yield from _entry_changes(name, tensor, entry, source)


def _entry_changes(name: str, tensor: Tensor, entry: Entry, source: Tensor) -> Iterator[Change]:
    for what in ("requires_grad", "dtype", "device"):
        old, new = getattr(source, what), getattr(tensor, what)
        if old != new:
            yield Change(name, what, f"{old} in {entry.key}", str(new))
            return
    if isinstance(source, nn.Parameter) is not isinstance(tensor, nn.Parameter):
        kinds = [type(each).__name__ for each in (source, tensor)]
        yield Change(name, "class", f"{kinds[0]} ({entry.key})", kinds[1])
    if source.is_meta:
        return
    expected = entry.of(source)  # one tensor at a time, and rows are no copy
    if expected.shape != tensor.shape or not same_bits(expected, tensor):
        yield Change(name, "values", f"those of {entry}", "others")
