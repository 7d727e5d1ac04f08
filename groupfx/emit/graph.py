"""A rewritten graph as a file with a class for the model, and one for each kind of repeated block.

This is for what has no class: graphs, exported programs, files. Every key of the state_dict has to
stay, so the tree of modules stays.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from ..errors import RewriteError
from ..rewriting import Result
from . import plain
from .code import Classes, code_of
from .layers import Layers
from .nesting import homes, modules_around, take_out_parts
from .sites import collapsed
from .text import finished, free, is_name, told
from .tree import Tree, assignments, is_list
from .values import called, listed


def graph_file(result: Result, model: fx.GraphModule, reason: str = "") -> str:
    """The file for a result whose model is one graph; `reason` says why the model's own is no help.

    Raises RewriteError for what cannot be written.
    """
    layers = Layers()
    classes = Classes(layers)
    kinds = {p: kind for n in model.graph.nodes for p, kind in modules_around(n).items()}
    graph = collapsed(model)
    tree = Tree(model, layers, graph)
    paths = {path for node in graph.nodes for path in homes(node)}
    whole = [path for path in paths if not is_list(model.get_submodule(path))]
    for path, part in take_out_parts(graph, whole).items():  # inner ones first
        wish = _wish(path, kinds)
        told_of = f"`{path}`, and what is like it"
        block = classes.add(wish, plain.Parts, told_of, part, tree.reach(path))
        tree.made[path] = called(block, (), tree.children(path))
    children = tree.children("")
    init = ["super().__init__()", *assignments(children)]
    if is_list(model):
        init = [f"super().__init__({listed(list(children.values()))})"]
    name = type(result.program.model).__name__
    usable = is_name(name) and name != "GraphModule" and not hasattr(plain, name)
    notes = result.report.notes
    info = getattr(graph._codegen, "pytree_info", None)
    kind = getattr(getattr(info, "out_spec", None), "type", None)
    if isinstance(kind, type) and issubclass(kind, dict) and kind is not dict:
        notes = (*notes, f"forward returns a dict, and no {kind.__name__}")
    if reason:
        notes = (*notes, f"your model itself is not changed, as {reason}")
    return finished(
        "graph.jinja",
        name=free(name if usable else "Model", [found.name for found in classes.found]),
        told=told(result, notes),
        base="nn.ModuleList" if is_list(model) else "nn.Module",
        init=[*init, *_afterwards(model)],
        forward=code_of(graph, tree.reach(), layers),
        classes=classes.found,
        layers=layers,
    )


def _wish(path: str, kinds: dict[str, str]) -> str:
    """The class of the original, or a name made of the path."""
    last = path.rpartition(".")[2]
    title = "Block" if last.isdigit() else last.title().replace("_", "")
    wishes = (kinds.get(path, title), title)
    return next((w for w in wishes if is_name(w) and not hasattr(plain, w)), "Block")


def _afterwards(root: nn.Module) -> Iterator[str]:
    """What is said of the tensors at the end: their precision, and which are not trained.

    Raises RewriteError where that is not enough.
    """
    names: dict[int, str] = {}
    for key, parameter in root.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(parameter), key)
        if first != key:
            raise RewriteError(
                f"{first} and {key} are one parameter, of which the file would make two: keep the "
                "rewritten model with result.save (-o)"
            )
    tensors = root.state_dict().values()
    kinds = {t.dtype for t in tensors if t.is_floating_point() or t.is_complex()}
    if len(kinds) > 1:
        raise RewriteError(
            f"its tensors have several precisions ({', '.join(sorted(map(str, kinds)))}), and "
            "the file has one: convert the model with .to() first"
        )
    yield from (f"self.to({kind})" for kind in kinds - {torch.float32})
    trained = [t.requires_grad or not t.is_floating_point() for t in root.parameters()]
    frozen = [name for name, own in zip(names.values(), trained, strict=True) if not own]
    if frozen:
        yield f"for name in {frozen!r}:"
        yield "    self.get_parameter(name).requires_grad_(False)"
