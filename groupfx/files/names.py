"""Names that a file brings in, checked before anything is built from them.

`torch.fx` turns a graph into Python source and executes it, and node names, attribute paths and
keyword names are pasted into that source. So a name is text that may run: only the forms below are
let through, and no name of a child, a parameter, a buffer or a field may stand where its class
already has an attribute (`self.to_folder(x)` would be a method of `GraphModule`, not a child).
"""

import keyword
import re
from collections.abc import Sequence

from torch import nn

MAX_NAME = 500
MAX_PATH = 4_000

# What stands between the dots of a module path. Quotes, backslashes, braces and line ends are out:
# fx writes an atom that is no identifier as getattr(self, "atom").
_ATOM = re.compile(r"[\w][\w \-+:/@,=()\[\]<>|~*&]*\Z")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

# What nn.Module itself keeps in an instance's __dict__.
INTERNAL_FIELDS = frozenset(nn.Module().__dict__) | {"_compiled_call_impl"}


class Damaged(ValueError):
    """Data from a file that groupfx would not have written. `read` turns it into a FileError."""


def identifier(name: object) -> str:
    """`name` if it is a plain ASCII identifier, and no keyword of Python."""
    if not isinstance(name, str) or len(name) > MAX_NAME or not _IDENTIFIER.match(name):
        raise Damaged(f"{_shown(name)} is not a name")
    if keyword.iskeyword(name) or name.startswith("__") or name == "self":
        raise Damaged(f"{_shown(name)} is a reserved name")
    return name


def atom(name: object) -> str:
    """`name` if it may be one part of a module path."""
    if not isinstance(name, str) or len(name) > MAX_NAME or not _ATOM.match(name):
        raise Damaged(f"{_shown(name)} is not a name of a module or a tensor")
    if name.startswith("__") and name.endswith("__"):
        raise Damaged(f"{_shown(name)} is a reserved name")
    return name


def path(text: object) -> list[str]:
    """Parts of the dotted path `text`, each of them checked."""
    if not isinstance(text, str) or len(text) > MAX_PATH:
        raise Damaged(f"{_shown(text)} is not a path")
    return [atom(part) for part in text.split(".")]


def member(owner: type, name: object) -> str:
    """`name` if a child or tensor of an `owner` may have it: not an attribute of that class."""
    checked = atom(name)
    if hasattr(owner, checked) or checked in INTERNAL_FIELDS:
        raise Damaged(f"{owner.__name__} already has an attribute {_shown(name)}")
    return checked


def field(owner: type, name: object) -> str:
    """`name` if a plain value on an `owner` may have it: it must not hide a method."""
    checked = identifier(name)
    # A property would win over the value, and a method would be hidden by it.
    present = getattr(owner, checked, None)
    if checked in INTERNAL_FIELDS or callable(present) or isinstance(present, property):
        raise Damaged(f"{_shown(name)} cannot be a field of {owner.__name__}")
    return checked


def shown(text: object, limit: int = 80) -> str:
    """Text from a file, fit for a message: no control characters, and not too long."""
    clean = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[: limit + 1])
    return clean if len(clean) <= limit else f"{clean[:limit]}..."


def first_few(names: Sequence[object], count: int) -> str:
    """The first `count` names from a file, fit for a message."""
    more = ", ..." if len(names) > count else ""
    return ", ".join(shown(name) for name in names[:count]) + more


def _shown(value: object) -> str:
    return shown(repr(value), 60)
