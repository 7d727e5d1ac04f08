"""What a node is called: by its site, by the module that it comes from, else by its own name.

PyTorch's exporters keep the modules: the newer one in the metadata of each node, the older one in
the node's name (`/layer1/layer1.0/conv1/Conv`), and both in the names of weights.
"""

from __future__ import annotations

import ast
import re

import onnx_ir as ir

from ...convs.names import one_line
from .metadata import mark_of

_SCOPES = "pkg.torch.onnx.name_scopes"
_NAMESPACE = "namespace"
_WEIGHT = ".weight"
# What exporters call a node of which they know no more than its operator.
_GENERIC = re.compile(r"|(node_)?(Conv|ConvTranspose)(_\d+)?|node_conv\w*")
_OPERATOR = re.compile(r"[A-Z]\w*")
_CALL = re.compile(r"_\d+$")
# A path of modules; whatever is longer is something else.
_LONGEST = 10_000


def site_name(node: ir.Node) -> str:
    """How a convolution is listed, without the number of its call."""
    mark = mark_of(node)
    return _site_name(node) if mark is None else mark.site


def node_name(node: ir.Node) -> str:
    """The name of a node, that of its first output where it has none."""
    return node.name or next((value.name for value in node.outputs if value.name), "?")


def told_name(node: ir.Node) -> str:
    """The name of a node for a message, with the module that it comes from where a file says it."""
    name, module = node_name(node), _from_metadata(node)
    return f"{name} of {module}" if module else name


def module_of(node: ir.Node) -> str | None:
    """Path of the innermost module that a node comes from; empty for the model itself.

    None where the file does not say it.
    """
    found = _from_metadata(node)
    return _from_name(node) if found is None else found


def _site_name(node: ir.Node) -> str:
    module, held = module_of(node), _weight_of(node)
    stem = held.removesuffix(_WEIGHT)
    if module is not None:
        return stem if stem and _belongs(stem, module) else module or node_name(node)
    generic = _GENERIC.fullmatch(node.name or "")
    return stem if generic and stem != held else node_name(node)


def _belongs(stem: str, module: str) -> bool:
    """Whether a weight is of a module, whose path may lack its start and have a call's number."""
    path = f".{stem}."
    paths = (f".{module}.", f".{_CALL.sub('', module)}.")
    return not module or path.startswith(paths) or path.endswith(paths)


def _weight_of(node: ir.Node) -> str:
    """The name of the tensor that is a convolution's weight; empty where torch gave none."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "Identity":
        value = producer.inputs[0]
    if value is None or not value.is_initializer() or not value.name or "::" in value.name:
        return ""
    return one_line(value.name)


def _from_metadata(node: ir.Node) -> str | None:
    scopes, namespace = node.metadata_props.get(_SCOPES), node.metadata_props.get(_NAMESPACE)
    path: list[str] = []
    if scopes is not None and len(scopes) < _LONGEST:
        path = _listed(scopes)
    elif namespace is not None and len(namespace) < _LONGEST:
        path = [part.partition(": ")[0] for part in namespace.split("/") if ": " in part]
    # The last is the operator's own name.
    return one_line(path[-2]) if len(path) > 1 else None


def _listed(text: str) -> list[str]:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # as its documentation lists
        return []
    names = isinstance(found, list) and all(isinstance(name, str) for name in found)
    return found if names else []


def _from_name(node: ir.Node) -> str | None:
    """The modules in a name such as `/layer1/layer1.0/conv1/Conv`, in which `layer1.0` is one."""
    start, *scopes = (node.name or "").split("/")
    if start or not scopes or not _OPERATOR.fullmatch(scopes[-1]):
        return None
    path: list[str] = []
    for scope in scopes[:-1]:
        if path and scope.startswith(f"{path[-1]}."):
            path[-1] = scope
        else:
            path.append(scope)
    return ".".join(path)
