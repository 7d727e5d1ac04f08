"""A model that was opened for rewriting: what it was, what is being made of it, and how they match.

A `Program` holds two sides. The *reference* shares its tensors with the caller's model and is
never changed. The *working* side is a copy, and passes rewrite it. Each side is one graph, or, in
way `modules`, one small graph (a *fragment*) for each convolution module.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import fx, nn

from ..convs.names import joined
from ..convs.spec import ConvSpec
from ..running.inputs import ExampleInputs

Way = Literal["trace", "modules", "export"]
WAYS: tuple[Way, ...] = ("trace", "modules", "export")

# In a fragment the module itself lies here; what a rewrite makes of it lies at the root.
FRAGMENT_MODULE = "conv"


@dataclass(frozen=True)
class Shapes:
    """Shapes of one call's input and output, the batch included."""

    input: tuple[int, ...]
    output: tuple[int, ...]


@dataclass
class Fragment:
    """A graph of the original, its working copy, and which nodes compute the same value.

    `path` is where the graph stands in the model: `""` for a whole model, else a module's path.
    `calls_of` are the numbers of the calls of a function that it stands for while that module runs
    (`label` is what they are called, `place` where in the source), None where it is all of the
    model or of the module.
    `is_inner`: an operator of another graph runs it, such as a branch of `torch.cond`.
    `standing` maps the name of a reference node to the working node that stands for it; a node
    whose value is no longer computed anywhere is not in it. `earlier` is the fragment over the same
    working graph that this one goes on from.
    """

    path: str
    reference: fx.GraphModule
    working: fx.GraphModule
    shapes: Shapes | None = None
    calls: int = 1
    is_module: bool = False
    calls_of: ConvSpec | None = None
    label: str = ""
    place: str = ""
    changed: bool = False
    is_inner: bool = False
    earlier: "Fragment | None" = None
    standing: dict[str, fx.Node] = field(init=False)
    _names: dict[fx.Node, list[str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.standing = {node.name: node for node in self.working.graph.nodes}
        self._names = {node: [name] for name, node in self.standing.items()}

    def following(self, root: nn.Module) -> "Fragment":
        """One that goes on from here: what it has become is now the original, found in `root`."""
        reference = root.get_submodule(self.path)
        assert isinstance(reference, fx.GraphModule)
        return Fragment(self.path, reference, self.working, is_inner=self.is_inner, earlier=self)

    @property
    def is_part(self) -> bool:
        """Whether it stands for a part of a model that is not a graph."""
        return self.is_module or self.calls_of is not None

    @property
    def order(self) -> dict[fx.Node, int]:
        """Position of each node of the working graph."""
        return {node: position for position, node in enumerate(self.working.graph.nodes)}

    def stand_in(self, old: fx.Node, new: fx.Node) -> None:
        """Record that `new` computes what `old` computed."""
        names = self._names.pop(old, [])
        self._names.setdefault(new, []).extend(names)
        self.standing.update(dict.fromkeys(names, new))
        if self.earlier is not None:
            self.earlier.stand_in(old, new)

    def forget(self, node: fx.Node) -> None:
        """Record that nothing computes what `node` computed any more."""
        for name in self._names.pop(node, []):
            del self.standing[name]
        if self.earlier is not None:
            self.earlier.forget(node)

    def stands_for(self, node: fx.Node) -> str | None:
        """Name of the first reference node that the working `node` stands for."""
        return next(iter(self._names.get(node, [])), None)

    def home(self, path: str) -> str:
        """Where the parts of the module at `path` go: its own path, or the root of a fragment."""
        return "" if self.is_module and path == FRAGMENT_MODULE else path

    def full_name(self, path: str) -> str:
        """Name, in the whole model, of what lies at `path` in this fragment."""
        return self.label or joined(self.path, self.home(path))

    def site_name(self, path: str) -> str:
        """As `full_name`, of a module that was being called when a node was recorded.

        Of what runs inside an operator, that is known by its path in the whole model.
        """
        return path if self.is_inner else self.full_name(path)

    def working_key(self, key: str) -> str:
        """Key in the result's state_dict of a tensor of the working graph."""
        return joined(self.path, key)

    def original_key(self, key: str) -> str:
        """Key in the original's state_dict of a tensor of the reference graph."""
        if self.is_module and key.startswith(f"{FRAGMENT_MODULE}."):
            key = key.removeprefix(f"{FRAGMENT_MODULE}.")
        return joined(self.path, key)


@dataclass(frozen=True)
class Unreachable:
    """A convolution that no graph shows: why, and how often it ran."""

    reason: str
    calls: int = 1


@dataclass
class Program:
    """A model opened in one of three ways.

    `model` is the caller's, `result` the working model: a `GraphModule`, or in way `modules` a
    copy of the caller's model into which changed fragments are put. `notes` say why this way was
    taken and what a trace or an export fixed. `unreachable` gives, for paths of grouped convolution
    modules that cannot be opened and for other convolutions that ran, the reason; `uncalled` are
    modules that forward does not call.
    `dynamic` is False where an export fixed the sizes of the inputs. `macs` are those of the
    original for one sample, None where it was not run. `written` are the parameters that forward
    writes to. `small` are inputs of the smallest size that the model was seen to take; None where
    none was tried.
    """

    way: Way
    model: nn.Module
    result: nn.Module
    fragments: list[Fragment]
    inputs: ExampleInputs | None
    notes: tuple[str, ...] = ()
    unreachable: Mapping[str, Unreachable] = field(default_factory=dict)
    uncalled: tuple[str, ...] = ()
    dynamic: bool = True
    macs: int | None = None
    written: tuple[str, ...] = ()
    small: ExampleInputs | None = None

    @property
    def whole(self) -> Fragment:
        """The graph of the whole model, in the ways `trace` and `export`: what others lie in."""
        return self.fragments[0]
