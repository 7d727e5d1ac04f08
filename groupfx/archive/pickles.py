"""Look into a pickle without running it."""

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from dataclasses import dataclass, field

from .names import Damaged


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names."""

    name: str


@dataclass
class PickleUse:
    """What one pickle would do: which classes and functions it names, calls and instantiates.

    `called` and `made` hold names, or `"?"` for the result of something else. `rebuilt` holds the
    functions that `torch._tensor._rebuild_from_type_v2` would call.
    """

    globals: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    rebuilt: set[str] = field(default_factory=set)


def globals_of(data: bytes) -> set[str]:
    """Dotted names of all classes and functions that the pickle in `data` names."""
    names: set[str] = set()
    for opcode, argument, _ in _opcodes(data):
        if opcode.name in ("GLOBAL", "INST"):
            names.add(global_name(*str(argument).split(" ", 1)))
        elif opcode.name == "STACK_GLOBAL" or opcode.name.startswith("EXT"):
            names.add(f"<{opcode.name}>")
    return names


def _opcodes(data: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, object, int | None]]:
    try:
        yield from pickletools.genops(data)
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise Damaged(f"its pickle is truncated or damaged ({error})") from error


def global_name(module: str, name: str = "") -> str:
    """The dotted name by which Python 3 knows what Python 2 may have called otherwise."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"
