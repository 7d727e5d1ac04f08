"""A short file that changes the user's own model: containers in the place of convolutions.

It needs torch and the model, neither this package nor a copy of the model's code.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from ..convs.spec import original_type
from ..errors import RewriteError
from ..rewriting import Result
from ..version import __version__
from .body import Body
from .changes import Change, find_changes
from .frozen import blocks, pieces
from .imports import Imports
from .modules import Constructors, table
from .signature import read_signature
from .sites import site_lines
from .templates import BRANCHES, PART, REWRITE, SIZE, SLICED, TENSORS
from .text import docstring, finished, indented, is_name, one_line, written
from .tree import Tree


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
        names = self._aliases()
        if any(change.path in names.values() for change in frozen):
            raise RewriteError("a frozen layer has several names")
        split = bool(others) or not frozen
        tables = [*self._frozen(frozen), *(self._sites(others) if split else [])]
        if names:
            tables += ["# Other names of the same modules.", f"NAMES = {names}"]
        marks = {"s": split, "f": bool(frozen), "o": not frozen, "n": bool(names)}
        lines = [*self._docstring(bool(frozen)), "", *self._imports.lines()]
        lines += [*self._constructors.tables(), *(self._picked(frozen) if frozen else [])]
        for source in self._support() if split else []:
            lines += ["", "", *source.rstrip().split("\n")]
        lines += [*self._constructors.lines(), "", "", *tables]
        lines += _kept(REWRITE, "".join(mark for mark, kept in marks.items() if kept))
        return finished([*lines, *indented(self._ties()), "    return model"])

    def _frozen(self, changes: Sequence[Change]) -> list[str]:
        lines = []
        for change in changes:
            made = written(blocks(change, self._constructors))
            lines.append(f"    {_quoted(change.path)}: (lambda: {made}, {_quoted(change.norm)}),")
        told = "# Each frozen layer, and the BatchNorm that goes along."
        return [told, "FROZEN = {", *lines, "}"] if lines else []

    def _sites(self, changes: Sequence[Change]) -> list[str]:
        lines = []
        for change in changes:
            groups = change.groups
            same = f"[{groups[0]}] * {len(groups)}" if len({*groups}) == 1 else list(groups)
            entry = f"({self._kind(change)}, {same}, {_quoted(change.norm)})"
            lines.append(f"    {_quoted(change.path)}: {entry},")
        told = "# Each convolution, the groups of its branches, the BatchNorm that goes along."
        return [told, "SITES = {", *lines, "}"]

    def _picked(self, changes: Sequence[Change]) -> list[str]:
        """The tables of what frozen layers hold."""
        picked = [piece for change in changes for piece in pieces(change, self._result)]
        rows = {
            piece.place: (piece.source, " ".join(piece.names), piece.rows, piece.columns)
            for piece in picked
        }
        told = "Layer: its source, the tensors, rows of them, columns for equal parts of the rows."
        sources = {piece.source for piece in picked}
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

    def _support(self) -> list[str]:
        """Code that the table of sites needs."""
        kinds = {change.kind for change in self._changes}
        sources = [PART]
        more = any(_is_given_more(change) for change in self._changes)
        branches = BRANCHES
        for place, text in (("{more}", SIZE), ("{given}", ", *size, **named")):
            branches = branches.replace(place, text if more else "")
        sources.append(branches + (TENSORS if self._result.program.way == "modules" else ""))
        if "sliced" in kinds:
            sources.append(SLICED)
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
