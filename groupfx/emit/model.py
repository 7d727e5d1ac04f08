"""A rewritten graph as a file with one class: the model, as it would have been written by hand."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import torch
from torch import fx, nn

from ..rewriting import Result
from ..version import __version__
from .forward import Forward, Remark
from .imports import RESERVED, Imports
from .layout import Doc, bracket, call, finished, render
from .literals import is_name, one_line
from .settings import Settings
from .signature import Signature, read_signature
from .tree import PARTS_SOURCE, Tree


def graph_file(result: Result, model: fx.GraphModule) -> str:
    """The file for a result whose model is one graph."""
    name = class_name(type(result.program.model).__name__)
    imports = Imports([name])
    imports.module("nn")
    signature = read_signature(model.graph, result.program.model.forward, imports)
    original = result.program.model if result.program.way == "export" else None
    tree = Tree(model, called_modules(model), imports, original)
    body = _class(result, model, name, tree, imports, signature)
    parts = ["", "", *PARTS_SOURCE.rstrip().split("\n")] if tree.uses_parts else []
    head = [*_docstring(result, name), "", *imports.lines()]
    return finished([*head, *parts, "", "", *body])


def class_name(name: str) -> str:
    """`name` if a class of the file can have it."""
    usable = is_name(name) and name not in RESERVED and name != fx.GraphModule.__name__
    return name if usable else "Model"


def called_modules(model: fx.GraphModule) -> frozenset[int]:
    """Ids of the modules that the graph calls."""
    calls = [node for node in model.graph.nodes if node.op == "call_module"]
    return frozenset(id(model.get_submodule(str(node.target))) for node in calls)


def site_remarks(result: Result, graph: fx.Graph) -> list[Remark]:
    """Where each rewritten site begins and ends, its name and what it was."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    remarks = []
    for site in result.report.sites:
        ends = [site.fragment.standing.get(name or "") for name in (site.start, site.end)]
        start, end = (node if node in order else None for node in ends)
        if end is not None:
            first = _first_between(start, end, order)
            remarks.append(Remark(first, end, f"{site.name}: {site.before}"))
    return remarks


def _first_between(start: fx.Node | None, end: fx.Node, order: Mapping[fx.Node, int]) -> fx.Node:
    """The first call on the way from `start` to `end`, both nodes of one graph."""
    if start is None:
        return end
    found, pending = {end}, [end]
    while pending:
        for source in pending.pop().all_input_nodes:
            if order[source] > order[start] and source not in found:
                found.add(source)
                pending.append(source)
    return min((node for node in found if node.op != "get_attr"), key=order.__getitem__)


def definition(signature: Signature) -> list[str]:
    """The line, or lines, of `def forward`."""
    parameters = [Doc("self"), *(Doc(text) for text in signature.parameters)]
    returns = "" if signature.returns is None else f" -> {signature.returns}"
    return render(bracket("def forward", parameters), 4, after=f"{returns}:")


def _class(
    result: Result,
    model: fx.GraphModule,
    name: str,
    tree: Tree,
    imports: Imports,
    signature: Signature,
) -> list[str]:
    forward = Forward(model.graph, tree, imports, signature, site_remarks(result, model.graph))
    body = forward.lines()
    settings = Settings(tree, imports, _constants(model)).statements(8)
    base, made = _modules(tree, model)
    return [
        f"class {name}({base}):",
        "    def __init__(self) -> None:",
        *made,
        *tree.changes(8),
        *settings,
        "",
        *definition(signature),
        *body,
    ]


def _modules(tree: Tree, model: nn.Module) -> tuple[str, list[str]]:
    """Base class, and the statements that make the modules."""
    if not tree.is_list(model):
        return "nn.Module", [" " * 8 + "super().__init__()", *tree.statements(8)]
    items = tree.expressions()
    if items is None:
        return "nn.ModuleList", [" " * 8 + "super().__init__()", *tree.statements(8)]
    return "nn.ModuleList", render(call("super().__init__", items), 8)


def _constants(model: fx.GraphModule) -> Mapping[str, torch.Tensor]:
    """Tensors that the graph reads and that no module registers."""
    found = {}
    for node in model.graph.nodes:
        if node.op != "get_attr":
            continue
        path, _, name = str(node.target).rpartition(".")
        holder = model.get_submodule(path)
        value = vars(holder).get(name)
        if isinstance(value, torch.Tensor):
            found[str(node.target)] = value
    return found


def _docstring(result: Result, name: str) -> list[str]:
    count = len(result.report.sites)
    sites = "1 rewritten convolution" if count == 1 else f"{count} rewritten convolutions"
    notes = [f"Note: {one_line(note)}." for note in result.report.notes]
    return [
        f'"""{name}, with {sites}. Written by groupfx {__version__}.',
        "",
        "The parameters are named as in the rewritten model, and take their numbers from it:",
        "",
        f"    model = {name}()",
        "    model.load_state_dict(result.model.state_dict())",
        *([""] if notes else []),
        *(line for note in notes for line in textwrap.wrap(note, 98)),
        '"""',
    ]
