"""Pickles as data: an unpickler that calls nothing.

Python's unpickler is a machine that calls what the file tells it to. This one only notes it: a
class or function is a `Named`, what would have been made by calling it an `Inert`, and the id of
an object outside of the pickle, such as a tensor's storage, an `Outside`. Lists, tuples, dicts,
numbers and text are themselves; sets are lists.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from .names import Damaged
from .pickles import global_name, opcodes

# Calls its first argument, and is called by the pickle of a tensor that has attributes.
REBUILD = "torch._tensor._rebuild_from_type_v2"
# In place of the name of something that the pickle itself computes.
COMPUTED = "a computed object"

_DICTS = frozenset({"collections.OrderedDict", "builtins.dict"})
_SETS = frozenset({"builtins.set", "builtins.frozenset"})
_KEYS = (str, int, float, bytes, bool, type(None))


@dataclass(frozen=True)
class Named:
    """A class or a function, by its dotted name."""

    name: str


@dataclass(frozen=True, eq=False)
class Outside:
    """An object that the pickle refers to by an id."""

    id: object


@dataclass(eq=False)
class Inert:
    """What a call of `kind` with `arguments` would have made, and the state it was given.

    `items` holds what was set as in a dict.
    """

    kind: object
    arguments: object
    state: object = None
    items: dict[object, object] = field(default_factory=dict)

    @property
    def kind_name(self) -> str:
        """Dotted name of the class or function; empty where the pickle computes it."""
        return self.kind.name if isinstance(self.kind, Named) else ""


@dataclass
class PickleUse:
    """Dotted names that a pickle names at all, that it calls, and that it makes instances of.

    `old_modules`: it holds modules as torch pickled them before version 1.6.
    """

    globals: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    old_modules: bool = False


class _Mark:
    """Where a group of items on the stack begins."""


_MARK = _Mark()


def load_inert(source: bytes | BinaryIO) -> object:
    """The object of the first pickle in `source`, as data. Raises `Damaged`.

    A file is left behind the pickle's end. Takes time and memory linear in the pickle.
    """
    return _run(source).pop()


def scan(source: bytes | BinaryIO) -> PickleUse:
    """What the first pickle in `source` would use. Raises `Damaged` if it is none.

    A file is left behind the pickle's end, where the next one may begin.
    """
    return _run(source).use


def _run(source: bytes | BinaryIO) -> _Machine:
    machine = _Machine()
    try:
        for opcode, argument in opcodes(source):
            machine.step(opcode, argument)
        machine.top()
    except Damaged:
        raise
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise Damaged("its pickle is inconsistent") from error
    return machine


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.use = PickleUse()

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name = opcode.name
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _MADE:
            self.stack.append(_MADE[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in _WITHOUT_EFFECT:
            raise Damaged(f"its pickle holds the instruction {name}, which torch.save never writes")

    def pop(self) -> Any:
        """The topmost item."""
        item = self.stack.pop()
        if item is _MARK:
            raise IndexError("a mark is no item")
        return item

    def group(self) -> list[Any]:
        """The items above the last mark, which are taken off with it."""
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def top(self) -> Any:
        item = self.stack[-1]
        if item is _MARK:
            raise IndexError("a mark is no item")
        return item

    # Memo

    def put(self, argument: Any) -> None:
        self.memo[int(argument)] = self.top()

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.top()

    def get(self, argument: Any) -> None:
        self.stack.append(self.memo[int(argument)])

    # Containers

    def append(self, _: Any) -> None:
        self.extend([self.pop()])

    def appends(self, _: Any) -> None:
        self.extend(self.group())

    def extend(self, items: list[Any]) -> None:
        # What a stranger's own list class holds is of no interest.
        if isinstance(self.top(), list):
            self.stack[-1].extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_pairs([key, value])

    def set_items(self, _: Any) -> None:
        self.set_pairs(self.group())

    def set_pairs(self, items: list[Any]) -> None:
        holder = self.top()
        if isinstance(holder, Inert):
            holder = holder.items
        if isinstance(holder, dict):
            holder.update(_dict(items))

    def tuple_of(self, count: int) -> None:
        items = tuple(self.pop() for _ in range(count))
        self.stack.append(items[::-1])

    # Classes and functions

    def name_global(self, argument: Any) -> None:
        self.named(global_name(*str(argument).split(" ", 1)))

    def name_from_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Damaged("its pickle names a class by something that is no text")
        self.named(global_name(module, name))

    def name_extension(self, argument: Any) -> None:
        self.named(f"extension {argument}")

    def named(self, name: str) -> None:
        self.use.globals.add(name)
        self.stack.append(Named(name))

    def call(self, kind: object, arguments: object) -> None:
        name = _name_of(kind)
        self.use.called.add(name)
        if name == REBUILD:
            first = arguments[0] if isinstance(arguments, tuple) and arguments else None
            self.use.called.add(_name_of(first))
        self.stack.append(_called(kind, arguments))

    def reduce(self, _: Any) -> None:
        arguments = self.pop()
        self.call(self.pop(), arguments)

    def new(self, _: Any) -> None:
        arguments, kind = self.pop(), self.pop()
        self.use.made.add(_name_of(kind))
        self.stack.append(_called(kind, arguments))

    def new_with_keywords(self, _: Any) -> None:
        self.pop()
        self.new(None)

    def instance(self, argument: Any) -> None:
        arguments = tuple(self.group())
        self.name_global(argument)
        self.call(self.pop(), arguments)

    def instance_of_first(self, _: Any) -> None:
        kind, *arguments = self.group()
        self.call(kind, tuple(arguments))

    def build(self, _: Any) -> None:
        state = self.pop()
        if isinstance(self.top(), Inert):
            self.stack[-1].state = state

    def persistent(self, argument: Any) -> None:
        found = self.pop() if argument is None else argument
        if isinstance(found, tuple) and len(found) > 1 and found[0] == "module":
            # torch before 1.6: a class, with the text of its source.
            self.use.old_modules = True
            self.stack.append(found[1])
        else:
            self.stack.append(Outside(found))


def _name_of(found: object) -> str:
    return found.name if isinstance(found, Named) else COMPUTED


def _called(kind: object, arguments: object) -> object:
    """What a call gives: containers of Python itself, and a note of anything else."""
    name = kind.name if isinstance(kind, Named) else ""
    content = arguments[0] if isinstance(arguments, tuple) and len(arguments) == 1 else None
    if name in _DICTS:
        return _dict([part for pair in _pairs(content) for part in pair])
    if name in _SETS:
        return content if isinstance(content, list) else []
    return Inert(kind, arguments)


def _pairs(content: object) -> list[Any]:
    pairs = content if isinstance(content, list) else []
    return [pair for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2]


def _dict(items: list[Any]) -> dict[object, object]:
    """A dict of keys and values in turn. Entries whose key is no number or text are left out.

    Such keys name nothing, and the hash of nested tuples may take forever.
    """
    pairs = zip(items[::2], items[1::2], strict=True)
    return {key: value for key, value in pairs if isinstance(key, _KEYS)}


_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
        *("BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_WITHOUT_EFFECT = frozenset({"PROTO", "FRAME", "STOP"})
_MADE: Mapping[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
_ACTIONS: Mapping[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _Machine.name_extension),
    **dict.fromkeys(("PERSID", "BINPERSID"), _Machine.persistent),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _Machine.appends),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda m, _: m.stack.append(m.group())),
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new,
    "MEMOIZE": _Machine.memoize,
    "APPEND": _Machine.append,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "DICT": lambda m, _: m.stack.append(_dict(m.group())),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.group())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m.group(),
    "DUP": lambda m, _: m.stack.append(m.top()),
    "GLOBAL": _Machine.name_global,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "INST": _Machine.instance,
    "OBJ": _Machine.instance_of_first,
    "BUILD": _Machine.build,
}
