"""Convolutions swapped in the user's own model, as a file with a class for each kind of them."""

from __future__ import annotations

import re

from torch import fx, nn

from ..errors import RewriteError
from ..nn import HookedWeight
from ..rewriting import Result
from ..state.map import Rows
from ..tracing.program import Fragment
from ..version import __version__
from .constants import constant
from .forward import Forward
from .imports import Imports
from .layout import Doc, Loop, bracket, call, entry, finished, render
from .literals import attribute, is_name, one_line, quoted
from .model import called_modules, definition
from .signature import read_signature
from .tree import Tree

_FIELDS_SOURCE = '''\
def keep_fields(new: nn.Module, conv: nn.Module) -> None:
    """The model's own code may ask a convolution for its fields: `groups`, `stride`, ..."""
    for name, value in vars(conv).items():
        if not name.startswith("_") and not isinstance(value, Tensor):
            setattr(new, name, value)
'''

_SPLIT_SOURCE = '''\
class SplitConv(nn.ModuleList):
    """Convolutions side by side in place of a grouped one, each with its rows of the weights."""

    def __init__(self, conv: nn.Module, branches: Iterable[nn.Module]) -> None:
        super().__init__(branches)
        keep_fields(self, conv)
        for name, tensor in conv.named_parameters():
            for branch, rows in zip(self, tensor.detach().chunk(len(self))):
                setattr(branch, name, nn.Parameter(rows.clone(), tensor.requires_grad))
        self.train(conv.training)

    @property
    def weight(self) -> Tensor:
        return torch.cat([branch.weight for branch in self])

    @property
    def bias(self) -> Tensor | None:
        parts = [branch.bias for branch in self]
        return None if parts[0] is None else torch.cat(parts)
'''

_REWRITE_SOURCE = '''\
def rewrite(model: nn.Module) -> nn.Module:
    """Swap the convolutions of `model` itself for split ones, which take its weights over."""
    for path, split in SITES.items():
        model.set_submodule(path, split(model.get_submodule(path)))
'''

_NOTHING_SOURCE = '''\
def rewrite(model: nn.Module) -> nn.Module:
    """Return `model` as it is: no convolution in it was rewritten."""
'''

_OWN = ("SplitConv", "keep_fields", "rewrite", "SITES")
_CONSTANT = re.compile(r"_tensor_constant\d+\Z")


def swaps_file(result: Result) -> str:
    """The file for a result whose model is the user's, with other convolutions in it."""
    return _Writer(result).text()


class _Writer:
    def __init__(self, result: Result) -> None:
        self._result = result
        self._fragments = [f for f in result.program.fragments if f.changed]
        self._imports = Imports(_OWN)
        self._imports.module("nn")
        self._classes: dict[str, str] = {}
        self._uses_split = False

    def text(self) -> str:
        kinds = {fragment.path: self._class_of(fragment) for fragment in self._fragments}
        classes = [
            line
            for source, name in self._classes.items()
            for line in ("", "", f"class {name}{source}".rstrip())
        ]
        support = self._support()
        swap = _REWRITE_SOURCE if kinds else _NOTHING_SOURCE
        table = ["", "", *_table("SITES", kinds)] if kinds else []
        ending = [*self._second_names(), *self._ties(), "    return model"]
        head = [*self._docstring(), "", *self._imports.lines()]
        lines = [*head, *support, *classes, *table, "", "", *swap.rstrip().split("\n"), *ending]
        return finished("\n".join(lines).split("\n"))

    def _docstring(self) -> list[str]:
        name = type(self._result.program.model).__name__
        count = len(self._fragments)
        what = "1 convolution" if count == 1 else f"{count} convolutions"
        return [
            f'"""{one_line(name)}: {what} to swap. Written by groupfx {__version__}.',
            "",
            "    model = rewrite(model)",
            "",
            "changes the original model in place. Its weights are taken over.",
            '"""',
        ]

    def _support(self) -> list[str]:
        """Code that the classes share."""
        lines: list[str] = []
        if self._classes:
            self._imports.member("torch", "Tensor")
            lines += ["", "", *_FIELDS_SOURCE.rstrip().split("\n")]
        if self._uses_split:
            self._imports.module("torch")
            self._imports.member("collections.abc", "Iterable")
            lines += ["", "", *_SPLIT_SOURCE.rstrip().split("\n")]
        return lines

    # Classes

    def _class_of(self, fragment: Fragment) -> str:
        """Name of the class for a fragment; equal ones share it."""
        working = fragment.working
        tree = Tree(working, called_modules(working), self._imports)
        try:
            signature = read_signature(working.graph, working.forward, self._imports)
            forward = Forward(working.graph, tree, self._imports, signature)
            body = ["", *definition(signature), *forward.lines()]
            made = self._split(fragment, tree) or self._whole(fragment, tree)
        except RewriteError as error:
            raise RewriteError(f"{fragment.path}: {error}") from error
        before = [s.before for s in self._result.report.sites if s.fragment is fragment]
        shown = "; ".join(dict.fromkeys(before))
        source = "\n".join([*made[:1], f'    """{one_line(shown)}."""', "", *made[1:], *body])
        if source not in self._classes:
            self._classes[source] = self._name(type(working).__name__)
        return self._classes[source]

    def _name(self, kind: str) -> str:
        base = f"Split{kind.removeprefix('Parametrized')}"
        base = base if is_name(base) else "SplitLayer"
        taken = {*self._classes.values(), *self._imports.names, *_OWN}
        names = [base, *(f"{base}_{count}" for count in range(2, len(taken) + 3))]
        return next(name for name in names if name not in taken)

    def _split(self, fragment: Fragment, tree: Tree) -> list[str] | None:
        """Base and constructor, where the fragment is nothing but branches."""
        if not tree.is_list(fragment.working):
            return None
        items = tree.expressions()
        if items is None or tree.changes(8):
            raise RewriteError("its branches are not plain convolutions")
        self._require_rows(fragment)
        self._uses_split = True
        # Beside another argument a generator needs brackets of its own.
        branches = [bracket("", [item]) if isinstance(item, Loop) else item for item in items]
        return [
            "(SplitConv):",
            "    def __init__(self, conv: nn.Module) -> None:",
            *render(call("super().__init__", [Doc("conv"), *branches]), 8),
        ]

    def _require_rows(self, fragment: Fragment) -> None:
        """The branches must be what `chunk` gives."""
        entries = self._result.state_dict_map.entries
        children = list(fragment.working.named_children())
        for position, (name, branch) in enumerate(children):
            for own, tensor in branch.named_parameters():
                rows = len(tensor)
                expected = Rows(f"{fragment.path}.{own}", position * rows, (position + 1) * rows)
                if entries.get(f"{fragment.path}.{name}.{own}") != expected:
                    raise RewriteError(f"branch {name} does not hold rows {expected}")
            if list(branch.buffers()):
                raise RewriteError(f"branch {name} holds buffers")

    def _whole(self, fragment: Fragment, tree: Tree) -> list[str]:
        """Base and constructor, where tensors stay whole and are taken from the original."""
        working = fragment.working
        lines = [
            "(nn.Module):",
            "    def __init__(self, conv: nn.Module) -> None:",
            "        super().__init__()",
            "        keep_fields(self, conv)",
        ]
        for name, parameter in working._parameters.items():
            if parameter is not None:
                self._require_whole(fragment, name)
                lines += _taken(name)
        for name, buffer in working._buffers.items():
            if buffer is None:
                continue
            value = Doc(attribute("conv", name))
            persistent = name not in working._non_persistent_buffers_set
            if _CONSTANT.match(name):
                value = constant(buffer, name, self._imports)
            arguments = [Doc(quoted(name)), value, *([] if persistent else [_NOT_PERSISTENT])]
            lines += render(call("self.register_buffer", arguments), 8)
        for name, child in working._modules.items():
            lines += [] if child is None else self._child(name, child)
        lines.append("        self.train(conv.training)")
        return [*lines, *self._computed(working)]

    def _child(self, name: str, child: nn.Module) -> list[str]:
        if isinstance(child, HookedWeight):
            source = self._imports.callable(HookedWeight)
            return [f"        self.{name} = {source}.from_module(conv)"]
        return _taken(name)

    def _require_whole(self, fragment: Fragment, name: str) -> None:
        key = f"{fragment.path}.{name}"
        if self._result.state_dict_map.entries.get(key) != Rows(key):
            raise RewriteError(f"{name} is not the tensor of that name of the original")

    def _computed(self, working: fx.GraphModule) -> list[str]:
        """Properties for weights that a parametrisation computes."""
        lines: list[str] = []
        for name, _ in getattr(working, "parametrizations", nn.ModuleDict()).named_children():
            if is_name(name):
                tensor = self._imports.member("torch", "Tensor")
                lines += ["", "    @property", f"    def {name}(self) -> {tensor}:"]
                lines.append(f"        return self.parametrizations.{name}()")
        return lines

    # Names and ties

    def _second_names(self) -> list[str]:
        """Statements for modules that the model holds under several names."""
        paths = {id(fragment.working): fragment.path for fragment in self._fragments}
        lines = []
        for path, module in self._result.model.named_modules(remove_duplicate=False):
            first = paths.get(id(module), path)
            if first != path:
                source = call("model.get_submodule", [Doc(quoted(first))])
                lines += render(call("model.set_submodule", [Doc(quoted(path)), source]), 4)
        return lines

    def _ties(self) -> list[str]:
        """Statements for branches that share their tensors with those of another convolution."""
        first: dict[int, tuple[str, str]] = {}
        tied: dict[tuple[str, str, str, str], list[str]] = {}
        for fragment in self._fragments:
            for place, branch in fragment.working.named_children():
                for name, parameter in branch._parameters.items():
                    if parameter is None or not place.isdigit():
                        continue
                    path = f"{fragment.path}.{place}"
                    owner, own = first.setdefault(id(parameter), (path, name))
                    if owner != path:
                        key = (fragment.path, name, owner.rpartition(".")[0], own)
                        tied.setdefault(key, []).append(place)
        lines = []
        for (path, name, owner, own), places in tied.items():
            if len(set(places)) != len(list(self._result.model.get_submodule(path).children())):
                raise RewriteError(f"{path} and {owner} share some of their branches only")
            sources = [call("model.get_submodule", [Doc(quoted(p))]) for p in (path, owner)]
            lines += render(call("zip", sources), 4, "for branch, owner in ", ":")
            lines.append(f"        branch.{name} = owner.{own}")
        return lines


_NOT_PERSISTENT = Doc("persistent=False")


def _taken(name: str) -> list[str]:
    source = Doc(attribute("conv", name))
    if is_name(name):
        return render(source, 8, f"self.{name} = ")
    return render(call("setattr", [Doc("self"), Doc(quoted(name)), source]), 8)


def _table(name: str, kinds: dict[str, str]) -> list[str]:
    """One entry a line."""
    lines = [f"{name} = {{"]
    for path, kind in kinds.items():
        item = entry(Doc(quoted(path)), Doc(kind))
        lines += render(item, 4, after=",")
    return [*lines, "}"]
