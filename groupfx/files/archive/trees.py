"""The structure of a graph's inputs and outputs as plain data, and back.

A place for a tensor is 0; tuples, lists and dicts stand as in `values`. Other classes are tables:

    {"named_tuple": ["models:Pair", ["first", "second"], [0, 0]]}
    {"registered": ["transformers.modeling_outputs:BaseModelOutput", context, [0]]}

the second one that torch's pytree knows, with what it keeps beside the tensors. Nothing is imported
to read them. A class is taken where its module is imported already: a registered one must be, and
a named tuple that is not is made of its names.
"""

import collections
import sys
from collections import OrderedDict
from typing import Any

from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

from ...errors import FileError
from ..names import Damaged, identifier, shown
from .tensors import NotPlain
from .values import MAX_DEPTH, ValueReader, ValueWriter

_LEAF = 0
_LISTS = (list, immutable_list)
_DICTS = {dict: "dict", immutable_dict: "dict", OrderedDict: "ordered_dict"}
# What these registered takes functions, or finds any class by a name.
_NOT_FOR_FILES = ("builtins", "collections", "functools", "torch")


def write_tree(spec: pytree.TreeSpec, writer: ValueWriter) -> object:
    """`spec` as plain data. Raises `NotPlain` for a class that has no name to be found by."""
    if spec.is_leaf():
        return _LEAF
    kind, context = spec.type, spec.context
    items = [write_tree(child, writer) for child in spec.children()]
    if kind is tuple:
        return tuple(items)
    if kind in _LISTS:
        return items
    if kind in _DICTS:
        pairs = zip(context, items, strict=True)
        return {_DICTS[kind]: [[writer.write(key), item] for key, item in pairs]}
    if kind is collections.namedtuple:
        identifier(context.__name__)
        return {"named_tuple": [_name(context), [*map(identifier, context._fields)], items]}
    return {"registered": [_registered(kind), writer.write(context), items]}


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _registered(kind: type) -> str:
    name = _name(kind)
    if _known(name) is not kind or kind.__module__.partition(".")[0] in _NOT_FOR_FILES:
        raise NotPlain(
            f"inputs or outputs in a {name}, which cannot be found by that name: define the class "
            "at the top of a module"
        )
    return name


def read_tree(data: object, reader: ValueReader, depth: int = 0) -> pytree.TreeSpec:
    """The structure of `write_tree`. Raises `Damaged`, and `FileError` for a class not known."""
    reader.budget.spend()
    if type(data) is int and data == _LEAF:
        return pytree.treespec_leaf()
    if depth > MAX_DEPTH:
        raise Damaged(f"the structure of inputs or outputs is nested more than {MAX_DEPTH} deep")
    if isinstance(data, list | tuple):
        return pytree.TreeSpec(type(data), None, _read_all(data, reader, depth))
    if not isinstance(data, dict) or len(data) != 1:
        raise Damaged("the structure of inputs or outputs holds more than places")
    ((name, content),) = data.items()
    if name in _DICTS.values():
        return _read_dict(name, content, reader, depth)
    if (
        name not in ("named_tuple", "registered")
        or not isinstance(content, list)
        or len(content) != 3
    ):
        raise Damaged("the structure of inputs or outputs is of an unknown kind")
    children = _read_all(content[2], reader, depth)
    if name == "registered":
        values = ValueReader(tensors=[], budget=reader.budget)
        return pytree.TreeSpec(_registered_class(content[0]), values.read(content[1]), children)
    kind = _named_tuple(*content[:2])
    if len(children) != len(kind._fields):
        raise Damaged("a named tuple has not one value a name")
    return pytree.TreeSpec(collections.namedtuple, kind, children)


def _read_all(items: object, reader: ValueReader, depth: int) -> list[pytree.TreeSpec]:
    if not isinstance(items, list | tuple):
        raise Damaged("the structure of inputs or outputs is incomplete")
    return [read_tree(item, reader, depth + 1) for item in items]


def _read_dict(name: str, pairs: object, reader: ValueReader, depth: int) -> pytree.TreeSpec:
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise Damaged("a table is not a list of pairs")
    keys = [reader.read(key) for key, _ in pairs]
    if not all(isinstance(key, str | int | float | bool | None) for key in keys):
        raise Damaged("a key of a table is no plain value")
    if len(set(keys)) != len(keys):
        raise Damaged("a table has a key twice")
    kind = dict if name == "dict" else OrderedDict
    return pytree.TreeSpec(kind, keys, _read_all([item for _, item in pairs], reader, depth))


def _named_tuple(name: object, fields: object) -> Any:
    if not isinstance(name, str) or not isinstance(fields, list):
        raise Damaged("a named tuple has no names")
    names = tuple(map(identifier, fields))
    known = _known(name)
    if _is_named_tuple(known) and known._fields == names:
        return known
    own = identifier(name.rpartition(":")[2].rpartition(".")[2])
    try:
        return collections.namedtuple(own, names)
    except ValueError as error:
        raise Damaged(f"a named tuple that cannot be: {error}") from error


def _known(name: str) -> Any:
    """What `module:Outer.Inner` names in a module that is imported; None where nothing is."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        # Not getattr: some modules import what they are asked for.
        found = getattr(found, "__dict__", {}).get(part)
    return found


def _is_named_tuple(kind: Any) -> bool:
    """Whether a class is a named tuple that makes its values as `collections` wrote it."""
    return (
        isinstance(kind, type)
        and issubclass(kind, tuple)
        and str(getattr(kind.__new__, "__module__", "")) == f"namedtuple_{kind.__name__}"
        and kind.__init__ is object.__init__
    )


def _registered_class(name: object) -> Any:
    if not isinstance(name, str):
        raise Damaged("a class has no name")
    module, kind = name.partition(":")[0], _known(name)
    known = isinstance(kind, type) and kind in pytree.SUPPORTED_NODES
    if not known or module.partition(".")[0] in _NOT_FOR_FILES:
        raise FileError(
            f"its inputs or outputs are in a {shown(name)}, which is not imported, or not "
            "registered with torch.utils._pytree: import the module that does it, then load it"
        )
    return kind
