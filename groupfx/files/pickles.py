"""Look into a pickle without running it."""

import pickle
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from typing import Any, BinaryIO

from ..errors import first_line
from .names import Damaged

_NAMING = frozenset({"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})
_FAILURES = (ValueError, IndexError, OverflowError, MemoryError)


def globals_of(data: bytes) -> set[str]:
    """Dotted names of all classes and functions that the pickle in `data` names."""
    # A large model has a million instructions: each is looked at, and none of them followed.
    found = {(op.name, argument) for op, argument in opcodes(data) if op.name in _NAMING}
    return {
        global_name(*str(argument).split(" ", 1)) if name in ("GLOBAL", "INST") else f"<{name}>"
        for name, argument in found
    }


def opcodes(source: bytes | BinaryIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """Each instruction of the first pickle in `source` and its argument. Raises `Damaged`.

    A file is left behind the pickle's end.
    """
    try:
        for opcode, argument, _ in pickletools.genops(source):
            yield opcode, argument
    except _FAILURES as error:
        raise Damaged(f"its pickle is truncated or damaged ({error})") from error


def global_name(module: str, name: str = "") -> str:
    """The dotted name by which Python 3 knows what Python 2 may have called otherwise."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def reason(error: Exception) -> str:
    """What is wrong with the file that made torch raise `error`, in one line."""
    if isinstance(error, pickle.UnpicklingError):
        # torch's own text advises to load the file without any check.
        return "its pickle is inconsistent"
    return first_line(error)
