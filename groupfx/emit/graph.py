"""A rewritten graph as a file with a class for the model, and one for each kind of repeated block.

This is for what has no class: graphs, exported programs, files. Every key of the state_dict has to
stay, so the tree of modules stays.
"""

from __future__ import annotations

import ast

import torch
from torch import fx

from ..errors import RewriteError
from ..rewriting import Result
from ..version import __version__
from .alike import repeated
from .body import Body
from .classes import Classes, Part, parsed_statement
from .imports import Imports
from .modules import Constructors
from .nesting import nested
from .signature import read_signature
from .sites import note_lines, site_lines
from .text import call, docstring, finished, indented, is_name, written
from .tree import Tree, unregistered


def graph_file(result: Result, model: fx.GraphModule) -> str:
    """The file for a result whose model is one graph.

    Raises RewriteError for what cannot be written.
    """
    return _Writer(result, model).text()


class _Writer:
    def __init__(self, result: Result, model: fx.GraphModule) -> None:
        self._result = result
        self._root = model
        self._imports = Imports()
        self._constructors = Constructors(self._imports)
        self._classes = Classes(self._imports)
        self._nested = nested(model)
        called = {str(node.target) for node in model.graph.nodes if node.op == "call_module"}
        chains = self._nested.chains
        self._inner = [path for path in self._nested.parts if path not in chains]
        self._tree = Tree(
            model,
            self._constructors,
            self._imports,
            called,
            inner=self._inner,
            chains=chains,
            blocks=self._nested.blocks,
            constants=unregistered(model, model.graph),
        )
        self._kinds = _class_names(model.graph)
        wish = type(result.program.model).__name__
        usable = is_name(wish) and wish not in ("GraphModule", "Parts", *self._imports.taken)
        self._name = self._imports.free(wish if usable else "Model")

    def text(self) -> str:
        """The whole file."""
        self._make_parts()
        signature = read_signature(self._nested.graph, self._imports)
        body = Body(self._nested.graph, signature, self._imports, self._tree.source(""))
        base = "nn.ModuleList" if self._tree.is_list("") else "nn.Module"
        own = [
            "",
            "",
            f"class {self._name}({base}):",
            "    def __init__(self) -> None:",
            *indented(map(written, self._init()), 2),
            *indented(self._settings(), 2),
            "",
            f"    {signature.definition}",
            *indented(body.lines(), 2),
        ]
        head = [*self._docstring(), "", *self._imports.lines()]
        return finished(
            [
                *head,
                *self._constructors.tables(),
                *self._constructors.lines(),
                *self._classes.lines,
                *own,
            ]
        )

    def _docstring(self) -> list[str]:
        load = [
            "The parameters are named as in the rewritten model, and take their numbers from it:",
            "",
            f"    model = {self._name}()",
            "    model.load_state_dict(result.model.state_dict())",
            "",
            "It is in train mode, as any new model.",
        ]
        notes = note_lines(self._result)
        title = f"{self._name}, rewritten. Written by groupfx {__version__}."
        return docstring(title, load, site_lines(self._result), *filter(None, [notes]))

    def _make_parts(self) -> None:
        """A class for each part, those that hold no other part first."""
        left = list(self._inner)
        while left:
            ready = [p for p in left if not any(other.startswith(f"{p}.") for other in left)]
            self._tree.made |= self._classes.add([self._part(path) for path in ready])
            left = [path for path in left if path not in ready]

    def _part(self, path: str) -> Part:
        graph = self._nested.parts[path]
        signature = read_signature(graph, self._imports)
        body = Body(graph, signature, self._imports, self._tree.source(path))
        forward = parsed_statement("\n".join([signature.definition, *indented(body.lines())]))
        return Part(path, self._wish(path), self._tree.assignments(path), forward)

    def _wish(self, path: str) -> str:
        """The class of the original, or a name made of the path."""
        if path in self._kinds:
            return self._kinds[path]
        last = path.rpartition(".")[2]
        title = last.title().replace("_", "")
        return "Block" if last.isdigit() or not is_name(title) else title

    def _init(self) -> list[ast.stmt]:
        """What `__init__` of the model does."""
        if self._tree.is_list(""):
            trees = [tree for _, tree in self._tree.children("")]
            return [ast.Expr(call("super().__init__", [repeated(trees)]))]
        return [parsed_statement("super().__init__()"), *self._tree.assignments("")]

    # What is said of tensors afterwards

    def _settings(self) -> list[str]:
        return [*self._shared(), *self._precision(), *self._frozen()]

    def _shared(self) -> list[str]:
        """Modules and tensors that lie at several places."""
        lines: list[str] = []
        modules: dict[int, str] = {}
        for path, module in self._root.named_modules(remove_duplicate=False):
            first = modules.setdefault(id(module), path)
            if first != path and modules.get(id(self._parent(path))) == path.rpartition(".")[0]:
                lines.append(f"self.set_submodule({path!r}, self.get_submodule({first!r}))")
        tensors: dict[int, str] = {}
        for key, parameter in self._root.named_parameters(remove_duplicate=False):
            first = tensors.setdefault(id(parameter), key)
            path, _, name = key.rpartition(".")
            if first != key and modules[id(self._root.get_submodule(path))] == path:
                owner = f"self.get_submodule({path!r})"
                lines.append(f"{owner}.{name} = self.get_parameter({first!r})")
        return lines

    def _parent(self, path: str) -> object:
        return self._root.get_submodule(path.rpartition(".")[0])

    def _precision(self) -> list[str]:
        tensors = self._root.state_dict().values()
        kinds = {t.dtype for t in tensors if t.is_floating_point() or t.is_complex()}
        if len(kinds) > 1:
            raise RewriteError(
                f"its tensors have several precisions ({', '.join(sorted(map(str, kinds)))}), and "
                "the file has one: convert the model with .to() first"
            )
        return [f"self.to({kind})" for kind in kinds if kind != torch.float32]

    def _frozen(self) -> list[str]:
        names = [
            name
            for name, parameter in self._root.named_parameters()
            if not parameter.requires_grad and parameter.is_floating_point()
        ]
        if not names:
            return []
        return [f"for name in {names!r}:", "    self.get_parameter(name).requires_grad_(False)"]


def _class_names(graph: fx.Graph) -> dict[str, str]:
    """The classes of the original's modules by their paths, as far as a trace wrote them down."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        for path, kind in dict(node.meta.get("nn_module_stack") or {}).values():
            name = str(getattr(kind, "__name__", kind)).rpartition(".")[2]
            if path and is_name(name):
                found[path] = name
    return found
