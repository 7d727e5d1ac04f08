"""Python source laid out on lines of at most 100 columns.

An expression is a small tree of documents. A line that fits is written flat; one that does not is
broken at its last bracket, as the usual formatters do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 100
INDENT = 4

# How tightly an expression binds, in the order of Python's grammar.
NOT, COMPARE, OR, XOR, AND, SHIFT, ADD, MULTIPLY, UNARY, POWER, ATOM = range(11)


@dataclass(frozen=True)
class Doc:
    """An expression that stands on one line, whatever its length."""

    flat: str
    level: int = ATOM

    def broken(self, indent: int, before: str, after: str) -> list[str]:
        """Lines of this expression, which does not fit on one."""
        inside = " " * (indent + INDENT) + self.flat
        gains = before.endswith(("= ", "return ")) and len(inside) <= WIDTH
        if not gains:
            return [f"{' ' * indent}{before}{self.flat}{after}"]
        return [f"{' ' * indent}{before}(", inside, f"{' ' * indent}){after}"]


@dataclass(frozen=True)
class Bracket(Doc):
    """A call, a display or a subscript: a head, and items between brackets."""

    head: str = ""
    opening: str = "("
    items: tuple[Doc, ...] = ()

    def broken(self, indent: int, before: str, after: str) -> list[str]:
        """The items on a line of their own, or one line for each."""
        if not self.items:
            return super().broken(indent, before, after)
        lines = [f"{' ' * indent}{before}{self.head}{self.opening}"]
        inner = ", ".join(item.flat for item in self.items)
        if not self._needs_comma and indent + INDENT + len(inner) <= WIDTH:
            lines.append(" " * (indent + INDENT) + inner)
        elif len(self.items) > _MANY and all(len(item.flat) <= _SHORT for item in self.items):
            lines += _filled(self.items, indent + INDENT)
        else:
            comma = "," if len(self.items) > 1 or self._needs_comma else ""
            for item in self.items:
                lines += render(item, indent + INDENT, after=comma)
        return [*lines, f"{' ' * indent}{_CLOSING[self.opening]}{after}"]

    @property
    def _needs_comma(self) -> bool:
        """Whether this is a tuple of one."""
        return _is_tuple_of_one(self.head, self.opening, self.items)


@dataclass(frozen=True)
class Loop(Doc):
    """The inside of a comprehension: `element for target in values`."""

    element: Doc = Doc("")
    target: str = ""
    values: Doc = Doc("")

    def broken(self, indent: int, before: str, after: str) -> list[str]:
        """The element, and below it the loop."""
        loop = render(self.values, indent, f"for {self.target} in ", after)
        return [*render(self.element, indent, before), *loop]


@dataclass(frozen=True)
class Named(Doc):
    """`name=value` in a call, or `key: value` in a dict."""

    name: str = ""
    value: Doc = Doc("")

    def broken(self, indent: int, before: str, after: str) -> list[str]:
        """The value broken, behind the name."""
        return self.value.broken(indent, before + self.name, after)


# A display of that many items of that length at most is a table of numbers.
_MANY = 16
_SHORT = 24


def _filled(items: Sequence[Doc], indent: int) -> list[str]:
    """The items on as few lines as possible."""
    lines = [" " * indent]
    for item in items:
        if len(lines[-1]) + len(item.flat) + 2 > WIDTH:
            lines.append(" " * indent)
        lines[-1] += f"{item.flat}, "
    return [line.rstrip() for line in lines]


_CLOSING = {"(": ")", "[": "]", "{": "}"}


def render(doc: Doc, indent: int, before: str = "", after: str = "") -> list[str]:
    """Lines of `doc` behind `before` and in front of `after`."""
    line = f"{' ' * indent}{before}{doc.flat}{after}"
    return [line] if len(line) <= WIDTH else doc.broken(indent, before, after)


def _is_tuple_of_one(head: str, opening: str, items: Sequence[Doc]) -> bool:
    return opening == "(" and not head and len(items) == 1 and not isinstance(items[0], Loop)


def bracket(head: str, items: Sequence[Doc], opening: str = "(") -> Bracket:
    """`head(items)`, `head[items]`, or a display or a generator where `head` is empty."""
    inner = ", ".join(item.flat for item in items)
    if _is_tuple_of_one(head, opening, items):
        inner += ","
    flat = f"{head}{opening}{inner}{_CLOSING[opening]}"
    return Bracket(flat, head=head, opening=opening, items=tuple(items))


def call(head: str, arguments: Sequence[Doc] = (), **named: Doc) -> Bracket:
    """`head(arguments, name=value)`."""
    return bracket(head, [*arguments, *(keyword(name, doc) for name, doc in named.items())])


def keyword(name: str, value: Doc) -> Named:
    """`name=value`."""
    return Named(f"{name}={value.flat}", name=f"{name}=", value=value)


def entry(key: Doc, value: Doc) -> Named:
    """`key: value`."""
    return Named(f"{key.flat}: {value.flat}", name=f"{key.flat}: ", value=value)


def loop(element: Doc, target: str, values: Doc) -> Loop:
    """`element for target in values`."""
    flat = f"{element.flat} for {target} in {values.flat}"
    return Loop(flat, NOT, element=element, target=target, values=values)


def within(doc: Doc, level: int) -> str:
    """`doc` as an operand that must bind at least as tightly as `level`."""
    return doc.flat if doc.level >= level else f"({doc.flat})"


def finished(lines: Sequence[str]) -> str:
    """The text of a file. A name that no line can hold is excused by name."""
    long = [f"{line}  # noqa: E501" if len(line) > WIDTH else line for line in lines]
    return "\n".join(long).rstrip("\n") + "\n"
