"""What `__init__` says after the modules are made: tensors, ties, precision, freezing, modes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..convs.names import joined
from .constants import constant, zeros
from .imports import Imports
from .layout import Doc, call, keyword, render
from .literals import attribute, is_name, quoted
from .tree import Tree

Place = tuple[str, str]


class Settings:
    """Statements about the tensors of one model; `constants` are those that nobody registers."""

    def __init__(self, tree: Tree, imports: Imports, constants: Mapping[str, Tensor]) -> None:
        self._tree = tree
        self._imports = imports
        self._constants = constants
        self._ties = _ties(tree.root)
        self._uniform = len(_precisions(tree.root)) < 2

    def statements(self, indent: int) -> list[str]:
        """All of them, in the order in which they have to be."""
        return [
            *self._tensors(indent),
            *self._tied(indent),
            *self._precisions_of("", self._tree.root, indent),
            *self._memory_format(indent),
            *self._frozen("", self._tree.root, indent),
            *self._modes("", self._tree.root, True, indent),
        ]

    # Tensors

    def _tensors(self, indent: int) -> list[str]:
        lines = []
        for path, holder in self._tree.holders():
            for name, parameter in holder._parameters.items():
                if parameter is not None and (path, name) not in self._ties:
                    lines += self._parameter(path, name, parameter, indent)
            for name, buffer in holder._buffers.items():
                if buffer is not None and (path, name) not in self._ties:
                    persistent = name not in holder._non_persistent_buffers_set
                    lines += self._buffer(path, name, buffer, persistent, indent)
        for key, tensor in self._constants.items():
            path, _, name = key.rpartition(".")
            lines += self._buffer(path, name, tensor, False, indent)
        return lines

    def _parameter(self, path: str, name: str, tensor: nn.Parameter, indent: int) -> list[str]:
        self._imports.module("nn")
        made = [zeros(tensor, self._imports, precise=not self._uniform)]
        if not _has_gradient(tensor):
            # Integers cannot have one, so that it has to be said at once.
            made.append(keyword("requires_grad", Doc("False")))
        value = call("nn.Parameter", made)
        owner = self._tree.source(path)
        if is_name(name):
            return render(value, indent, f"{owner}.{name} = ")
        return render(call(f"{owner}.register_parameter", [Doc(quoted(name)), value]), indent)

    def _buffer(
        self, path: str, name: str, tensor: Tensor, persistent: bool, indent: int
    ) -> list[str]:
        if persistent:
            value = zeros(tensor, self._imports, precise=not self._uniform)
        else:
            value = constant(tensor, joined(path, name), self._imports)
        arguments = [Doc(quoted(name)), value]
        if not persistent:
            arguments.append(keyword("persistent", Doc("False")))
        return render(call(f"{self._tree.source(path)}.register_buffer", arguments), indent)

    # Ties

    def _tied(self, indent: int) -> list[str]:
        lines: list[str] = []
        left = dict(self._ties)
        for (ours, name), (theirs, other), places in self._tied_lists():
            lines.append(
                f"{' ' * indent}for branch, owner in zip({self._tree.source(ours)}, "
                f"{self._tree.source(theirs)}):"
            )
            lines.append(f"{' ' * (indent + 4)}branch.{name} = owner.{other}")
            for place in places:
                del left[place]
        for (path, name), (first, other) in left.items():
            value = Doc(attribute(self._tree.source(first), other))
            lines += self._set(path, name, value, indent)
        return lines

    def _set(self, path: str, name: str, value: Doc, indent: int) -> list[str]:
        owner = self._tree.source(path)
        module = self._tree.root.get_submodule(path)
        if self._tree.is_leaf(path) or (name in module._parameters and is_name(name)):
            return render(value, indent, f"{attribute(owner, name)} = ")
        if name in module._parameters:
            return render(call(f"{owner}.register_parameter", [Doc(quoted(name)), value]), indent)
        arguments = [Doc(quoted(name)), value]
        if name in module._non_persistent_buffers_set:
            arguments.append(keyword("persistent", Doc("False")))
        return render(call(f"{owner}.register_buffer", arguments), indent)

    def _tied_lists(self) -> Iterator[tuple[Place, Place, list[Place]]]:
        """Lists whose branches are tied one by one to those of another."""
        groups: dict[tuple[Place, Place], dict[str, Place]] = defaultdict(dict)
        for (path, name), (first, other) in self._ties.items():
            ours, _, place = path.rpartition(".")
            theirs, _, source = first.rpartition(".")
            if place == source and place.isdigit() and is_name(name) and is_name(other):
                groups[(ours, name), (theirs, other)][place] = (path, name)
        for (mine, yours), places in groups.items():
            holders = [self._tree.root.get_submodule(path) for path in (mine[0], yours[0])]
            whole = all(
                self._tree.is_list(holder) and list(holder._modules) == list(places)
                for holder in holders
            )
            if whole and not any(self._tree.is_leaf(path) for path in (mine[0], yours[0])):
                yield mine, yours, list(places.values())

    # Precision and memory format

    def _precisions_of(self, path: str, module: nn.Module, indent: int) -> list[str]:
        kinds = _precisions(module)
        if kinds <= {torch.float32}:
            return []
        self._imports.module("torch")
        if len(kinds) == 1:
            return [f"{' ' * indent}{self._tree.source(path)}.to({next(iter(kinds))})"]
        lines: list[str] = []
        if self._tree.is_leaf(path):
            lines += self._own_precisions(path, module, indent)
        for name, child in _children(module):
            lines += self._precisions_of(joined(path, name), child, indent)
        return lines

    def _own_precisions(self, path: str, module: nn.Module, indent: int) -> list[str]:
        lines = []
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or not _is_floating(tensor) or tensor.dtype == torch.float32:
                continue
            own = attribute(self._tree.source(path), name)
            lines.append(f"{' ' * indent}{own}.data = {own}.to({tensor.dtype})")
        return lines

    def _memory_format(self, indent: int) -> list[str]:
        lines = []
        for dims, name in ((4, "channels_last"), (5, "channels_last_3d")):
            weights = [p for p in self._tree.root.parameters() if p.dim() == dims]
            layout = getattr(torch, name)
            if not all(weight.is_contiguous(memory_format=layout) for weight in weights):
                continue
            if not all(weight.is_contiguous() for weight in weights):
                self._imports.module("torch")
                lines.append(f"{' ' * indent}self.to(memory_format=torch.{name})")
        return lines

    # Gradients and modes

    def _frozen(self, path: str, module: nn.Module, indent: int) -> list[str]:
        parameters = [p for p in module.parameters() if _has_gradient(p)]
        frozen = [not p.requires_grad for p in parameters]
        if not any(frozen):
            return []
        source = self._tree.source(path)
        if all(frozen):
            return [f"{' ' * indent}{source}.requires_grad_(False)"]
        if self._is_plain_list(path, module):
            names = {_frozen_names(child) for _, child in _children(module)}
            if len(names) == 1:
                lines = [f"{' ' * indent}for branch in {source}:"]
                inner = " " * (indent + 4)
                return lines + [
                    f"{inner}{attribute('branch', name)}.requires_grad_(False)"
                    for name in next(iter(names))
                ]
        lines = [
            f"{' ' * indent}{attribute(source, name)}.requires_grad_(False)"
            for name in _frozen_names(module)
        ]
        for name, child in _children(module):
            lines += self._frozen(joined(path, name), child, indent)
        return lines

    def _is_plain_list(self, path: str, module: nn.Module) -> bool:
        """Whether it is written as a list of leaves without children."""
        flat = not any(child._modules for _, child in _children(module))
        return flat and self._tree.is_list(module) and not self._tree.is_leaf(path)

    def _modes(
        self, path: str, module: nn.Module, training: bool, indent: int, inside: bool = False
    ) -> list[str]:
        """`eval()` and `train()` where what is called is not in the mode of its container.

        `inside` says that the module is a part of a leaf.
        """
        leaf = inside or self._tree.is_leaf(path)
        if leaf and not inside and id(module) not in self._tree.called:
            return []
        flag = module.training if leaf or path == "" else self._common_mode(path, module, training)
        lines = []
        if flag != training:
            mode = "train" if flag else "eval"
            lines.append(f"{' ' * indent}{self._tree.source(path)}.{mode}()")
        for name, child in _children(module):
            lines += self._modes(joined(path, name), child, flag, indent, leaf)
        return lines

    def _common_mode(self, path: str, module: nn.Module, training: bool) -> bool:
        """The mode of what is called in a container, which computes nothing itself."""
        flags = {leaf.training for leaf in self._tree.called_below(path, module)}
        return next(iter(flags)) if len(flags) == 1 else training


def _ties(root: nn.Module) -> dict[Place, Place]:
    """Where a tensor lies a second time -> where it lies first."""
    first: dict[int, Place] = {}
    ties = {}
    for path, module in root.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            place = first.setdefault(id(tensor), (path, name))
            if place != (path, name):
                ties[path, name] = place
    return ties


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _is_floating(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


_has_gradient = _is_floating


def _precisions(module: nn.Module) -> set[torch.dtype]:
    tensors = [*module.parameters(), *module.buffers()]
    return {tensor.dtype for tensor in tensors if _is_floating(tensor)}


def _frozen_names(module: nn.Module) -> tuple[str, ...]:
    return tuple(
        name
        for name, parameter in module._parameters.items()
        if parameter is not None and _has_gradient(parameter) and not parameter.requires_grad
    )
