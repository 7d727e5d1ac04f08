"""What a pickle would do, found out without running it.

A pickle is a small program. `scan` follows it as an unpickler would, with names in place of
objects, and notes which classes and functions it names, calls and instantiates.
"""

import pickletools
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..names import Damaged
from ..pickles import global_name, opcodes

# Calls its first argument, and is called by the pickle of a tensor that has attributes.
REBUILD = "torch._tensor._rebuild_from_type_v2"

_STRINGS = frozenset({"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"})
_GET = frozenset({"GET", "BINGET", "LONG_BINGET"})
_PUT = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
# In place of the name of something that the pickle itself computes.
COMPUTED = "a computed object"


@dataclass(frozen=True)
class _Global:
    name: str


class _Mark:
    """Where a group of items on the stack begins."""


_MARK = _Mark()


@dataclass
class PickleUse:
    """Dotted names that a pickle names at all, that it calls, and that it makes instances of.

    `old_modules`: it holds modules as torch pickled them before version 1.6.
    """

    globals: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    old_modules: bool = False


def scan(source: bytes | BinaryIO) -> PickleUse:
    """What the first pickle in `source` would use. Raises `Damaged` if it is none.

    A file is left behind the pickle's end, where the next one may begin.
    """
    machine = _Machine()
    try:
        for opcode, argument in opcodes(source):
            machine.step(opcode, argument)
    except (IndexError, KeyError) as error:
        raise Damaged("its pickle is inconsistent") from error
    return machine.use


class _Machine:
    """The stack and the memo of an unpickler. Items are names, strings, tuples, or None."""

    def __init__(self) -> None:
        self.use = PickleUse()
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Follow one instruction."""
        name = opcode.name
        if name in _STRINGS:
            self.stack.append(argument)
        elif name in _GET:
            self.stack.append(self.memo[int(argument)])
        elif name in _PUT:
            self.memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            self.generic(opcode)

    def generic(self, opcode: pickletools.OpcodeInfo) -> None:
        """An instruction that only moves data: take off what it takes, put on unknowns."""
        before = opcode.stack_before
        if pickletools.markobject in before:
            self.group()
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            self.stack.pop()
        self.stack.extend([None] * len(opcode.stack_after))

    def group(self) -> list[Any]:
        """The items above the last mark, which are taken off with it."""
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def name_global(self, name: str) -> None:
        self.use.globals.add(name)
        self.stack.append(_Global(name))

    def call(self, function: Any, arguments: Any) -> None:
        name = _name_of(function)
        self.use.called.add(name)
        if name == REBUILD:
            first = arguments[0] if isinstance(arguments, tuple) and arguments else None
            self.use.called.add(_name_of(first))
        self.stack.append(None)

    def make(self, kind: Any) -> None:
        self.use.made.add(_name_of(kind))
        self.stack.append(None)

    def on_global(self, argument: Any) -> None:
        self.name_global(global_name(*str(argument).split(" ", 1)))

    def on_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        known = isinstance(name, str) and isinstance(module, str)
        self.name_global(global_name(module, name) if known else COMPUTED)

    def on_extension(self, argument: Any) -> None:
        self.name_global(f"extension {argument}")

    def on_inst(self, argument: Any) -> None:
        self.group()
        name = global_name(*str(argument).split(" ", 1))
        self.use.globals.add(name)
        self.call(_Global(name), None)

    def on_obj(self, _: Any) -> None:
        self.call((self.group() or [None])[0], None)

    def on_reduce(self, _: Any) -> None:
        arguments = self.stack.pop()
        self.call(self.stack.pop(), arguments)

    def on_newobj(self, _: Any) -> None:
        self.stack.pop()
        self.make(self.stack.pop())

    def on_newobj_ex(self, _: Any) -> None:
        self.stack.pop()
        self.on_newobj(None)

    def on_persistent(self, _: Any) -> None:
        # A storage, or, in files of torch before 1.6, the class of a module and its source text.
        found = self.stack.pop()
        is_class = isinstance(found, tuple) and len(found) > 1 and found[0] == "module"
        self.use.old_modules |= is_class
        self.stack.append(found[1] if is_class else None)

    def on_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.group()))

    def on_small_tuple(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def on_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def on_pop(self, _: Any) -> None:
        self.stack.pop()


def _name_of(item: Any) -> str:
    return item.name if isinstance(item, _Global) else COMPUTED


_ACTIONS = {
    "GLOBAL": _Machine.on_global,
    "STACK_GLOBAL": _Machine.on_stack_global,
    "EXT1": _Machine.on_extension,
    "EXT2": _Machine.on_extension,
    "EXT4": _Machine.on_extension,
    "INST": _Machine.on_inst,
    "OBJ": _Machine.on_obj,
    "REDUCE": _Machine.on_reduce,
    "NEWOBJ": _Machine.on_newobj,
    "NEWOBJ_EX": _Machine.on_newobj_ex,
    "BINPERSID": _Machine.on_persistent,
    "TUPLE": _Machine.on_tuple,
    "TUPLE1": lambda machine, _: machine.on_small_tuple(1),
    "TUPLE2": lambda machine, _: machine.on_small_tuple(2),
    "TUPLE3": lambda machine, _: machine.on_small_tuple(3),
    "DUP": _Machine.on_dup,
    "POP": _Machine.on_pop,
}
