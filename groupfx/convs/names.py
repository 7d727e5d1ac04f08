"""How a convolution call is called: in every list, option, file and report.

A site has the path of the module that a user would look for, such as `layer1.0.conv2`: the module
that is called; for a function, the one that holds its weight (`layer1.0.kernel` for a tensor of
another name). Where forward computes the weight, it is the innermost module that was being called,
or, outside of any, the one that holds the tensor next to the weight. The second call of the same
name is `layer1.0.conv2#2`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import fx

from .calls import CONV_FUNCTIONS, OPERAND, ConvCall, Stored, Unreadable
from .sources import sources

_WEIGHT = ".weight"
_PARAMETRIZATIONS = "parametrizations"
# The last is `merging.whole.ComputedConv`, which stands for a site.
_LAYER = re.compile(r"(torch\.nn|groupfx)\..*(Conv(Transpose)?[123]d|\.ComputedConv)")


def joined(*paths: str) -> str:
    """A dotted path, empty parts left out."""
    return ".".join(path for path in paths if path)


def one_line(name: str) -> str:
    """A name from a file or a model with its control characters written out.

    A line end in it would be the start of a line that nobody wrote.
    """
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def call_name(call: ConvCall | Unreadable, full: Callable[[str], str] = str) -> str:
    """Name of a convolution call, without a number.

    `full` turns a path in the graph into one in the whole model, for a graph that is a part of it.
    """
    return one_line(_call_name(call, full))


def _call_name(call: ConvCall | Unreadable, full: Callable[[str], str]) -> str:
    node = call.node
    if isinstance(call, ConvCall) and call.path is not None:
        return full(call.path)
    if node.op == "call_module":
        return full(str(node.target))
    inner = module_path(node)
    if _is_layer(node):
        return full(inner)
    if isinstance(call, ConvCall) and isinstance(call.weight, Stored):
        return full(call.weight.key).removesuffix(_WEIGHT)
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    held = weight_owner(weight, full) if isinstance(weight, fx.Node) else None
    return full(inner) or held or node.name


def weight_owner(weight: fx.Node, full: Callable[[str], str] = str) -> str | None:
    """The module that holds the tensor next to a computed weight; None where there is none.

    At the root, which has no path, the tensor itself. What another convolution reads is that one's,
    such as the template of a tracker, whose features are a kernel.
    """
    for node in sources(weight):
        if node is not weight and all(user.target in CONV_FUNCTIONS for user in node.users):
            continue
        if node.op == "get_attr":
            return _owner(full(str(node.target)))
        if OPERAND in node.meta:
            return _owner(node.meta[OPERAND])
        if node.op == "call_module" and not node.all_input_nodes:
            return _owner(full(str(node.target)) + _WEIGHT)
    return None


def _owner(key: str) -> str:
    *path, name = key.split(".")
    if _PARAMETRIZATIONS in path:
        at = path.index(_PARAMETRIZATIONS)
        path, name = path[:at], path[at + 1]
    # A number is an entry of a list of parameters, which is no module that anybody looks for.
    return ".".join(path[:-1] if name.isdecimal() else path) or joined(*path, name)


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that was being called when `node` was recorded."""
    return _innermost(node)[0]


def _innermost(node: fx.Node) -> tuple[str, Any]:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1] if stack else ("", None)


def _is_layer(node: fx.Node) -> bool:
    """Whether what was being called is a convolution of torch or ours, and not code of a user."""
    path, kind = _innermost(node)
    text = f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)
    return bool(path and _LAYER.fullmatch(text))


def numbered(names: Iterable[str]) -> Iterator[str]:
    """`a`, `b`, `a` as `a`, `b`, `a#2`."""
    seen: Counter[str] = Counter()
    for name in names:
        seen[name] += 1
        yield with_number(name, seen[name])


def with_number(name: str, call: int) -> str:
    """Name of the site that is the call number `call` of those of one name."""
    return name if call == 1 else f"{name}#{call}"


def split_number(name: str) -> tuple[str, int]:
    """`a#2` as `a` and 2, `a` as `a` and 1."""
    base, mark, number = name.rpartition("#")
    return (base, int(number)) if mark and number.isdecimal() else (name, 1)


def unnumbered(name: str) -> str:
    """A site's name without the number of its call, which all calls of a module share."""
    return split_number(name)[0]
