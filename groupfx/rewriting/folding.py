"""Fold the channel permutations of a torch graph into its parameters.

Every node is read as one of the rules of `groupfx.folding`, and the plan of the whole graph is
carried out: each parameter is put in its order, in every place that has it, and each gather that
is left becomes its cheapest leaf. The map of the state_dict says which element went where.
"""

import inspect
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ..convs.calls import ConvCall, Stored, attribute, convs
from ..convs.names import call_name
from ..errors import ModelError
from ..folding.algebra import apply
from ..folding.edits import Block, Edit
from ..folding.fold import Dead, Fold, FoldedLink
from ..folding.orders import Order
from ..folding.problem import Problem
from ..folding.spelling import Piece
from ..folding.wiring import Graph, Operation
from ..nn.marks import fold_of
from ..plan.channel_order import AS_THEY_WERE, PADDING, FoldNote
from ..plan.gathers import GatherPlan
from ..plan.site_plan import NOTE, site_of
from ..running.inputs import ExampleInputs, in_order
from ..running.unchanged import evaluate, unchanged
from ..state.map import Entry, Part, Picked, Requirement, Rows
from ..tracing.program import Fragment, Program
from ..verify import Change
from ..verify.alike import same_bits
from .channel_calls import first_argument
from .channel_rules import TorchRules, tensor_keys
from .leaves import gather_module
from .report import RewrittenSite
from .resizing import write_groups, write_size
from .store import Store
from .writes import writes

_NO_GRAPH = (
    "fold-permutations looks at the whole graph, and this model was opened by its modules: "
    "open it with way='export'"
)


def whole_graph(program: Program) -> Fragment | str:
    """The fragment with the whole graph, or why there is none that can be folded."""
    if program.way == "modules":
        return _NO_GRAPH
    fragment = program.whole
    changed = changed_in_place(fragment.working)
    if changed is not None:
        return f"{changed} is changed in place and read again afterwards"
    return fragment


def changed_in_place(module: fx.GraphModule) -> str | None:
    """The name of a value that is changed in place and read again afterwards, if there is one.

    Whoever reads it later would read what a gather in between has copied.
    """
    place = {node: number for number, node in enumerate(module.graph.nodes)}
    for node in module.graph.nodes:
        if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
            continue
        first = first_argument(node)
        if writes(node, module) and any(place[user] > place[node] for user in first.users):
            return first.name
    return None


def read_problem(program: Program, fragment: Fragment, store: Store) -> Problem:
    """The problem of the working graph."""
    graph = Graph()
    for operation in operations(program, fragment, store):
        apply(graph, operation)
    return graph.finish()


def operations(program: Program, fragment: Fragment, store: Store) -> Iterator[Operation]:
    """The nodes of the working graph as the rules see them, in order."""
    working = fragment.working
    assert program.inputs is not None
    shapes = _shapes(working, program.model, program.inputs)
    rules = TorchRules(working, shapes, store.why_fixed, store.hooks)
    return (op for op in map(rules.operation, working.graph.nodes) if op is not None)


class _Recorder(fx.Interpreter):
    """Runs a graph and notes the shape of each tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


def _shapes(
    module: fx.GraphModule, model: nn.Module, inputs: ExampleInputs
) -> Mapping[fx.Node, tuple[int, ...]]:
    """The shape of each tensor of the graph on the example inputs."""
    ordered = in_order(model, inputs)
    recorder = _Recorder(module)
    exported = isinstance(module.graph._codegen, fx.graph._PyTreeCodeGen)
    if exported:
        given: list[Any] = tree_leaves((ordered.args, dict(ordered.kwargs)))
    else:
        bound = inspect.signature(model.forward).bind(*ordered.args, **ordered.kwargs)
        bound.apply_defaults()
        given = list(bound.arguments.values())
    with unchanged(module), torch.no_grad():
        evaluate(module)
        try:
            recorder.run(*given, enable_io_processing=False)
        except Exception as error:
            raise ModelError(f"the graph does not run on the example inputs: {error}") from error
    return recorder.shapes


def carry_out(fragment: Fragment, store: Store, plan: Fold) -> None:
    """Do to the working graph what `plan` says of it."""
    _tell(fragment.working, store, plan)
    for edit in plan.edits:
        tensor = attribute(fragment.working, str(edit.key))
        shape = tuple(tensor.shape)
        zeros = _blocks_picked(edit.zeros, shape) if edit.zeros else None
        store.reorder(str(edit.key), _picked(edit, shape), zeros)
    _fit(fragment.working, store, plan)
    _forget_plans(fragment, plan)
    work = _Links(fragment)
    for folded in plan.links:
        if not folded.untouched:
            work.place(folded)
    work.clean_up()


def moved_otherwise(
    program: Program,
    sites: Sequence[RewrittenSite],
    entries: Mapping[str, Entry | Requirement],
) -> Iterator[Change]:
    """Every tensor of the result that is not those elements of the original that the map says."""
    original, result = program.model.state_dict(), program.result.state_dict()
    zeroed = {key for site in sites for key in site.zeroed}
    for key, entry in entries.items():
        if not isinstance(entry, Entry) or entry.key in zeroed or entry.key not in original:
            continue
        whole = isinstance(entry, Rows) and entry.stop is None
        before = original[entry.key] if whole else entry.of(original[entry.key])
        if not isinstance(before, Tensor) or before.is_meta:
            continue
        if not same_bits(before.to(result[key].device), result[key]):
            yield Change(key, "its elements", f"those of {entry.key}, reordered", "others")


def _picked(edit: Edit, shape: tuple[int, ...]) -> Picked:
    """The elements of a tensor in their new order, in the words of the map."""
    if edit.blocks:
        return _blocks_picked(edit.blocks, shape)
    rows = _indices(edit.axes.get(0), shape[0])
    if 1 not in edit.axes:
        return Picked("", (Part(rows),), shape[:1], edit.fill)
    return Picked("", (Part(rows, _indices(edit.axes[1], shape[1])),), shape[:2])


def _indices(order: Order | None, length: int) -> tuple[int | None, ...]:
    if order is None:
        return tuple(range(length))
    return tuple(None if index == PADDING else index for index in order.tolist())


def _blocks_picked(blocks: Sequence[Block], shape: tuple[int, ...]) -> Picked:
    parts = [Part(tuple(b.rows.tolist()), tuple(b.columns.tolist())) for b in blocks]
    return Picked("", tuple(parts), shape[:2])


def _fit(working: fx.GraphModule, store: Store, plan: Fold) -> None:
    """Let modules and calls say how many channels there are now."""
    groups: dict[str, int] = {}
    for count in plan.counts:
        node = cast(fx.Node, count.node)
        if count.dim is not None:
            write_size(node, count.dim, count.value)
        elif node.op == "call_module":
            groups[str(node.target)] = count.value
        else:
            write_groups(node, count.value)
    store.fit_fields([*(str(edit.key).rpartition(".")[0] for edit in plan.edits), *groups], groups)
    if plan.dead != Dead() or plan.padding:
        for node in working.graph.nodes:
            for key in _OF_OTHER_SHAPES if node.op != "placeholder" else ():
                node.meta.pop(key, None)


_OF_OTHER_SHAPES = ("val", "shape", "tensor_meta")


def _tell(working: fx.GraphModule, store: Store, plan: Fold) -> None:
    """Write on the graph and on each convolution how its channels will lie."""
    known = fold_of(working) or FoldNote()
    orders, keys = dict(known.orders), tensor_keys(working)
    for call in convs(working).values():
        if not isinstance(call, ConvCall) or not isinstance(call.weight, Stored):
            continue
        key = keys.get(id(attribute(working, call.weight.key)))
        sides = None if key is None else plan.sides(key, call.spec.transposed)
        if sides is not None:
            path = call_name(call)
            orders[path] = known.orders.get(path, AS_THEY_WERE).then(*sides)
            if call.path is not None:
                store.mark_orders(call.path, orders[path])
    FoldNote({path: found for path, found in orders.items() if found != AS_THEY_WERE}).write(
        working.meta
    )


def _forget_plans(fragment: Fragment, plan: Fold) -> None:
    """Take off the graph what it remembers of sites that are not what they were.

    A gather is another, or channels are gone.
    """
    moved = {folded.link.place.node for folded in plan.links if not folded.untouched}
    nodes = fragment.working.graph.nodes
    smaller = {str(edit.key).rpartition(".")[0] for edit in plan.edits if edit.leaves_out}
    gone = {
        site_of(node.meta) for node in nodes if node in moved or str(node.target) in smaller
    } - {None}
    for node in nodes:
        if site_of(node.meta) in gone:
            node.meta.pop(NOTE, None)


class _Links:
    """Puts what is left of links where they stand; `now` is what a node has become."""

    def __init__(self, fragment: Fragment) -> None:
        self.fragment = fragment
        self.module = fragment.working
        self.graph = fragment.working.graph
        self.now: dict[object, fx.Node] = {}
        self.led: dict[tuple[fx.Node, int], fx.Node] = {}
        self.names = {name for name, _ in self.module.named_children()}

    def place(self, folded: FoldedLink) -> None:
        """Emit one link, and give it to whoever reads it."""
        place, values = folded.link.place, folded.link.values
        node = cast(fx.Node, place.node)
        if place.slot is not None:
            (value,) = values
            held = self.led.get((node, place.slot)) or self._current(value)
            with self.graph.inserting_before(node):
                made = self._emit(folded, [held])
            reads = held if place.through is None else self._current(place.through)
            node.replace_input_with(reads, made)
            self.led[node, place.slot] = made
            return
        with self.graph.inserting_before(node):
            made = self._emit(folded, [self._current(value) for value in values])
        node.replace_all_uses_with(made)
        self.fragment.stand_in(node, made)
        self.now[node] = made

    def clean_up(self) -> None:
        """Remove what nobody reads any more: nodes, and the leaves that they called."""
        gone: set[str] = set()
        for node in reversed(list(self.graph.nodes)):
            unused = node.op not in ("placeholder", "output") and not node.users
            if unused and not node.is_impure():
                gone |= {str(node.target)} if node.op == "call_module" else set()
                self.fragment.forget(node)
                self.graph.erase_node(node)
        called = {str(node.target) for node in self.graph.nodes if node.op == "call_module"}
        for path in gone - called:
            # A module with tensors keeps them: they are in the state_dict.
            if not self.module.get_submodule(path).state_dict():
                self.module.delete_submodule(path)
        self.graph.lint()
        self.module.recompile()
        self.fragment.changed = True

    def _current(self, value: object) -> fx.Node:
        return self.now.get(value, cast(fx.Node, value))

    def _emit(self, folded: FoldedLink, sources: list[fx.Node]) -> fx.Node:
        spelling, dim = folded.spelling, folded.link.dim
        values = [self._piece(sources, piece, dim) for piece in spelling.pieces]
        joint = values[0]
        if len(values) > 1:
            joint = self.graph.call_function(torch.cat, (values,), {"dim": dim})
        return joint if spelling.gather is None else self._gather(folded, spelling.gather, joint)

    def _piece(self, sources: list[fx.Node], piece: Piece, dim: int) -> fx.Node:
        source = sources[piece.source]
        if piece.part is None:
            return source
        start, stop = piece.part.start, piece.part.stop
        if dim != 1:
            return self.graph.call_function(torch.narrow, (source, dim, start, stop - start))
        index = (slice(None), slice(start, stop))
        return self.graph.call_function(operator.getitem, (source, index))

    def _gather(self, folded: FoldedLink, gather: GatherPlan, value: fx.Node) -> fx.Node:
        dim = folded.link.dim
        name = self._name(folded.link.place.name)
        self.module.add_submodule(name, gather_module(gather))
        if dim == 1:
            return self.graph.call_module(name, (value,))
        turned = self.graph.call_function(torch.transpose, (value, 1, dim))
        gathered = self.graph.call_module(name, (turned,))
        return self.graph.call_function(torch.transpose, (gathered, 1, dim))

    def _name(self, place: str) -> str:
        """A free path for a leaf, named for where it stands."""
        stem = re.sub(r"\W", "_", f"{place}_order")
        name, number = stem, 1
        while name in self.names:
            number += 1
            name = f"{stem}_{number}"
        self.names.add(name)
        return name
