"""Look into a pickle without running it."""

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from typing import Any, BinaryIO

from .names import Damaged


def globals_of(data: bytes) -> set[str]:
    """Dotted names of all classes and functions that the pickle in `data` names."""
    names: set[str] = set()
    for opcode, argument in opcodes(data):
        if opcode.name in ("GLOBAL", "INST"):
            names.add(global_name(*str(argument).split(" ", 1)))
        elif opcode.name == "STACK_GLOBAL" or opcode.name.startswith("EXT"):
            names.add(f"<{opcode.name}>")
    return names


def opcodes(source: bytes | BinaryIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """Each instruction of the first pickle in `source` and its argument. Raises `Damaged`.

    A file is left behind the pickle's end.
    """
    try:
        for opcode, argument, _ in pickletools.genops(source):
            yield opcode, argument
    except (ValueError, IndexError, OverflowError, MemoryError) as error:
        raise Damaged(f"its pickle is truncated or damaged ({error})") from error


def global_name(module: str, name: str = "") -> str:
    """The dotted name by which Python 3 knows what Python 2 may have called otherwise."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"
