"""A short file that changes the user's own model: containers in the place of convolutions.

It needs torch and the model, neither this package nor a copy of the model's code.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

from ..convs.spec import original_type
from ..errors import RewriteError
from ..rewriting import Result
from ..version import __version__
from .body import Body
from .changes import Change, find_changes
from .frozen import Piece, blocks, pieces
from .imports import Imports
from .modules import Constructors, table
from .signature import read_signature
from .sites import site_lines
from .text import docstring, finished, indented, is_name, one_line, written
from .tree import Tree

_PART = '''\
def cut(tensor: Tensor, groups: Sequence[int]) -> Sequence[Tensor]:
    """The rows of a tensor, shared out in proportion to `groups`; a number goes to each."""
    if not tensor.dim():
        return [tensor] * len(groups)
    return tensor.split([len(tensor) * n // sum(groups) for n in groups])


def part(module: nn.Module, k: int, groups: Sequence[int]) -> nn.Module:
    """The k-th part of a convolution or a BatchNorm, with its rows of the tensors."""
    new = copy.deepcopy(module)
    for name, tensor in module.named_parameters():
        rows = cut(tensor.detach(), groups)[k].clone()
        setattr(new, name, nn.Parameter(rows, tensor.requires_grad))
    for name, tensor in module.named_buffers():
        setattr(new, name, cut(tensor, groups)[k].clone())
    for name in ("in_channels", "out_channels", "num_features", "groups"):
        if hasattr(new, name):
            setattr(new, name, getattr(new, name) * groups[k] // sum(groups))
    return new
'''

_BRANCHES = '''\
class Branches(nn.Module):
    """A grouped convolution as several convolutions, each on a slice of the channels."""

    def __init__(
        self, conv: nn.Module, groups: Sequence[int], norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        # The model's own code may ask the convolution for its fields.
        vars(self).update({k: v for k, v in vars(conv).items() if not k.startswith("_")})
        count = range(len(groups))
        self.convs = nn.ModuleList([part(conv, k, groups) for k in count])
        self.norms = nn.ModuleList([part(norm, k, groups) for k in count if norm])
        self.widths = [
            c.weight.shape[0] if c.transposed else c.weight.shape[1] * c.groups for c in self.convs
        ]

    def forward(self, x: Tensor{more}) -> Tensor:
        parts, start = [], 0
        for k, (conv, width) in enumerate(zip(self.convs, self.widths)):
            y = conv(x[:, start : start + width]{given})
            parts.append(self.norms[k](y) if self.norms else y)
            start += width
        return torch.cat(parts, dim=1)
'''

# What a transposed convolution is called with beside the input: an output size.
_SIZE = ", *size: object, **named: object"

_TENSORS = """\

    @property
    def weight(self) -> Tensor:
        return torch.cat([conv.weight for conv in self.convs])

    @property
    def bias(self) -> Tensor | None:
        parts = [conv.bias for conv in self.convs]
        return None if parts[0] is None else torch.cat(parts)
"""

_SLICED = '''\
class Sliced(nn.Module):
    """A grouped convolution whose weight stays whole, as it is computed or shared: it is sliced."""

    def __init__(
        self, conv: nn.Module, groups: Sequence[int], norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        vars(self).update(vars(conv))  # its tensors, fields and hooks, under their names
        if norm is not None:
            self.norms = nn.ModuleList([part(norm, k, groups) for k in range(len(groups))])
'''

# Lines that end in `#s` are for convolutions that were split, those in `#f` for frozen layers,
# those in `#n` for modules with several names.
_REWRITE = '''\
# Where the parts of the tensors of a module lie.  #s
PLACES = {  #s
    **{path: (f"{path}.convs", n) for path, (kind, n, _) in SITES.items() if kind is Branches},  #s
    **{norm: (f"{path}.norms", n) for path, (_, n, norm) in SITES.items() if norm},  #s
}  #s
PLACES |= {  #n
    path: (f"{path}.convs", PLACES[first][1])  #n
    for path, first in NAMES.items()  #n
    if first in PLACES  #n
}  #n


def to_branches(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of the original model as one of the rewritten model."""
    new = {}
    for place, (source, names, rows, columns) in PICKED.items():  #f
        for name in names.split():  #f
            tensor = state[f"{source}.{name}"]  #f
            tensor = tensor[rows] if tensor.dim() else tensor.clone()  #f
            if columns and tensor.dim() > 1:  #f
                parts = zip(tensor.chunk(len(columns)), columns)  #f
                tensor = torch.cat([part[:, chosen] for part, chosen in parts])  #f
            new[f"{place}.{name}"] = tensor  #f
    for key, tensor in state.items():
        if key in GONE:  #f
            continue  #f
        path, _, name = key.rpartition(".")  #s
        if path in PLACES:  #s
            place, groups = PLACES[path]  #s
            parts = enumerate(cut(tensor, groups))  #s
            new |= {f"{place}.{k}.{name}": part.clone() for k, part in parts}  #s
            continue  #s
        new[key] = tensor
    return new


def from_branches(state: dict[str, Tensor], original: dict[str, Tensor]) -> dict[str, Tensor]:  #f
    """The way back; `original` brings the groups, and the numbers that a mask hides."""  #f
def from_branches(state: dict[str, Tensor]) -> dict[str, Tensor]:  #o
    """The way back."""  #o
    paths = {place: path for path, (place, _) in PLACES.items()}  #s
    new: dict[str, list[Tensor]] = {}
    for key, tensor in state.items():
        place, _, name = key.rpartition(".")
        if place in PICKED:  #f
            continue  #f
        place = place.rpartition(".")[0]  #s
        key = f"{paths[place]}.{name}" if place in paths else key  #s
        new.setdefault(key, []).append(tensor)
    whole = {key: torch.cat(parts) if parts[0].dim() else parts[0] for key, parts in new.items()}
    whole |= {key: original[key].clone() for key in GONE}  #f
    for place, (source, names, rows, columns) in PICKED.items():  #f
        for name in names.split():  #f
            old, tensor = whole[f"{source}.{name}"], state[f"{place}.{name}"]  #f
            if columns and tensor.dim() > 1:  #f
                at = torch.tensor(rows).chunk(len(columns))  #f
                for where, part, chosen in zip(at, tensor.chunk(len(columns)), columns):  #f
                    old[where[:, None], chosen] = part  #f
            else:  #f
                old[rows if old.dim() else ...] = tensor  #f
    return whole


def rewrite(model: nn.Module) -> nn.Module:
    """Change `model` itself, its numbers taken over; returns it."""
    state = model.state_dict()  #f
    for path, (make, norm) in FROZEN.items():  #f
        old = model.get_submodule(path)  #f
        like = next(old.parameters())  #f
        new = make().to(like).requires_grad_(like.requires_grad).train(old.training)  #f
        model.set_submodule(path, new)  #f
        if norm:  #f
            model.set_submodule(norm, nn.Identity())  #f
    for path, (kind, groups, norm) in SITES.items():  #s
        moved = [model.get_submodule(norm)] if norm else []  #s
        model.set_submodule(path, kind(model.get_submodule(path), groups, *moved))  #s
        if norm:  #s
            model.set_submodule(norm, nn.Identity())  #s
    for path, first in NAMES.items():  #n
        model.set_submodule(path, model.get_submodule(first))  #n
    model.load_state_dict(to_branches(state))  #f
'''


def model_file(result: Result) -> str:
    """The file for a result whose model has a class.

    Raises RewriteError where the rewrite did more than to put modules in the place of modules.
    """
    return _Writer(result, find_changes(result)).text()


class _Writer:
    def __init__(self, result: Result, changes: list[Change]) -> None:
        self._result = result
        self._changes = changes
        self._imports = Imports()
        self._kinds: dict[str, str] = {}
        self._constructors = Constructors(self._imports)

    def text(self) -> str:
        """The whole file."""
        frozen = [change for change in self._changes if change.kind == "frozen"]
        others = [change for change in self._changes if change.kind != "frozen"]
        kinds = {change.path: self._kind(change) for change in others}
        names = self._aliases()
        if any(names.get(path) == change.path for path in names for change in frozen):
            raise RewriteError("a frozen layer has several names")
        picked = {p.place: p for change in frozen for p in pieces(change, self._result)}
        made = [(change, blocks(change, self._constructors)) for change in frozen]
        marks = "".join(
            mark
            for mark, told in (("s", others or not frozen), ("f", frozen), ("o", not frozen))
            if told
        ) + ("n" if names else "")
        lines = [*self._docstring(bool(frozen)), "", *self._imports.lines()]
        lines += self._constructors.tables()
        if frozen:
            lines += self._picked(picked)
        for source in [*self._support(others or not frozen), *self._constructors.sources.values()]:
            lines += ["", "", *source.rstrip().split("\n")]
        lines += ["", ""]
        if frozen:
            lines += ["# Each frozen layer, and the BatchNorm that goes with it.", "FROZEN = {"]
            for change, tree in made:
                entry = f"(lambda: {written(tree)}, {_quoted(change.norm)})"
                lines.append(f"    {_quoted(change.path)}: {entry},")
            lines.append("}")
        if others or not frozen:
            lines += [
                "# Each convolution, the groups of its branches, the BatchNorm that goes along."
            ]
            lines += ["SITES = {"]
            for change in others:
                groups = change.groups
                same = f"[{groups[0]}] * {len(groups)}" if len({*groups}) == 1 else list(groups)
                entry = f"({kinds[change.path]}, {same}, {_quoted(change.norm)})"
                lines.append(f"    {_quoted(change.path)}: {entry},")
            lines.append("}")
        if names:
            lines += ["# Other names of the same modules.", f"NAMES = {names}"]
        lines += _kept(_REWRITE, marks)
        return finished([*lines, *indented(self._ties()), "    return model"])

    def _picked(self, picked: Mapping[str, Piece]) -> list[str]:
        """The tables of what a frozen layer holds."""
        rows = {
            place: (piece.source, " ".join(piece.names), piece.rows, piece.columns)
            for place, piece in picked.items()
        }
        told = "Layer: its source, the tensors, rows of them, columns for equal parts of the rows."
        sources = {piece.source for piece in picked.values()}
        own = self._result.program.model.state_dict()
        gone = [key for key in own if key.rpartition(".")[0] in sources]
        gone += sorted(self._result.state_dict_map.dropped & own.keys() - {*gone})
        return [*table("PICKED", told, rows), f"GONE = {gone!r}"]

    def _docstring(self, frozen: bool) -> list[str]:
        name = one_line(type(self._result.program.model).__name__)
        use = [
            "    model = rewrite(model)  # your own model, changed in place; the same function",
            "",
            "and state_dicts, of the original and of the rewritten model:",
            "",
            "    model.load_state_dict(to_branches(state))",
            f"    state = from_branches(model.state_dict(){', state' if frozen else ''})",
        ]
        title = (
            f"{name} with its grouped convolutions in branches. Written by groupfx {__version__}."
        )
        return docstring(title, use, site_lines(self._result))

    def _support(self, needed: object) -> list[str]:
        """Code that the table of sites needs."""
        if not needed:
            return []
        kinds = {change.kind for change in self._changes}
        sources = [_PART]
        more = any(_is_given_more(change) for change in self._changes)
        branches = _BRANCHES
        for place, text in (("{more}", _SIZE), ("{given}", ", *size, **named")):
            branches = branches.replace(place, text if more else "")
        sources.append(branches + (_TENSORS if self._result.program.way == "modules" else ""))
        if "sliced" in kinds:
            sources.append(_SLICED)
        return [*sources, *self._kinds]

    def _kind(self, change: Change) -> str:
        """The class of a container."""
        if change.kind == "split":
            return "Branches"
        module, graph = change.module(), change.graph()
        tree = Tree(module, self._constructors, self._imports, ())
        signature = read_signature(graph, self._imports)
        body = Body(graph, signature, self._imports, tree.source("")).lines()
        conv = self._result.program.model.get_submodule(change.path)
        name = original_type(conv).__name__
        head = f'(Sliced):\n    """{one_line(change.before)}."""\n\n    {signature.definition}\n'
        source = head + "\n".join(indented(body, 2))
        for text, known in self._kinds.items():
            if text.partition("(Sliced)")[2] == source.partition("(Sliced)")[2]:
                return known
        name = self._imports.free(f"Sliced{name}" if is_name(name) else "SlicedLayer")
        self._kinds[f"class {name}{source}"] = name
        return name

    def _aliases(self) -> dict[str, str]:
        """Second names of the modules that are changed."""
        model = self._result.program.model
        first = {id(model.get_submodule(change.path)): change.path for change in self._changes}
        return {
            path: first[id(module)]
            for path, module in model.named_modules(remove_duplicate=False)
            if first.get(id(module), path) != path
        }

    def _ties(self) -> list[str]:
        """Statements for tensors that several of the convolutions share."""
        model, lines = self._result.program.model, []
        owners: dict[int, tuple[str, str]] = {}
        for change in self._changes:
            if change.kind != "split":
                continue
            for name, tensor in model.get_submodule(change.path).named_parameters():
                path, own = owners.setdefault(id(tensor), (change.path, name))
                if path != change.path:
                    both = [f"model.get_submodule({_quoted(p)}).convs" for p in (change.path, path)]
                    lines.append(f"for conv, other in zip({', '.join(both)}):")
                    lines.append(f"    conv.{name} = other.{own}")
        return lines


def _kept(template: str, marks: str) -> list[str]:
    """The lines of a template that have no mark, or one of these."""
    pairs = [line.partition("  #") for line in template.rstrip().split("\n")]
    return [line for line, _, mark in pairs if not mark or mark in marks]


def _quoted(text: str | None) -> str:
    return written(ast.Constant(text))


def _is_given_more(change: Change) -> bool:
    """Whether a convolution is called with an output size beside the input."""
    calls = [n for n in change.fragment.working.graph.nodes if n.target in change.plan.convs]
    return any(len(node.args) + len(node.kwargs) > 1 for node in calls)
