"""The proof of what lies outside the sites: nothing of it was changed.

Two module trees are compared path by path: classes, modes, hooks, fields, and every tensor bit for
bit. Two graphs are compared node by node: targets and arguments, up to which node stands for which.
What belongs to a site is left out here and proved by `sites`: the nodes that it lost and the nodes
that it got, the modules and the tensors that only those use.

All of it is linear in the size of the model, and no tensor is copied.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..convs.names import joined
from ..convs.spec import CONV_TYPES, written_class
from ..convs.swapped_calls import without_swapped_calls
from .alike import Alike, same_bits, tensor_facts

# Of torch's own book-keeping: the tensors and children, which are compared one by one, and what
# belongs to the graph of a `GraphModule`, which is compared node by node.
_HELD = frozenset(("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"))
_GRAPH = frozenset(
    (
        "_graph",
        "_code",
        "_lineno_map",
        "_prologue_start",
        "_tracer_cls",
        "_tracer_extras",
        "_in_spec",
        "_out_spec",
        "meta",
        "shape_env",
        "_replace_hooks",
        "_create_node_hooks",
        "_erase_node_hooks",
        "_deepcopy_hooks",
    )
)
_MODELESS = frozenset((*CONV_TYPES, nn.Linear, nn.Identity, nn.ReLU))
_HOLDERS = (nn.Module, nn.ModuleList)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True)
class Change:
    """One thing that is not what it was, and that a rewrite must keep.

    `place` is the path of a module, the name of a tensor or that of a node, in the whole model
    (empty for the model itself), `what` its field; `before` and `after` are short texts.
    """

    place: str
    what: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.place or 'the model'}: {self.what}: {self.before} -> {self.after}"


@dataclass(frozen=True, eq=False)
class GraphPair:
    """A graph, what it became, and the working node that stands for each node, by name.

    `sites` are nodes of the reference: what goes into a site, and what comes out of it.
    """

    reference: fx.GraphModule
    working: fx.GraphModule
    standing: Mapping[str, fx.Node]
    sites: Sequence[tuple[Sequence[fx.Node], fx.Node]]

    @cached_property
    def twins(self) -> Mapping[fx.Node, fx.Node]:
        """For each node of the reference that something still stands for: what."""
        there = set(self.working.graph.nodes)
        named = ((node, self.standing.get(node.name)) for node in self.reference.graph.nodes)
        return {node: twin for node, twin in named if twin is not None and twin in there}

    @cached_property
    def outside(self) -> Mapping[fx.Node, fx.Node]:
        """The nodes that no site may change, and what stands for them."""
        ends = {end for _, end in self.sites}
        return {node: twin for node, twin in self.twins.items() if node not in ends}

    @cached_property
    def lost(self) -> Mapping[fx.Node, int]:
        """The nodes that a site replaced, the end of it included, and which site."""
        ends = [end for _, end in self.sites]
        starts = (start for given, _ in self.sites for start in given)
        return _reached(ends, {*self.outside, *ends, *starts})

    @cached_property
    def made(self) -> Mapping[fx.Node, int]:
        """The nodes that stand there for a site, and which."""
        ends = [self.twins[end] for _, end in self.sites if end in self.twins]
        return _reached(ends, {*self.outside.values(), *ends})

    def changes(self) -> Iterator[Change]:
        """Nodes that are gone, new or different, and those in another order."""
        alike = Alike(nodes=self.twins)
        for node in self.reference.graph.nodes:
            if node in self.outside:
                yield from _node_changes(node, self.outside[node], alike)
            elif node not in self.lost and (node.users or node.op != "get_attr"):
                # Of a tensor that was read for nothing, nothing is lost.
                yield Change(node.name, "node", _call(node), "gone")
        for node in self._added():
            yield Change(node.name, "node", "not there", _call(node))
        yield from self._moved()
        infos = [getattr(m.graph._codegen, "pytree_info", None) for m in self._modules]
        if infos[0] != infos[1]:
            yield Change("", "signature", *map(_SHORT.repr, infos))
        if self.working.code != self.working.graph.python_code("self").src:
            yield Change("", "code that runs", "its graph's", "another")

    @property
    def _modules(self) -> tuple[fx.GraphModule, fx.GraphModule]:
        return self.reference, self.working

    def _added(self) -> Iterator[fx.Node]:
        """New nodes that no site has, but for slices that nothing uses: one too many harms not."""
        known = {*self.outside.values(), *self.made}
        idle: set[fx.Node] = set()
        for node in reversed(self.working.graph.nodes):
            if node not in known and _only_reads(node) and idle.issuperset(node.users):
                idle.add(node)
        return (n for n in self.working.graph.nodes if n not in known and n not in idle)

    def _moved(self) -> Iterator[Change]:
        """The first node that runs before one that it ran behind: in-place writes go by that."""
        places = {node: place for place, node in enumerate(self.working.graph.nodes)}
        last: fx.Node | None = None
        for node, twin in self.outside.items():
            if last is not None and places[twin] < places[self.outside[last]]:
                yield Change(node.name, "place", f"behind {last.name}", "before it")
                return
            last = node

    def modules(self, *, before: bool) -> list[tuple[int, nn.Module]]:
        """The modules that only the sites call: those that they lost, or those that they got."""
        return self._modules_lost if before else self._modules_made

    @cached_property
    def _modules_lost(self) -> list[tuple[int, nn.Module]]:
        return _called_alone(self.reference, self.lost, self.outside)

    @cached_property
    def _modules_made(self) -> list[tuple[int, nn.Module]]:
        return _called_alone(self.working, self.made, self.outside.values())

    def tensors(self, *, before: bool) -> list[object]:
        """The tensors that the sites' own nodes read."""
        root = self.reference if before else self.working
        nodes = self.lost if before else self.made
        keys = [str(node.target) for node in nodes if node.op == "get_attr"]
        return [_attribute(root, key) for key in keys]

    def modes(self) -> Iterator[Change]:
        """The modules of a site that are in another mode than what they stand for."""
        replaced: dict[int, list[nn.Module]] = {}
        for site, module in self.modules(before=True):
            replaced.setdefault(site, []).append(module)
        made = {module: site for site, module in self.modules(before=False)}
        for path, module in self.working.named_modules():
            if module not in made:
                continue
            # What a pass makes anew is in train mode, and of these that says nothing.
            if module.training and type(module) in _MODELESS:
                continue
            old = replaced.get(made[module], [])
            like = [each for each in old if isinstance(module, type(each))] or old
            modes = {each.training for each in like} or {self.reference.training}
            if module.training not in modes:
                told = [f"{'train' if mode else 'eval'} mode" for mode in (*modes, module.training)]
                yield Change(path, "mode of what a site put there", *told)


def _called_alone(
    root: nn.Module, nodes: Mapping[fx.Node, int], others: Iterable[fx.Node]
) -> list[tuple[int, nn.Module]]:
    """The modules, and what is in them, that `nodes` call and `others` do not, with the number."""
    kept = {part for node in others for part in _called(root, node)}
    parts = ((site, part) for node, site in nodes.items() for part in _called(root, node))
    return [(site, part) for site, part in parts if part not in kept]


def _called(root: nn.Module, node: fx.Node) -> Iterator[nn.Module]:
    found = _attribute(root, str(node.target)) if node.op == "call_module" else None
    return found.modules() if isinstance(found, nn.Module) else iter(())


def _reached(ends: Sequence[fx.Node], stops: Set[fx.Node]) -> dict[fx.Node, int]:
    """`ends` and all that they are made of, not `stops` nor beyond, and the number of the end."""
    found: dict[fx.Node, int] = {}
    for number, end in enumerate(ends):
        pending = [end]
        while pending:
            node = pending.pop()
            if node in found or (node in stops and node is not end):
                continue
            found[node] = number
            pending += node.all_input_nodes
    return found


def _node_changes(node: fx.Node, twin: fx.Node, alike: Alike) -> Iterator[Change]:
    for what in ("op", "target", "args", "kwargs"):
        before, after = getattr(node, what), getattr(twin, what)
        if not alike(before, after):
            yield Change(node.name, what, *_told(before, after))


@dataclass
class Owned:
    """What belongs to sites, by id: modules and tensors that they lost, and that they got."""

    modules: set[int] = field(default_factory=set)
    tensors: set[int] = field(default_factory=set)
    made: set[int] = field(default_factory=set)
    made_tensors: set[int] = field(default_factory=set)


@dataclass(frozen=True, eq=False)
class TreePair:
    """A module tree and what it became. `fields` are those that the root has got besides its own.

    `names` are filled by `changes` with the tensors that were compared, by their path.
    """

    before: nn.Module
    after: nn.Module
    owned: Owned
    fields: Mapping[str, Any] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    @cached_property
    def _old(self) -> Mapping[str, nn.Module]:
        return dict(self.before.named_modules(remove_duplicate=False))

    @cached_property
    def _new(self) -> Mapping[str, nn.Module]:
        return dict(self.after.named_modules(remove_duplicate=False))

    def changes(self) -> Iterator[Change]:
        """Modules, fields and tensors that are gone, new or different."""
        alike = Alike(modules=self._correspondence())
        ties = _Ties()
        for path, module in self._old.items():
            if id(module) in self.owned.modules or self._is_emptied(path, module):
                continue
            other = self._new.get(path)
            if other is None or not _same_class(module, other):
                now = "gone" if other is None else written_class(other).__name__
                yield Change(path, "module", written_class(module).__name__, now)
                continue
            yield from self._field_changes(path, module, other, alike)
            yield from self._tensor_changes(path, module, other, ties)
        yield from self._additions()

    def _correspondence(self) -> Mapping[int, Sequence[nn.Module]]:
        """For each module what lies at its paths now; nothing is said of those of the sites."""
        found: dict[int, list[nn.Module]] = {}
        for path, module in self._old.items():
            if id(module) not in self.owned.modules and path in self._new:
                found.setdefault(id(module), []).append(self._new[path])
        return found

    def _is_emptied(self, path: str, module: nn.Module) -> bool:
        """Whether a holder held what sites took, and what is where it was, and nothing else."""
        parts = {name: tensor for _, name, tensor in _tensors(module)}
        children = module._modules
        if type(module) not in _HOLDERS or not (parts or children):
            return False
        return all(
            part is None or id(part) in self.owned.tensors or self._is_kept(path, name, part)
            for name, part in parts.items()
        ) and all(
            child is None
            or id(child) in self.owned.modules
            or self._is_emptied(joined(path, name), child)
            for name, child in children.items()
        )

    def _is_kept(self, path: str, name: str, tensor: Tensor) -> bool:
        """Whether another module, that sites put there, has the tensor under its name."""
        other = self._new.get(path)
        if other is None or id(other) not in self.owned.made:
            return False
        held = {each: now for _, each, now in _tensors(other)}.get(name)
        return held is not None and held.shape == tensor.shape and same_bits(held, tensor)

    def _field_changes(
        self, path: str, module: nn.Module, other: nn.Module, alike: Alike
    ) -> Iterator[Change]:
        before, after = _fields(module), _fields(other)
        if path == "":
            before = {**self.fields, **before}
        nothing = _Nothing()
        for name in before | after:
            old, new = before.get(name, nothing), after.get(name, nothing)
            if not alike(old, new):
                yield Change(path, name, *_told(old, new))
        if isinstance(module, torch.jit.ScriptModule):
            return
        places = [name for name in module._modules if name in other._modules]
        if places != [name for name in other._modules if name in module._modules]:
            yield Change(path, "order of its parts", *_told(places, "another"))

    def _tensor_changes(
        self, path: str, module: nn.Module, other: nn.Module, ties: _Ties
    ) -> Iterator[Change]:
        old = {name: (kind, tensor) for kind, name, tensor in _tensors(module)}
        new = {name: (kind, tensor) for kind, name, tensor in _tensors(other)}
        for name, (kind, tensor) in old.items():
            full = joined(path, name)
            if name not in new:
                if id(tensor) not in self.owned.tensors:
                    yield Change(full, kind, "there", "gone")
                continue
            self.names.add(full)
            if new[name][0] != kind:
                yield Change(full, "kind", kind, new[name][0])
            # What TorchScript holds comes out of it as a plain tensor, each time anew.
            scripted = isinstance(module, torch.jit.ScriptModule)
            yield from _tensor_change(full, tensor, new[name][1], None if scripted else ties)
        for name, (kind, tensor) in new.items():
            if name not in old and id(tensor) not in self.owned.made_tensors:
                yield Change(joined(path, name), kind, "not there", "new")
        order = [name for name in old if name in new]
        if order != [name for name in new if name in old]:
            yield Change(path, "order of its tensors", *_told(order, "another"))

    def _additions(self) -> Iterator[Change]:
        """Modules where none was, and that no site has."""
        used = {
            path[:end]
            for path, module in self._new.items()
            if id(module) in self.owned.made
            or any(id(tensor) in self.owned.made_tensors for _, _, tensor in _tensors(module))
            for end in (*(k for k, letter in enumerate(path) if letter == "."), len(path))
        }
        for path, module in self._new.items():
            parent = path.rpartition(".")[0]
            known = path in self._old or id(module) in self.owned.made or path in used
            if not known and (parent in self._old or parent in used):
                yield Change(path, "module", "not there", type(module).__name__)


class _Ties:
    """Which tensors are one: those that were stay so, and no others are."""

    def __init__(self) -> None:
        self._now: dict[int, tuple[str, Tensor]] = {}
        self._was: dict[int, tuple[str, Tensor]] = {}

    def change(self, name: str, before: Tensor, after: Tensor) -> Change | None:
        """What `name` is tied to no more, or newly; None where it is as it was."""
        first, now = self._now.setdefault(id(before), (name, after))
        if now is not after:
            return Change(name, "tie", f"the same tensor as {first}", "another")
        first, was = self._was.setdefault(id(after), (name, before))
        if was is not before:
            return Change(name, "tie", f"another tensor than {first}", "the same")
        return None


def _tensor_change(
    name: str, before: Tensor | None, after: Tensor | None, ties: _Ties | None
) -> Iterator[Change]:
    if before is None or after is None:
        if before is not after:
            told = ["None" if tensor is None else "a tensor" for tensor in (before, after)]
            yield Change(name, "tensor", *told)
        return
    facts, others = tensor_facts(before), tensor_facts(after)
    for what, fact in facts.items():
        if fact != others[what] and (ties is not None or what not in ("class", "requires_grad")):
            yield Change(name, what, *_told(fact, others[what]))
    if facts["shape"] == others["shape"] and facts["dtype"] == others["dtype"]:
        tie = None if ties is None else ties.change(name, before, after)
        if tie is not None:
            yield tie
        if facts["device"] == others["device"] and not same_bits(before, after):
            yield Change(name, "values", *_values(before, after))


def _values(before: Tensor, after: Tensor) -> tuple[str, str]:
    """The first element that differs, and where it is."""
    if before.is_quantized or not before.is_contiguous() or not after.is_contiguous():
        return "as in the original", "others"
    old, new = before.detach().flatten(), after.detach().flatten()
    low, high = 0, old.numel()
    while high - low > 1:  # halves, so that nothing of the size of the tensor is made
        middle = (low + high) // 2
        low, high = (middle, high) if same_bits(old[low:middle], new[low:middle]) else (low, middle)
    return f"{old[low].item()!r} at element {low}", f"{new[low].item()!r}"


def _tensors(module: nn.Module) -> Iterator[tuple[str, str, Tensor | None]]:
    """Kind, name and tensor of what a module itself has registered."""
    transient = getattr(module, "_non_persistent_buffers_set", ())
    for name, parameter in module._parameters.items():
        yield "parameter", name, parameter
    for name, buffer in module._buffers.items():
        yield ("buffer out of the state_dict" if name in transient else "buffer"), name, buffer


def _fields(module: nn.Module) -> dict[str, Any]:
    left_out = _HELD | _GRAPH if isinstance(module, fx.GraphModule) else _HELD
    if _is_machinery(module):
        return {}
    fields = without_swapped_calls(vars(module))
    return {name: value for name, value in fields.items() if name not in left_out}


def _is_machinery(module: nn.Module) -> bool:
    """Whether the fields are those of a compiler, and made anew with each copy."""
    compiled = type(module).__module__.startswith("torch._dynamo")
    return compiled or isinstance(module, torch.jit.ScriptModule)


def _same_class(module: nn.Module, other: nn.Module) -> bool:
    # A copy of what torch.jit.trace made is of another class than the traced.
    scripted = [isinstance(each, torch.jit.ScriptModule) for each in (module, other)]
    return all(scripted) or written_class(module) is written_class(other)


def _only_reads(node: fx.Node) -> bool:
    return node.op == "get_attr" or node.target is operator.getitem


def _attribute(root: nn.Module, key: str) -> object:
    value: object = root
    for name in key.split("."):
        value = getattr(value, name, None)
    return value


class _Nothing:
    """In place of a field that is not there."""

    def __repr__(self) -> str:
        return "not there"


def _told(before: object, after: object) -> tuple[str, str]:
    told = _SHORT.repr(before), _SHORT.repr(after)
    return told if told[0] != told[1] else (told[0], f"another {type(after).__name__}")


def _call(node: fx.Node) -> str:
    target = getattr(node.target, "__name__", node.target)
    return f"{node.op} of {target}"
