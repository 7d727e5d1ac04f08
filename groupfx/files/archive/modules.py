"""A tree of modules as plain data, and back.

Each module is one entry of a flat list; children are named by their index, and an entry only names
entries before it, so that a tree cannot contain itself. Shared modules stay shared.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ...convs.names import joined
from ...running.copies import has_gradient_hooks
from ...tracing.graphs import keep_transient
from ..names import INTERNAL_FIELDS, Damaged, atom, identifier, member
from ..names import field as field_name
from . import weight_hooks
from .graphs import is_export_guard, kept_nodes, read_graph, write_graph
from .module_classes import class_name, class_of
from .tensors import NotPlain, TensorWriter
from .values import ValueReader, ValueWriter, tensor_at

MAX_MODULES = 1_000_000
MAX_DEPTH = 100
# What a module costs, in plain values: more time than a value takes.
_COST = 50
GRAPH = "GraphModule"
_PLAIN = "torch.nn.Module"

Entry = dict[str, object]

_FORWARD_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
# Recurrent layers keep a second list of their weights, made anew on reading.
_RECURRENT = frozenset({"_flat_weights", "_flat_weight_refs"})

# No part of what it computes: what torch.jit.script leaves on the module that it was given, and
# how it is to be quantised later.
_BESIDE = frozenset({"__overloads__", "qconfig"})


@dataclass
class ModuleWriter:
    """Collects modules. Raises `NotPlain`, naming the module, for what a file cannot hold."""

    tensors: TensorWriter
    entries: list[Entry] = field(default_factory=list)
    _seen: dict[int, tuple[int, nn.Module, bool]] = field(default_factory=dict, repr=False)
    _open: set[int] = field(default_factory=set, repr=False)
    _called: set[int] = field(default_factory=set, repr=False)

    def add(self, module: nn.Module, path: str = "", *, runs: bool = True) -> int:
        """Index of `module`, which is added with all it holds.

        `runs` says whether its own `forward` is called. One that only holds others on the path to
        a called child is written as a plain `Module` where its class is unknown.
        """
        seen = self._seen.get(id(module))
        if seen is not None and (seen[2] or not runs):
            return seen[0]
        if id(module) in self._open or len(self._open) > MAX_DEPTH:
            raise NotPlain(f"a module that contains itself ({path or 'the root'})")
        self._open.add(id(module))
        entry = self._graph(module, path) if _is_graph(module) else self._plain(module, path, runs)
        self._open.discard(id(module))
        self.entries.append(entry)
        index = len(self.entries) - 1
        self._seen[id(module)] = (index, module, runs)
        return index

    def _graph(self, module: nn.Module, path: str) -> Entry:
        assert isinstance(module, fx.GraphModule)
        _refuse_hooks(module, path, exported=True)
        try:
            graph = write_graph(module)
        except NotPlain as error:
            raise NotPlain(f"{error} in {path or 'the model'}") from error
        called = {
            id(module.get_submodule(str(node.target)))
            for node in kept_nodes(module)
            if node.op == "call_module"
        }
        # However deep they lie in holders that are not called themselves.
        self._called |= called
        entry: Entry = {"class": GRAPH, "graph": graph, "training": module.training}
        entry |= self._tensors_of(module, path, fx.GraphModule)
        return entry | self._children(module, path, fx.GraphModule, called)

    def _plain(self, module: nn.Module, path: str, runs: bool) -> Entry:
        kind, parametrized = type(module), parametrize.is_parametrized(module)
        name = class_name(kind.__bases__[0] if parametrized else kind)
        if name is None and runs:
            shown = f"{kind.__module__}.{kind.__qualname__}"
            raise NotPlain(f"the module {path or 'the root'} of the class {shown}")
        _refuse_hooks(module, path)
        hooks = [hook for hook in module._forward_pre_hooks.values() if _is_weight_hook(hook)]
        computed = {weight_hooks.tensor_name(hook) for hook in hooks}
        entry: Entry = {"class": name or _PLAIN, "training": module.training}
        if parametrized:
            entry["parametrized"] = True
        if hooks:
            entry["hooks"] = [weight_hooks.describe(hook) for hook in hooks]
        if name is not None:
            entry["fields"] = self._fields(module, path, computed)
        called = {id(child) for child in module._modules.values()} if runs else set()
        entry |= self._tensors_of(module, path, kind if name else nn.Module)
        return entry | self._children(module, path, kind if name else nn.Module, called)

    def _fields(self, module: nn.Module, path: str, computed: set[str | None]) -> Entry:
        left_out = INTERNAL_FIELDS | computed | _BESIDE
        if isinstance(module, nn.RNNBase):
            left_out |= _RECURRENT
        writer = ValueWriter(self.tensors)
        fields: Entry = {}
        for name, value in module.__dict__.items():
            if name in left_out:
                continue
            try:
                fields[field_name(type(module), name)] = writer.write(value)
            except (NotPlain, Damaged) as error:
                raise NotPlain(f"{error} (field {name} of {path or 'the root'})") from error
        return fields

    def _tensors_of(self, module: nn.Module, path: str, kind: type) -> Entry:
        parameters, buffers = module._parameters.items(), module._buffers.items()
        for name, tensor in parameters:
            if tensor is not None and has_gradient_hooks(tensor):
                raise NotPlain(f"a gradient hook on {joined(path, name)}")
        try:
            return {
                "parameters": {member(kind, name): self._index(t) for name, t in parameters},
                "buffers": {member(kind, name): self._index(t) for name, t in buffers},
                "transient": sorted(module._non_persistent_buffers_set & set(module._buffers)),
            }
        except (NotPlain, Damaged) as error:
            raise NotPlain(f"{error} (in {path or 'the root'})") from error

    def _index(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self.tensors.add(tensor)

    def _children(self, module: nn.Module, path: str, kind: type, called: set[int]) -> Entry:
        children: dict[str, int | None] = {}
        for name, child in module._modules.items():
            if is_export_guard(child):
                continue
            try:
                member(kind, name)
            except Damaged as error:
                raise NotPlain(
                    f"a module in {path or 'the root'} with a forbidden name: {error}"
                ) from error
            below = joined(path, name)
            children[name] = None if child is None else self._child(child, below, called)
        return {"children": children}

    def _child(self, child: nn.Module, path: str, called: set[int]) -> int:
        return self.add(child, path, runs=id(child) in called or id(child) in self._called)


def _is_graph(module: nn.Module) -> bool:
    return isinstance(module, fx.GraphModule)


def _is_weight_hook(hook: object) -> bool:
    return weight_hooks.tensor_name(hook) is not None


def _refuse_hooks(module: nn.Module, path: str, *, exported: bool = False) -> None:
    """Raise `NotPlain` for hooks of the user's. `torch.export` puts its own on what it returns."""
    for kind in _FORWARD_HOOKS:
        for hook in getattr(module, kind).values():
            own = exported and str(getattr(hook, "__module__", "")).startswith("torch.export")
            if not own and not (kind == "_forward_pre_hooks" and _is_weight_hook(hook)):
                raise NotPlain(f"a hook on the module {path or 'the root'}")
    for kind in _STATE_HOOKS:
        for wrapped in getattr(module, kind).values():
            hook = getattr(wrapped, "hook", wrapped)
            origin = getattr(hook, "__module__", None) or type(hook).__module__
            if not origin.startswith("torch."):
                raise NotPlain(f"a hook on the state_dict of the module {path or 'the root'}")


def read_modules(entries: object, reader: ValueReader) -> list[nn.Module]:
    """The modules of a file, in order. Raises `Damaged`."""
    if not isinstance(entries, list) or len(entries) > MAX_MODULES:
        raise Damaged("its list of modules is missing or too long")
    modules: list[nn.Module] = []
    sizes: list[tuple[int, int]] = []
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise Damaged("a module is no table")
        reader.budget.spend(_COST)
        children = _read_children(entry, modules)
        reader.budget.spend(len(children))
        sizes.append(_size(entry, sizes))
        modules.append(_Builder(entry, children, reader).build())
    return modules


def _read_children(
    entry: Mapping[str, Any], modules: list[nn.Module]
) -> dict[str, nn.Module | None]:
    found = entry.get("children")
    if not isinstance(found, dict):
        raise Damaged("a module has no table of children")
    return {name: None if i is None else _module_at(modules, i) for name, i in found.items()}


def _module_at(modules: list[nn.Module], index: object) -> nn.Module:
    if type(index) is not int or not 0 <= index < len(modules):
        raise Damaged("a module is named that is not in the file")
    return modules[index]


def _size(entry: Mapping[str, Any], sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """How many modules a walk meets, and how deep; sharing must not make that exponential."""
    below = [sizes[index] for index in entry["children"].values() if index is not None]
    count, depth = (
        1 + sum(size[0] for size in below),
        1 + max((size[1] for size in below), default=0),
    )
    if count > MAX_MODULES or depth > MAX_DEPTH:
        raise Damaged("its modules are nested too often or too deep")
    return count, depth


@dataclass
class _Builder:
    """One entry, made into a module."""

    entry: Mapping[str, Any]
    children: dict[str, nn.Module | None]
    reader: ValueReader

    def build(self) -> nn.Module:
        if self.entry.get("class") == GRAPH:
            return self._graph()
        kind = class_of(self.entry.get("class"))
        module = kind.__new__(kind)
        nn.Module.__init__(module)
        for name, value in self._table("fields").items():
            module.__dict__[field_name(kind, name)] = self.reader.read(value)
        self._fill(module, kind)
        if self.entry.get("parametrized") is True:
            _parametrize(module)
        for hook in self._list("hooks"):
            weight_hooks.attach(module, hook)
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
        return module

    def _graph(self) -> nn.Module:
        root = nn.Module()
        self._fill(root, fx.GraphModule)
        module = read_graph(self.entry.get("graph"), root, self.reader)
        # The constructor copies only what the graph uses, and makes every buffer persistent.
        module._modules = root._modules
        module._parameters = root._parameters
        module._buffers = root._buffers
        module._non_persistent_buffers_set = root._non_persistent_buffers_set
        module.training = root.training
        keep_transient(module)
        return module

    def _table(self, key: str) -> dict[str, Any]:
        found = self.entry.get(key, {})
        if not isinstance(found, dict):
            raise Damaged(f"a module has no table of {key}")
        self.reader.budget.spend(len(found))
        return found

    def _list(self, key: str) -> list[Any]:
        found = self.entry.get(key, [])
        if not isinstance(found, list):
            raise Damaged(f"a module has no list of {key}")
        self.reader.budget.spend(len(found))
        return found

    def _fill(self, module: nn.Module, kind: type) -> None:
        """Put tensors and children on `module`, each under a name that nothing else has."""
        taken = set(module.__dict__) - INTERNAL_FIELDS
        for name, index in self._table("parameters").items():
            module._parameters[_free(kind, name, taken)] = self._parameter(index)
        for name, index in self._table("buffers").items():
            module._buffers[_free(kind, name, taken)] = self._tensor(index)
        for name, child in self.children.items():
            module._modules[_free(kind, name, taken)] = child
        transient = set(map(atom, self._list("transient")))
        module._non_persistent_buffers_set = transient & set(module._buffers)
        module.training = self.entry.get("training") is True

    def _tensor(self, index: object) -> Tensor | None:
        return None if index is None else tensor_at(self.reader.tensors, index)

    def _parameter(self, index: object) -> nn.Parameter | None:
        tensor = self._tensor(index)
        if tensor is not None and not isinstance(tensor, nn.Parameter):
            raise Damaged("a parameter of a module is none")
        return tensor


def _free(kind: type, name: object, taken: set[str]) -> str:
    checked = member(kind, name)
    if checked in taken:
        raise Damaged(f"two things are named {checked!r}")
    taken.add(checked)
    return checked


def _parametrize(module: nn.Module) -> None:
    """Give `module` the class and the properties that its parametrisations need."""
    held = module._modules.get("parametrizations")
    if not isinstance(held, nn.ModuleDict) or not held:
        raise Damaged("a parametrised module has no parametrisations")
    # The public way computes the original tensors from the weight; here they are known.
    parametrize._inject_new_class(module)
    for name, parametrization in held.items():
        if not isinstance(parametrization, parametrize.ParametrizationList):
            raise Damaged("a parametrisation is something else")
        parametrize._inject_property(module, identifier(name))
