"""A pass over single operations of a graph: each gets another spelling of the same function.

Such passes put a model into the form that a toolchain reads: functions become modules, methods
become functions. What they do to an operation is proved between its inputs and its value, on the
graph as it was when the pass began.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from ..convs.calls import ConvCall, Unreadable, attribute
from ..convs.names import joined
from ..nn import TrainingMode
from ..tracing.places import LINE, line_of, operation_of, owner_of
from ..tracing.program import Fragment
from ..tracing.varying import VaryingAxes
from ..verify import Rounding, SiteVerdict
from .pass_ import Pass, Rewritten, Skip
from .site import Site
from .store import Store

_NONE = Rounding()


@dataclass(frozen=True)
class Spelling:
    """What is to stand for an operation.

    Everything between `inputs` and the operation's value is replaced. `emit` adds nodes in front of
    the operation and returns the one with its value; None where the operation has no value and
    goes, such as an assert. `after` says in a few words what stands there then. `same_piece`: of a
    site that was rewritten before, it is the piece that it was, and the site's plan still holds.
    `fixes_sizes`: it is the same for images of the example's size alone. `rounding`: what may be
    rounded otherwise. `unread`: names of tensors that go with it, which the graph never reads.
    """

    after: str
    inputs: tuple[fx.Node, ...]
    emit: Callable[[], fx.Node | None]
    same_piece: bool = False
    fixes_sizes: bool = False
    rounding: Rounding = _NONE
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Respelled:
    """An operation that a pass gave another spelling.

    `name` is the path of the module in whose forward it stands, with a number where several do,
    `line` the file and line of the user's code. `before` and `after` are the operations, in words.
    `verdict` is None until it was checked, and for what has no value.
    """

    name: str
    line: str | None
    pass_name: str
    before: str
    after: str
    fragment: Fragment = field(repr=False, compare=False)
    starts: tuple[str, ...] = field(repr=False)
    end: str = field(repr=False)
    valued: bool = True
    fixes_sizes: bool = False
    rounding: Rounding = field(default=_NONE, repr=False)
    unread: tuple[str, ...] = field(default=(), repr=False)
    verdict: SiteVerdict | None = None
    replaces: ClassVar[bool] = True

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in the JSON report."""
        return {
            "name": self.name,
            "line": self.line,
            "pass": self.pass_name,
            "before": self.before,
            "after": self.after,
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
        }


@dataclass(frozen=True)
class Place:
    """An operation in the working graph, and the editing that a pass does there."""

    node: fx.Node
    fragment: Fragment
    store: Store
    axes: VaryingAxes

    @property
    def root(self) -> fx.GraphModule:
        """The module that owns the graph."""
        return self.fragment.working

    @property
    def graph(self) -> fx.Graph:
        """The graph that is being rewritten."""
        return self.root.graph

    @property
    def operation(self) -> str:
        """What it does, in words."""
        return operation_of(self.node, self.root)

    @property
    def module(self) -> nn.Module | None:
        """The module that the node calls, None for a function or a method."""
        called = self.node.op == "call_module"
        return self.root.get_submodule(str(self.node.target)) if called else None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of its value on the example."""
        return shape_of(self.node)

    def calls(self, *targets: object) -> bool:
        """Whether it is a call of one of these functions, or of a method of that name."""
        return self.node.op in ("call_function", "call_method") and self.node.target in targets

    def arguments(self, *names: str) -> dict[str, Any]:
        """The arguments of a call by name, the tensor of a method first; no defaults."""
        return dict(zip(names, self.node.args, strict=False)) | dict(self.node.kwargs)

    def parameter(self, node: fx.Node) -> Tensor | None:
        """The tensor that `node` reads from the model, None if it is another kind of node."""
        if node.op != "get_attr":
            return None
        found = attribute(self.root, str(node.target))
        return found if isinstance(found, Tensor) else None

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function, in front of the operation."""
        return self._made(self.graph.call_function(function, args, kwargs))

    def mode(self, value: object) -> TrainingMode | None:
        """What gives an argument that asks for the mode when it runs; None if it is another."""
        if not isinstance(value, fx.Node) or value.op != "call_module":
            return None
        # Of the reference: a layer may have taken its place, and another call still ask it.
        module: Any = self.fragment.reference
        for name in str(value.target).split("."):
            module = getattr(module, name, None)
        return module if isinstance(module, TrainingMode) else None

    def asks_for_the_mode(self, value: object) -> bool:
        """Whether an argument is true in train mode, and false in eval mode."""
        mode = self.mode(value)
        return mode is not None and (mode.evaluated, mode.trained) == (False, True)

    def dropped(self, share: object, training: object) -> float | None:
        """The share that a dropout drops in train mode, and none else; None if it does otherwise.

        `share` or `training` is what asks for the mode.
        """
        given = self.mode(share)
        if given is not None and training is True and given.evaluated == 0:
            return given.trained
        plain = isinstance(share, (int, float)) and self.asks_for_the_mode(training)
        return float(share) if plain else None  # type: ignore[arg-type]

    @property
    def training(self) -> bool:
        """The mode that what stands for the operation is to be in: that which the operation asks.

        Of a part that was put in a mode of its own, it is that of the part.
        """
        modes = [mode for mode in map(self.mode, self.node.all_input_nodes) if mode is not None]
        return modes[0].training if modes else self.root.training

    def call_module(self, module: nn.Module, *args: fx.Node, stem: str | None = None) -> fx.Node:
        """A call of a new module without tensors, which takes a free name beside the operation."""
        module.train(self.training)
        path = self._free(stem or type(module).__name__.lower())
        self.root.add_submodule(path, module)
        return self._made(self.graph.call_module(path, args))

    def copy(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """The operation once more, with other arguments."""
        return self._made(self.graph.create_node(self.node.op, self.node.target, args, kwargs))

    def call_part(self, path: str, *args: fx.Node) -> fx.Node:
        """A call of a module that is there."""
        return self._made(self.graph.call_module(path, args))

    def is_restructured(self, path: str) -> bool:
        """Whether another call of the module at `path` put a container in its place."""
        return (id(self.fragment), path) in self.store.placed

    def restructure(self, path: str, container: nn.Module, names: Mapping[str, str]) -> None:
        """Put `container` in place of the module at `path`, once, and tell where tensors went.

        `names` gives for each tensor of the module its name in the container; others are gone.
        """
        if self.is_restructured(path):
            return
        self.store.placed.add((id(self.fragment), path))
        entries = self.store.entries
        for place in self.store.paths_of(self.root.get_submodule(path)):
            held = self.root.get_submodule(path).state_dict(prefix=f"{place}.")
            for key in held:
                entry, new = entries.pop(key, None), names.get(key.removeprefix(f"{place}."))
                if entry is not None and new is not None:
                    entries[joined(place, new)] = entry
            _put(self.root, place, container)

    def drop_module(self, module: nn.Module) -> None:
        """Take a module without tensors out of the tree, unless something calls it still."""
        called = (str(n.target) for n in self.graph.nodes if n.op == "call_module")
        if module.state_dict() or any(self.root.get_submodule(path) is module for path in called):
            return
        for path in self.store.paths_of(module):
            _put(self.root, path, None)

    def drop_modes(self) -> None:
        """Let the operation, which is about to go, ask for no mode any more."""
        for node in self.node.all_input_nodes:
            if self.mode(node) is None:
                continue
            self.node.replace_input_with(node, None)  # type: ignore[arg-type]
            if not node.users:
                self.fragment.forget(node)
                self.graph.erase_node(node)

    def drop_unread(self, path: str) -> None:
        """Erase the nodes that read tensors of the module at `path` for nothing."""
        for node in list(self.graph.nodes):
            read = node.op == "get_attr" and str(node.target).rpartition(".")[0] == path
            if read and not node.users:
                self.fragment.forget(node)
                self.graph.erase_node(node)

    def _made(self, node: fx.Node) -> fx.Node:
        for key in (LINE, "nn_module_stack"):
            if key in self.node.meta:
                node.meta[key] = self.node.meta[key]
        return node

    def _free(self, stem: str) -> str:
        """A path beside the operation at which nothing is.

        What it came from may be gone, or be a layer now, as an exported norm with its activation.
        """
        owner, number = owner_of(self.node), 1
        while owner and not _holds_others(self.root, owner):
            owner = owner.rpartition(".")[0]
        path = joined(owner, stem)
        while _is_taken(self.root, path):
            number += 1
            path = joined(owner, f"{stem}_{number}")
        return path


def _put(root: nn.Module, path: str, module: nn.Module | None) -> None:
    parent, _, name = path.rpartition(".")
    held = root.get_submodule(parent)._modules
    if module is None:
        held.pop(name, None)
    else:  # assigned, not added: a name keeps its place, and parameters their order
        held[name] = module


def _holds_others(root: nn.Module, path: str) -> bool:
    """Whether a module is there that is no layer of torch's."""
    if not _is_taken(root, path):
        return False
    module = root.get_submodule(path)
    return type(module) in (nn.Module, nn.Sequential) or not fx.Tracer().is_leaf_module(module, "")


def _is_taken(root: nn.Module, path: str) -> bool:
    value: Any = root
    for name in path.split("."):
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of a node's value on the example; None where it is no tensor."""
    shape = node.meta.get("shape")
    if shape is None and isinstance(node.meta.get("val"), Tensor):
        # A size that torch.export left open is a symbol; its hint is the size of the example.
        sizes = node.meta["val"].shape
        return tuple(n if isinstance(n, int) else int(n.node.hint) for n in sizes)
    return None if shape is None else tuple(shape)


def example_of(node: fx.Node) -> tuple[int, ...] | Tensor | None:
    """The shape of what goes into a region; a tensor like it, where it holds no real numbers."""
    shape, dtype = shape_of(node), node.meta.get("dtype")
    if shape is None or dtype is None or dtype.is_floating_point:
        return shape
    return (torch.arange(math.prod(shape)) % 2).reshape(shape).to(dtype)


def reads_size(node: fx.Node) -> bool:
    """Whether it is a size of its input, or all of them."""
    if node.target is getattr:
        return node.args[1:2] == ("shape",)
    return node.target in ("size", torch.ops.aten.sym_size.int)


def has_node(value: Any) -> bool:
    """Whether an argument is, or holds, a value of the graph."""
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return bool(found)


class OperationPass(Pass[Any]):
    """A pass that looks at each operation of a traced graph, convolutions or not."""

    backwards: ClassVar[bool] = False
    """Whether the last operation of the graph is looked at first."""

    @abstractmethod
    def spell(self, place: Place) -> Spelling | Skip | None:
        """What is to stand there, why it stays; None where the pass has nothing to do with it."""

    def calls(self, root: fx.GraphModule) -> Mapping[fx.Node, ConvCall | Unreadable]:
        """It has no sites."""
        return {}

    def match(self, site: Site) -> Skip:
        """It has no sites."""
        return Skip(f"{self.pass_name()} looks at operations")

    def rewrite(self, site: Site, description: Any) -> Rewritten:
        """It has no sites."""
        raise NotImplementedError(f"{self.pass_name()} has no sites")


def _other_inputs(end: fx.Node, inputs: Collection[fx.Node], *, fixes_sizes: bool) -> list[fx.Node]:
    """Tensors besides `inputs` that the value of `end` is made of, such as one with its size.

    With `fixes_sizes`, what is read for its size alone is one, though it be made of `inputs`: the
    layers in between are no part of what is written otherwise.
    """
    between: set[fx.Node] = set()
    pending = list(inputs)
    while pending:
        fresh = pending.pop().users.keys() - between
        between |= fresh
        pending += fresh
    found: list[fx.Node] = []
    seen = {*inputs, end}
    waiting = list(end.all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node in seen or node.op == "get_attr":
            continue
        seen.add(node)
        if shape_of(node) is not None and node not in between:
            found.append(node)
        elif fixes_sizes and reads_size(node):
            read = (each for each in node.all_input_nodes if each.op != "get_attr")
            found += [each for each in read if each not in seen]
            seen.update(node.all_input_nodes)
        else:
            waiting += node.all_input_nodes
    return found


def respelled_at(place: Place, pass_name: str, spelling: Spelling, number: int) -> Respelled:
    """The record of what is about to be done at `place`."""
    name = owner_of(place.node) or "the model"
    others = _other_inputs(place.node, spelling.inputs, fixes_sizes=spelling.fixes_sizes)
    inputs = (*spelling.inputs, *others)
    starts = [place.fragment.stands_for(node) for node in inputs]
    end = place.fragment.stands_for(place.node)
    assert end is not None
    assert None not in starts
    return Respelled(
        name=name if number == 1 else f"{name}#{number}",
        line=line_of(place.node),
        pass_name=pass_name,
        before=place.operation,
        after=spelling.after,
        fragment=place.fragment,
        starts=tuple(str(start) for start in starts),
        end=end,
        fixes_sizes=spelling.fixes_sizes,
        rounding=spelling.rounding,
        unread=spelling.unread,
    )
