"""A `torch.fx` graph as plain data, and back.

Reading checks every name and every target before `torch.fx` makes source text of them.
"""

from collections.abc import Iterator, Mapping

from torch import fx, nn
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from ...plan.site_plan import NOTE
from ..names import Damaged, identifier, path
from .operators import ATTRIBUTES, function_name, function_of, methods
from .tensors import NotPlain
from .trees import read_tree, write_tree
from .values import ValueReader, ValueWriter

MAX_NODES = 1_000_000

# What a node costs, in plain values: more time than a value takes.
_COST = 50


def is_export_guard(module: object) -> bool:
    """Whether `module` is the one by which `torch.export` checks the sizes of its inputs."""
    kind = type(module)
    return kind.__module__.startswith("torch.export") and kind.__name__ == "GuardsFn"


def kept_nodes(module: fx.GraphModule) -> Iterator[fx.Node]:
    """Nodes of the graph but the calls of export guards, which compute nothing."""
    for node in module.graph.nodes:
        guard = node.op == "call_module" and is_export_guard(
            module._modules.get(str(node.target), None)
        )
        if not guard or node.users:
            yield node


def write_graph(module: fx.GraphModule) -> dict[str, object]:
    """The graph of `module`. Raises `NotPlain`, naming the node, for what a file cannot hold."""
    writer = ValueWriter(tensors=None)
    data: dict[str, object] = {
        "name": _class_name(module),
        "nodes": [_write_node(node, writer) for node in kept_nodes(module)],
    }
    codegen = module.graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        data["signature"] = _write_signature(codegen.pytree_info, writer)
    elif type(codegen) is not fx.graph.CodeGen:
        raise NotPlain(f"a graph whose code is made by {type(codegen).__qualname__}")
    if NOTE in module.meta:
        data["note"] = writer.write(module.meta[NOTE])
    return data


def _class_name(module: fx.GraphModule) -> str:
    try:
        return identifier(type(module).__name__)
    except Damaged:
        return "GraphModule"


def _write_node(node: fx.Node, writer: ValueWriter) -> dict[str, object]:
    try:
        data = {
            "op": node.op,
            "name": identifier(node.name),
            "target": _write_target(node),
            "args": writer.write(node.args),
            "kwargs": {identifier(key): writer.write(arg) for key, arg in node.kwargs.items()},
        }
        if NOTE in node.meta:
            data["note"] = writer.write(node.meta[NOTE])
    except (NotPlain, Damaged) as error:
        raise NotPlain(f"{error} (node {node.name})") from error
    return data


def _write_target(node: fx.Node) -> str:
    if node.op == "call_function":
        name = function_name(node.target)
        if name is None:
            raise NotPlain(f"a call of {_said(node.target)}")
        return name
    target = str(node.target)
    if node.op in ("call_module", "get_attr"):
        path(target)
    if node.op == "call_method" and target not in methods():
        raise NotPlain(f"a call of the method {target}")
    return target


def _said(target: object) -> str:
    if isinstance(target, OpOverload | OpOverloadPacket):
        return f"torch.ops.{target}"
    name = getattr(target, "__qualname__", str(target))
    return f"{getattr(target, '__module__', '?')}.{name}"


def _write_signature(info: _PyTreeInfo, writer: ValueWriter) -> dict[str, object]:
    return {
        "arguments": [identifier(name) for name in info.orig_args],
        "in": write_tree(info.in_spec, writer),
        "out": None if info.out_spec is None else write_tree(info.out_spec, writer),
    }


def read_graph(data: object, root: nn.Module, reader: ValueReader) -> fx.GraphModule:
    """The graph module of `data` over the modules and tensors of `root`. Raises `Damaged`."""
    if not isinstance(data, Mapping) or not isinstance(data.get("nodes"), list):
        raise Damaged("a graph has no list of nodes")
    if len(data["nodes"]) > MAX_NODES:
        raise Damaged(f"a graph has {len(data['nodes'])} nodes (at most {MAX_NODES})")
    graph = fx.Graph()
    _NodeReader(graph, root, reader).read_all(data["nodes"])
    if data.get("signature") is not None:
        graph.set_codegen(_read_signature(data["signature"], graph, reader))
    graph.lint()
    module = fx.GraphModule(root, graph, class_name=identifier(data.get("name")))
    if "note" in data:
        module.meta[NOTE] = reader.read(data["note"])
    return module


class _NodeReader:
    def __init__(self, graph: fx.Graph, root: nn.Module, reader: ValueReader) -> None:
        self.graph = graph
        self.root = root
        self.nodes: dict[str, fx.Node] = {}
        self.values = ValueReader(tensors=[], budget=reader.budget, nodes=self.nodes)

    def read_all(self, entries: list[object]) -> None:
        for entry in entries:
            if not isinstance(entry, Mapping):
                raise Damaged("a node is no table")
            self.values.budget.spend(_COST)
            node = self._read(entry)
            self.nodes[node.name] = node
        for node in self.graph.nodes:
            runs = all(isinstance(user.target, HigherOrderOperator) for user in node.users)
            if node.op == "get_attr" and not runs and self._is_graph(path(node.target)):
                raise Damaged("a graph inside a graph is given to what does not run it")
        last = next(reversed(self.graph.nodes), None)
        outputs = sum(node.op == "output" for node in self.graph.nodes)
        if last is None or last.op != "output" or outputs != 1:
            raise Damaged("a graph does not end with its one output")

    def _read(self, entry: Mapping[str, object]) -> fx.Node:
        op, name, kwargs = entry.get("op"), identifier(entry.get("name")), entry.get("kwargs")
        args = self.values.read(entry.get("args"))
        if not isinstance(op, str) or not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise Damaged(f"the node {name} is incomplete")
        named = {identifier(key): self.values.read(value) for key, value in kwargs.items()}
        target = self._target(op, entry.get("target"), args, named)
        node = self.graph.create_node(op, target, args, named, name=name)  # type: ignore[arg-type]
        if node.name != name:
            raise Damaged(f"the name {name} of a node is taken or reserved")
        if "note" in entry:
            node.meta[NOTE] = self.values.read(entry["note"])
        return node

    def _target(
        self, op: str, target: object, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        if op == "call_function":
            return _function_target(target, args)
        if op == "call_method":
            return _method_target(target, args)
        if op == "call_module":
            self._module_at(path(target))
            return target
        if kwargs or len(args) != {"output": 1, "get_attr": 0}.get(op, min(len(args), 1)):
            raise Damaged("a node has arguments that it cannot have")
        if op == "get_attr":
            *parts, last = path(target)
            owner = self._module_at(parts)
            if self._is_graph([*parts, last]):
                return target
            if owner._parameters.get(last) is None and owner._buffers.get(last) is None:
                raise Damaged(f"a graph reads {target!r:.80}, which is no tensor of the model")
            return target
        if op == "placeholder":
            return _placeholder_target(target)
        if op != "output" or target != "output":
            raise Damaged("a node does something unknown")
        return target

    def _is_graph(self, parts: list[str]) -> bool:
        held = self._module_at(parts[:-1])._modules.get(parts[-1])
        return isinstance(held, fx.GraphModule)

    def _module_at(self, parts: list[str]) -> nn.Module:
        # Not getattr: the generated code must find a child, never an attribute of a class.
        module: nn.Module | None = self.root
        for part in parts:
            module = None if module is None else module._modules.get(part)
        if module is None:
            raise Damaged(f"a graph uses {'.'.join(parts)!r:.80}, which is no module of the model")
        return module


def _function_target(target: object, args: tuple[object, ...]) -> object:
    function = function_of(target)
    if function is getattr:
        known = len(args) >= 2 and isinstance(args[0], fx.Node) and args[1] in ATTRIBUTES
        if not known:
            which = f" {args[1]!r:.80}" if len(args) > 1 else ""
            raise Damaged(f"a graph reads an attribute{which} that is not one of a tensor's")
    return function


def _method_target(target: object, args: tuple[object, ...]) -> str:
    if not isinstance(target, str) or target not in methods():
        raise Damaged(f"the method {target!r:.80} is not one that a file may call")
    if not args or not isinstance(args[0], fx.Node):
        raise Damaged(f"the method {target} is called on no value of the graph")
    return target


def _placeholder_target(target: object) -> str:
    if not isinstance(target, str):
        raise Damaged("an input has no name")
    stars = len(target) - len(target.lstrip("*"))
    identifier(target[min(stars, 2) :])
    return target


def _read_signature(data: object, graph: fx.Graph, reader: ValueReader) -> _PyTreeCodeGen:
    if not isinstance(data, Mapping) or not isinstance(data.get("arguments"), list):
        raise Damaged("a signature is incomplete")
    # fx takes the text of a default value apart at its colons.
    if any(node.args for node in graph.nodes if node.op == "placeholder"):
        raise Damaged("an input of nested arguments has a default value")
    arguments = [identifier(name) for name in data["arguments"]]
    taken = read_tree(data.get("in"), reader)
    if taken.type is tuple and taken.num_children == 2 and taken.child(1).type is dict:
        for key in taken.child(1).context:
            identifier(key)
    out = data.get("out")
    given = None if out is None else read_tree(out, reader)
    return _PyTreeCodeGen(_PyTreeInfo(arguments, taken, given))
