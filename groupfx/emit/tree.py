"""The module tree of a model as source: what `__init__` makes, and how `forward` reaches it.

A container whose children are numbered from 0 is an `nn.ModuleList`, where `self.layer1[0]` reads
well. Any other that has no class is a `Parts`: `self.layer1[0].conv1` needs no quotes, and unlike
an `nn.ModuleDict` it lets a child be called `keys` or `pop`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Mapping

from torch import Tensor, fx, nn

from ..convs.names import joined
from ..errors import RewriteError
from .alike import repeated
from .imports import Imports
from .modules import Constructors
from .templates import BLOCKS, PARTS
from .text import attribute, call, is_name, item, parsed
from .values import constant, value, zeros


class Tree:
    """The modules below `root`, of which graphs call those at the paths `called`.

    `made` are expressions for modules that are classes of the file; `chains` are paths of what is
    an `nn.Sequential`, `blocks` those of frozen layers, `constants` tensors that nobody registers.
    """

    def __init__(
        self,
        root: nn.Module,
        constructors: Constructors,
        imports: Imports,
        called: Collection[str],
        *,
        inner: Collection[str] = (),
        chains: Collection[str] = (),
        blocks: Collection[str] = (),
        constants: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._root = root
        self._imports = imports
        self._constructors = constructors
        self._called = called
        self._inner = inner
        self._chains = chains
        self._blocks = blocks
        self._constants = constants or {}
        self.made: dict[str, ast.expr] = {}

    # Making

    def assignments(self, path: str) -> list[ast.stmt]:
        """Statements that make what lies below the module at `path`."""
        statements: list[ast.stmt] = []
        for name, tree in (*self._tensors(path), *self.children(path)):
            if is_name(name):
                statements.append(ast.Assign([ast.Attribute(ast.Name("self"), name)], tree))
            else:
                arguments = [parsed("self"), ast.Constant(name), tree]
                statements.append(ast.Expr(call("setattr", arguments)))
        return statements

    def children(self, path: str) -> list[tuple[str, ast.expr]]:
        """The children of the module at `path`, and how each is made.

        One that is never called and holds nothing only keeps a place, in a list.
        """
        return [
            (name, self._module(joined(path, name), child))
            for name, child in self._root.get_submodule(path)._modules.items()
            if child is not None and (self.is_list(path) or self._counts(joined(path, name), child))
        ]

    def _counts(self, path: str, module: nn.Module) -> bool:
        inner = {joined(path, name) for name, _ in module.named_modules()}
        return bool([*module.parameters(), *module.buffers()]) or not inner.isdisjoint(self._called)

    def _module(self, path: str, module: nn.Module) -> ast.expr:
        if path in self.made:
            return self.made[path]
        if path in self._called and path not in (*self._chains, *self._blocks):
            return self._constructors.tree(module, path)
        children = self.children(path)
        if path in self._chains:
            again = repeated([tree for _, tree in children])
            items = [ast.Starred(again)] if isinstance(again, ast.ListComp) else list(again.elts)
            return call("nn.Sequential", items)
        if self.is_list(path):
            return call("nn.ModuleList", [repeated([tree for _, tree in children])])
        name = self._constructors.own("Parts", PARTS)
        if path in self._blocks:
            name = self._constructors.own("Blocks", BLOCKS)
        return call(name, (), dict((*self._tensors(path), *children)))

    def is_list(self, path: str) -> bool:
        """Whether a container is written as an `nn.ModuleList`."""
        module = self._root.get_submodule(path)
        names = [name for name, child in module._modules.items() if child is not None]
        held = any(t is not None for t in (*module._parameters.values(), *module._buffers.values()))
        numbered = names == [str(k) for k in range(len(names))] != []
        return numbered and not held and path not in self._inner

    def _tensors(self, path: str) -> list[tuple[str, ast.expr]]:
        """The tensors of a container itself; numbers only where no state_dict brings them."""
        module = self._root.get_submodule(path)
        found: list[tuple[str, ast.expr]] = []
        for name, parameter in module._parameters.items():
            if parameter is not None:
                whole = parameter.is_floating_point() or parameter.is_complex()
                options = {} if whole else {"requires_grad": ast.Constant(False)}
                found.append((name, call("nn.Parameter", [zeros(parameter)], options)))
        fixed = {
            key.rpartition(".")[2]: tensor
            for key, tensor in self._constants.items()
            if key.rpartition(".")[0] == path
        }
        for name, buffer in (*module._buffers.items(), *fixed.items()):
            if buffer is None:
                continue
            if name in module._non_persistent_buffers_set or name in fixed:
                numbers = constant(buffer, joined(path, name), self._imports)
                options = {"persistent": ast.Constant(False)}
                found.append((name, call("nn.Buffer", [numbers], options)))
            else:
                found.append((name, call("nn.Buffer", [zeros(buffer)])))
        return found

    # Reaching

    def source(self, path: str) -> Callable[[fx.Node], ast.expr]:
        """How nodes of the graph of the part at `path` name modules and tensors."""

        def reach(node: fx.Node) -> ast.expr:
            tree: ast.expr = ast.Name("self")
            here = path
            for name in str(node.target).split("."):
                listed = self.is_list(here)
                tree = item(tree, ast.Constant(int(name))) if listed else attribute(tree, name)
                here = joined(here, name)
            return tree if node.op == "call_module" else self._attribute(node, here, tree)

        return reach

    def _attribute(self, node: fx.Node, path: str, tree: ast.expr) -> ast.expr:
        parent, _, name = path.rpartition(".")
        held = getattr(self._root.get_submodule(parent), name, None)
        if isinstance(held, fx.GraphModule):
            raise RewriteError(
                f"{node.name} is a graph inside the graph ({type(held).__name__}), which cannot "
                "be written as Python"
            )
        plain = held is not None and not isinstance(held, Tensor | nn.Module)
        return value(held, self._imports) if plain else tree


def unregistered(root: nn.Module, graph: fx.Graph) -> dict[str, Tensor]:
    """Tensors that the graph reads and that no module registers."""
    found = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            held = vars(root.get_submodule(path)).get(name)
            if isinstance(held, Tensor):
                found[str(node.target)] = held
    return found
