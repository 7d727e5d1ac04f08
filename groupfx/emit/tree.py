"""The module tree of a model as source: what `__init__` builds, and how `forward` reaches it.

Every key of the state_dict has to stay, so the tree stays. A container whose children are numbered
from 0 is an `nn.ModuleList`, where `self.layer1[0]` reads well. Any other is a `Parts`, a class of
five lines that takes its children as keyword arguments: `self.layer1[0].conv1` needs no quotes, and
unlike an `nn.ModuleDict` it lets a child be called `keys` or `pop`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import groupby

from torch import fx, nn

from ..convs.names import joined
from ..errors import RewriteError
from .constants import constant
from .constructors import Constructors, Written
from .imports import Imports
from .layout import Doc, bracket, call, entry, keyword, loop, render
from .likeness import holds_numbers, tensors
from .literals import attribute, is_name, literal, quoted

PARTS = "Parts"
PARTS_SOURCE = '''\
class Parts(nn.Module):
    """Holds modules under their names."""

    def __init__(self, /, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
'''

# Containers that hold and never compute: they are written as what their children need.
_CONTAINERS = (nn.Module, nn.ModuleList, nn.ModuleDict, nn.Sequential)


class Tree:
    """The modules below `root`, of which the graph calls those with an id in `called`.

    An export leaves only the tensors of a module. Where those of `original` are the same, it is
    what holds them: one line, and no list of tensors.
    """

    def __init__(
        self,
        root: nn.Module,
        called: frozenset[int],
        imports: Imports,
        original: nn.Module | None = None,
    ) -> None:
        self.root = root
        self.imports = imports
        self.uses_parts = False
        self.called = called
        self._originals = {} if original is None else dict(original.named_modules())
        self._constructors = Constructors()
        self._known: dict[int, Written] = {}
        self._first: dict[int, str] = {}
        self._leaves: dict[int, bool] = {}
        self._sources: dict[str, str] = {"": "self"}
        for path, module in self._walk("", root):
            self._first.setdefault(id(module), path)

    # Reaching

    def source(self, path: str) -> str:
        """Source that reaches the module or tensor at `path`: `self.layer1[0].conv1`."""
        if path not in self._sources:
            parent, _, name = path.rpartition(".")
            self._sources[path] = self._member(self.source(parent), parent, name)
        return self._sources[path]

    def _member(self, owner: str, parent: str, name: str) -> str:
        holder = self.root.get_submodule(parent)
        written = not self.is_leaf(parent) and self.is_list(holder)
        inside = self.is_leaf(parent) and isinstance(holder, nn.ModuleList | nn.Sequential)
        if (written or inside) and name.isdigit() and name in holder._modules:
            return f"{owner}[{name}]"
        return attribute(owner, name)

    def is_list(self, module: nn.Module) -> bool:
        """Whether a container is written as an `nn.ModuleList`."""
        names = [name for name, child in module._modules.items() if child is not None]
        held = [*module._parameters, *module._buffers]
        taken = any(hasattr(nn.ModuleList, name) for name in held)
        return bool(names) and names == [str(k) for k in range(len(names))] and not taken

    def is_leaf(self, path: str) -> bool:
        """Whether the module at `path` is made by its own constructor."""
        if path == "":
            return False
        module = self.root.get_submodule(path)
        if id(module) not in self._leaves:
            self._leaves[id(module)] = self._decide(module, path)
        return self._leaves[id(module)]

    def _decide(self, module: nn.Module, path: str) -> bool:
        parent = path.rpartition(".")[0]
        if self.is_leaf(parent) or id(module) in self.called:
            return True
        container = type(module) in _CONTAINERS or isinstance(module, fx.GraphModule)
        if container and self._stand_in(path, module) is None:
            return False
        if any(id(inner) in self.called for inner in module.modules()):
            return False
        try:
            self._written(path, module)
        except RewriteError:
            # It is never called: its tensors under their names are all that counts.
            return False
        return True

    def _written(self, path: str, module: nn.Module) -> Written:
        if id(module) not in self._known:
            found = self._stand_in(path, module) or module
            self._known[id(module)] = self._constructors.written(found, path)
        return self._known[id(module)]

    def _stand_in(self, path: str, module: nn.Module) -> nn.Module | None:
        """The module of the original that held the tensors of the container `module`."""
        original = self._originals.get(path)
        if original is None or type(module) is not nn.Module or module._modules:
            return None
        library = type(original).__module__.startswith("torch.nn.") and not original._modules
        grouped = getattr(original, "groups", 1) != 1
        same = tensors(original) == tensors(module)
        held = bool(module._parameters or module._buffers)
        return original if library and same and held and not grouped else None

    def children(self, module: nn.Module) -> list[tuple[str, nn.Module]]:
        """The children of a container that are written.

        One that is never called and holds no numbers only keeps a place, in a list.
        """
        found = [(name, child) for name, child in module._modules.items() if child is not None]
        if self.is_list(module):
            return found
        return [(name, child) for name, child in found if not self._is_idle(child)]

    def _is_idle(self, module: nn.Module) -> bool:
        called = any(id(inner) in self.called for inner in module.modules())
        held = any(inner._parameters or inner._buffers for inner in module.modules())
        return not (called or held or any(map(holds_numbers, module.modules())))

    # Walking

    def _walk(self, path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """All modules outside of leaves, the leaves included, second names included."""
        yield path, module
        if self.is_leaf(path):
            return
        if path and self._first.get(id(module), path) != path:
            return
        for name, child in self.children(module):
            yield from self._walk(joined(path, name), child)

    def holders(self) -> Iterator[tuple[str, nn.Module]]:
        """Containers under their first names."""
        for path, module in self._walk("", self.root):
            if not self.is_leaf(path) and not self._is_alias(path, module):
                yield path, module

    def leaves(self) -> Iterator[tuple[str, nn.Module]]:
        """Leaves under their first names."""
        for path, module in self._walk("", self.root):
            if self.is_leaf(path) and not self._is_alias(path, module):
                yield path, module

    def called_below(self, path: str, module: nn.Module) -> list[nn.Module]:
        """The leaves in the container `module` at `path` that the graph calls."""
        return [inner for _, inner in self._walk(path, module) if id(inner) in self.called]

    def _is_alias(self, path: str, module: nn.Module) -> bool:
        return self._first[id(module)] != path

    def _has_alias(self, path: str, module: nn.Module) -> bool:
        return any(self._is_alias(inner, m) for inner, m in self._walk(path, module))

    # Building

    def statements(self, indent: int) -> list[str]:
        """Statements that make every module below the root, which itself exists."""
        lines = []
        for name, child in self.children(self.root):
            lines += self._add("", self.root, name, child, indent)
        return lines

    def expressions(self) -> list[Doc] | None:
        """The root's children as an argument of `nn.ModuleList`; None where names are shared."""
        if self._has_alias("", self.root):
            return None
        return self._items("", self.root)

    def changes(self, indent: int) -> list[str]:
        """Statements for what was changed on leaves after they were made."""
        lines: list[str] = []
        for path, holder in self.holders():
            own = {
                name: self._changes("branch", joined(path, name), child)
                for name, child in self.children(holder)
                if self.is_leaf(joined(path, name))
            }
            same = own and len(set(map(tuple, own.values()))) == 1 and len(own) > 1
            if same and self.is_list(holder) and len(own) == len(holder._modules):
                if any(own.values()):
                    lines.append(f"{' ' * indent}for branch in {self.source(path)}:")
                    lines += [" " * (indent + 4) + line for line in own["0"]]
                continue
            for name, child in self.children(holder):
                inner = joined(path, name)
                if name in own:
                    found = self._changes(self.source(inner), inner, child)
                    lines += [" " * indent + line for line in found]
        return lines

    def _changes(self, owner: str, path: str, module: nn.Module) -> list[str]:
        written = self._written(path, module)
        lines = [
            f"{attribute(owner, name)} = {literal(value, self.imports).flat}"
            for name, value in written.fields.items()
        ]
        for place, numbers in written.numbers.items():
            target = functools.reduce(attribute, place.split("."), owner)
            value = constant(numbers, f"{path}.{place}", self.imports)
            lines += render(value, 0, f"{target} = ")
        for name in written.buffers:
            lines += [
                f"kept = {attribute(owner, name)}.detach()",
                f"del {attribute(owner, name)}"
                if is_name(name)
                else f"delattr({owner}, {quoted(name)})",
                f"{owner}.register_buffer({quoted(name)}, kept)",
            ]
        return lines

    def _add(
        self, parent: str, holder: nn.Module, name: str, child: nn.Module, indent: int
    ) -> list[str]:
        """Statements that put `child` under `name` into `holder`."""
        path = joined(parent, name)
        if self._is_alias(path, child):
            return self._put(parent, holder, name, Doc(self.source(self._first[id(child)])), indent)
        if not self._has_alias(path, child):
            return self._put(parent, holder, name, self._expression(path, child), indent)
        lines = self._put(parent, holder, name, self._container(child, ()), indent)
        for inner, grandchild in self.children(child):
            lines += self._add(path, child, inner, grandchild, indent)
        return lines

    def _put(self, parent: str, holder: nn.Module, name: str, value: Doc, indent: int) -> list[str]:
        owner = self.source(parent)
        if self.is_list(holder):
            return render(call(f"{owner}.append", [value]), indent)
        if is_name(name):
            return render(value, indent, f"{owner}.{name} = ")
        return render(call(f"{owner}.add_module", [Doc(quoted(name)), value]), indent)

    def _expression(self, path: str, module: nn.Module) -> Doc:
        if self.is_leaf(path):
            made = self._written(path, module).made
            try:
                return made.doc(self.imports)
            except RewriteError as error:
                raise RewriteError(f"{path} cannot be written as Python: {error}") from error
        return self._container(module, self._items(path, module))

    def _items(self, path: str, module: nn.Module) -> list[Doc]:
        """The children of a container as arguments of its constructor."""
        children = self.children(module)
        docs = [self._expression(joined(path, name), child) for name, child in children]
        if self.is_list(module):
            return list_argument(docs)
        return named_items([name for name, _ in children], docs)

    def _container(self, module: nn.Module, items: Sequence[Doc]) -> Doc:
        self.imports.module("nn")
        if not self.children(module):
            return call("nn.Module")
        if self.is_list(module):
            return call("nn.ModuleList", items)
        self.uses_parts = True
        return call(PARTS, items)


def list_argument(docs: Sequence[Doc]) -> list[Doc]:
    """The argument of an `nn.ModuleList` of these; equal ones are written once, in a loop."""
    runs = [list(run) for _, run in groupby(docs, key=lambda doc: doc.flat)]
    if len(runs) == 1 and len(docs) > 1:
        return [_repeated(runs[0])]
    items: list[Doc] = []
    for run in runs:
        items += run if len(run) < 3 else [bracket("*", [_repeated(run)])]
    return [bracket("", items, "[")]


def _repeated(run: Sequence[Doc]) -> Doc:
    return loop(run[0], "_", call("range", [Doc(str(len(run)))]))


def named_items(names: Sequence[str], docs: Sequence[Doc]) -> list[Doc]:
    """`name=value`, or one `**{...}` where names are no identifiers."""
    if all(is_name(name) for name in names):
        return [keyword(name, doc) for name, doc in zip(names, docs, strict=True)]
    pairs = [entry(Doc(quoted(name)), doc) for name, doc in zip(names, docs, strict=True)]
    return [bracket("**", pairs, "{")]
