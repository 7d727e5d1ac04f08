"""The module tree of a model as source: what `__init__` makes, and how `forward` reaches it.

A container whose children are numbered from 0 is an `nn.ModuleList`, where `self.layer1[0]` reads
well. Any other that has no class is a `Parts`: `self.layer1[0].conv1` needs no quotes, and unlike
an `nn.ModuleDict` it lets a child be called `keys` or `pop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, fx, nn

from ..convs.names import joined
from . import plain
from .code import Reach
from .layers import Layers
from .text import attribute, is_name
from .values import called, listed, numbers_of, source


def is_list(module: object) -> bool:
    """Whether a container is written as an `nn.ModuleList`: it holds 0, 1, 2 and nothing else."""
    if not isinstance(module, nn.Module):
        return False
    names = [name for name, child in module._modules.items() if child is not None]
    held = any(t is not None for t in (*module._parameters.values(), *module._buffers.values()))
    return names == [str(k) for k in range(len(names))] != [] and not held


class Tree:
    """The modules below `root`, which `graph` calls.

    `made` are the calls of classes of the file, by the paths of what they make.
    """

    def __init__(self, root: nn.Module, layers: Layers, graph: fx.Graph) -> None:
        self._root = root
        self._layers = layers
        self._called = {path for node in graph.nodes for path in _called(node, root)}
        self._read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
        self.made: dict[str, str] = {}

    def children(self, path: str) -> dict[str, str]:
        """The tensors and the modules in the module at `path`, and how each is made.

        One that is never called and holds nothing only keeps a place, in a list.
        """
        module = self._root.get_submodule(path)
        found = dict(self._tensors(path, module))
        for name, child in module._modules.items():
            inner = joined(path, name)
            if child is not None and (is_list(module) or self._counts(inner, child)):
                found[name] = self._module(inner, child)
        return found

    def _counts(self, path: str, module: nn.Module) -> bool:
        inner = {joined(path, name) for name, _ in module.named_modules()}
        read = any(target.startswith(f"{path}.") for target in self._read)
        held = bool([*module.parameters(), *module.buffers()])
        return held or read or not inner.isdisjoint(self._called)

    def _module(self, path: str, module: nn.Module) -> str:
        if path in self.made:
            return self.made[path]
        if path in self._called:
            return self._layers.call(module, path)
        children = self.children(path)
        if is_list(module):
            return f"nn.ModuleList({listed(list(children.values()))})"
        return called(self._layers.need(plain.Parts), (), children)

    def _tensors(self, path: str, module: nn.Module) -> Iterator[tuple[str, str]]:
        """The tensors of a container itself; numbers only where no state_dict brings them."""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                whole = parameter.is_floating_point() or parameter.is_complex()
                yield name, f"nn.Parameter({_zeros(parameter)}{'' if whole else ', False'})"
        # A graph also reads tensors that no module registers.
        others = {n: t for n, t in vars(module).items() if joined(path, n) in self._read}
        for name, buffer in {**module._buffers, **others}.items():
            if not isinstance(buffer, Tensor):
                continue
            if name in others or name in module._non_persistent_buffers_set:
                place = joined(path, name)
                numbers = self._layers.numbers(numbers_of(buffer, place), place)
                made = f"torch.tensor({numbers}, dtype={buffer.dtype})"
                yield name, f"nn.Buffer({made}, persistent=False)"
            else:
                yield name, f"nn.Buffer({_zeros(buffer)})"

    def reach(self, home: str = "") -> Reach:
        """How nodes in the class of the module at `home` name modules and tensors."""
        return reach(self._root.get_submodule(home), is_list)


def reach(root: nn.Module, is_numbered: Callable[[object], bool]) -> Reach:
    """How code of `root` names what is in it: entries of `is_numbered` by their number."""

    def reached(node: fx.Node) -> str:
        text = "self"
        held: object = root
        for name in str(node.target).split("."):
            numbered = is_numbered(held) and name.isdigit()
            text = f"{text}[{name}]" if numbered else attribute(text, name)
            held = getattr(held, name, None)
        return text if isinstance(held, Tensor | nn.Module | None) else source(held)

    return reached


def _zeros(tensor: Tensor) -> str:
    """`torch.zeros` of the shape of `tensor`, whose numbers a state_dict brings."""
    sizes = [str(int(size)) for size in tensor.shape] or ["()"]
    # One floating-point dtype holds for the whole model, and is said once.
    plain = tensor.is_floating_point() or tensor.is_complex()
    return called("torch.zeros", sizes, {} if plain else {"dtype": str(tensor.dtype)})


def _called(node: fx.Node, root: nn.Module) -> Iterator[str]:
    """The paths of the modules that a node calls; one that reads a list calls what is in it."""
    if node.op == "call_module":
        yield str(node.target)
    elif node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        found = root.get_submodule(path)._modules.get(name)
        yield from (f"{node.target}.{k}" for k in (found._modules if found is not None else ()))


def assignments(children: Mapping[str, str]) -> list[str]:
    """Statements of `__init__` that make `children`."""
    return [
        f"self.{name} = {made}" if is_name(name) else f"setattr(self, {name!r}, {made})"
        for name, made in children.items()
    ]
