"""What a forward reads or sets while it is traced, and what would not be in the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from ..convs.names import joined
from ..running.grouped_runs import at, place_of, users_place
from ..running.kept import KeptParameters
from .places import LINE


class ValuesRead(KeptParameters):
    """Notes, in `why`, the first tensor that `forward` computes with behind the tracer's back.

    A parameter or a buffer. What it takes from `self.parameters()`, or from a list of its own, is
    no value of the graph: the trace would hold what was made of it, as a constant that no training
    changes.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.why = ""
        self._names: dict[int, str] = {}
        for path, module in model.named_modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    self._names.setdefault(id(tensor), joined(path, name))
        self._trained = [(each, each.requires_grad) for each in model.parameters()]
        for buffer in model.buffers():
            if buffer.layout is torch.strided and not buffer.is_meta and buffer.numel():
                self._held.setdefault(buffer.untyped_storage()._cdata, buffer)

    def seeing(self, func: Any, args: Any, kwargs: Any) -> None:
        """Look at what the operator is given, before anything is written."""
        if not self.why:
            read = map(self.held_behind, tree_leaves((args, kwargs)))
            tensor = next((each for each in read if each is not None), None)
            if tensor is not None:
                what = f"forward computes with {self._names[id(tensor)]} where no trace sees it"
                self.why = f"{what}{at(users_place())}, which would freeze it"
        super().seeing(func, args, kwargs)

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for parameter, trained in self._trained:
            if not self.why and parameter.requires_grad is not trained:
                self.why = switching(self._names[id(parameter)], "")


def switching(name: str, place: str) -> str:
    """Why what is built of a model, whose forward switches what is trained, would not be it."""
    return (
        f"forward sets requires_grad of {name}{at(place)}, which what is made of it would not: set "
        "it before training, and not in forward"
    )


def what_is_no_graph(model: nn.Module, graph: fx.Graph) -> str:
    """Why a traced graph would not be the model, or nothing.

    Where forward hands out a module: a graph has others. Where it reads a tensor that is trained
    without being a parameter: what holds a copy of it, as a graph does, would not be trained with
    it. Where it decides whether a parameter is trained. Where it reads a mark that somebody put on
    a tensor: a copy of a graph has none, and would end there.
    """
    node: fx.Node
    for node in graph.find_nodes(op="call_method", target="requires_grad_"):
        owner = node.args[0]
        if isinstance(owner, fx.Node) and owner.op == "get_attr":
            return switching(str(owner.target), node.meta.get(LINE) or "")
    for node in graph.find_nodes(op="call_function", target=getattr):
        read = str(node.args[1])
        if not hasattr(torch.Tensor, read) and _is_stored(node.args[0]):
            return f"forward reads .{read} of a tensor{at(node.meta.get(LINE) or '')}"
    for node in graph.find_nodes(op="get_attr"):
        name = str(node.target)
        held: Any = model
        for part in name.split("."):
            held = getattr(held, part, None)
        if isinstance(held, nn.Module) or not name:
            code = getattr(type(model).forward, "__code__", None)
            place = "" if code is None else at(place_of(code.co_filename, code.co_firstlineno))
            return f"forward{place} hands out {name or 'itself'}, a module, as if it were data"
        plain = isinstance(held, torch.Tensor) and not isinstance(held, nn.Parameter)
        if plain and held.requires_grad and held.is_leaf:
            constant = name.startswith("_tensor_constant")
            what = "a tensor from outside the model" if constant else name
            return f"forward reads {what}, which is trained and no parameter"
    return ""


def _is_stored(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"
