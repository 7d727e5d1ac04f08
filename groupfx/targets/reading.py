"""Read the file of a target, strictly: whatever is wrong is told with the file and the key.

    schema = "groupfx.target/1"
    name = "finn"
    title = "FINN, dataflow accelerators on FPGAs"
    date = 2026-11-28
    passes = ["freeze-learned-groups", "widen-groups"]

    [[fact]]
    topic = "groups"
    where = { kind = ["grouped", "depthwise-multiplier"] }
    verdict = "refused"
    text = "a convolution has one group, or one for each channel"
    fix = ["widen-groups"]
    source = "https://github.com/Xilinx/finn/issues/918"
    version = "FINN 0.10.1"
    date = 2026-11-28

Of the facts of one topic, the first that fits a convolution counts. Nothing in a file is executed.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from ..errors import FileError
from .facts import (
    CONV_TOPICS,
    OPERATION_TOPICS,
    VERDICTS,
    Fact,
    Kind,
    Layout,
    Scales,
    Where,
)
from .target import Forms, Target

SCHEMA = "groupfx.target/1"
ENDING = ".toml"
_LARGEST = 1 << 20

_PADDING = ("zeros", "reflect", "replicate", "circular")
_CHOICES: Mapping[str, Sequence[str]] = {
    "kind": get_args(Kind),
    "layout": get_args(Layout),
    "scales": get_args(Scales),
    "padding_mode": _PADDING,
}
_TRUTHS = ("depthwise", "transposed", "dilated", "output_padding")
_OF_OPERATIONS = frozenset({"rank_above", "parts_above"})


def read_target(path: Path) -> Target:
    """The target that a file describes. Raises `FileError`."""
    table = _Table(str(path), _parsed(path))
    schema = table.word("schema")
    if schema != SCHEMA:
        raise FileError(f"{path}: schema is {schema!r}, and this groupfx reads {SCHEMA!r}")
    name = table.word("name")
    if name != path.stem:
        raise FileError(
            f"{path}: name is {name!r}, and the file is called {path.name}: call it {name}{ENDING}"
        )
    methods = table.words("methods", ())
    found = Target(
        name=name,
        title=table.word("title"),
        place=table.number("place", 100, least=0),
        passes=table.words("passes"),
        date=table.day("date"),
        path=path,
        facts=tuple(_fact(each, methods) for each in table.tables("fact")),
        methods=methods,
        forms=table.choice("forms", get_args(Forms), "planned"),
        grammar=table.optional_word("grammar"),
        column=table.truth("column", False),
    )
    table.require_all_known()
    return found


def _parsed(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise FileError(f"{path} has more than {_LARGEST:,} bytes: it is no file of facts")
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise FileError(f"{path} is no TOML: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise FileError(f"{path} is no TOML: {error}") from error


def _fact(table: "_Table", methods: Sequence[str]) -> Fact:
    topic: Any = table.choice("topic", (*CONV_TOPICS, *OPERATION_TOPICS))
    table = _Table(f"{table.place} ({topic})", table.content, table.seen)
    verdict: Any = table.choice("verdict", VERDICTS)
    fix = table.words("fix", ())
    of = table.words("methods", ())
    for method in of:
        if method not in methods:
            known = ", ".join(methods) or "none"
            raise table.error("methods", f"{method!r} is none of the target's methods ({known})")
    if fix and verdict in ("accepted",):
        raise table.error("fix", f"what is {verdict} needs none: leave it out")
    found = Fact(
        topic=topic,
        verdict=verdict,
        text=table.word("text"),
        source=table.word("source"),
        version=table.word("version"),
        date=table.day("date"),
        word=table.optional_word("word") or "",
        where=_where(table, operation=topic in OPERATION_TOPICS),
        methods=of,
        fix=fix,
    )
    table.require_all_known()
    return found


def _where(fact: "_Table", *, operation: bool) -> Where:
    table = fact.table("where")
    given: dict[str, Any] = {}
    for field in fields(Where):
        if field.name not in table.content:
            continue
        if operation != (field.name in _OF_OPERATIONS):
            kind = "an operation" if operation else "a convolution"
            raise table.error(field.name, f"it does not go with a fact on {kind}")
        given[field.name] = _condition(table, field.name)
    table.require_all_known([field.name for field in fields(Where)])
    return Where(**given)


def _condition(table: "_Table", name: str) -> object:
    if name in _CHOICES:
        return table.choices(name, _CHOICES[name])
    if name in _TRUTHS:
        return table.truth(name, False)
    if name == "dims":
        return table.numbers(name)
    return table.number(name, None, least=1 if name == "multiple_of" else 0)


@dataclass(frozen=True)
class _Table:
    """A table of a file: `place` says which, `seen` are the keys that were asked for."""

    place: str
    content: Mapping[str, Any]
    seen: set[str]

    def __init__(self, place: str, content: Mapping[str, Any], seen: set[str] | None = None):
        object.__setattr__(self, "place", place)
        object.__setattr__(self, "content", content)
        object.__setattr__(self, "seen", set() if seen is None else seen)

    def error(self, key: str, what: str) -> FileError:
        """An error at a key."""
        return FileError(f"{self.place}: {key}: {what}")

    def require_all_known(self, known: Sequence[str] = ()) -> None:
        """Refuse keys that nobody asked for, with the nearest that there is."""
        names = sorted({*known, *self.seen})
        for key in self.content:
            if key not in names:
                near = get_close_matches(key, names, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise self.error(key, f"there is no such key: {hint}the keys are {_list(names)}")

    def word(self, key: str) -> str:
        """A text that is there and not empty."""
        return str(self._get(key, _is_word, "a text that is not empty"))

    def optional_word(self, key: str) -> str | None:
        """A text, or None where it is left out."""
        return None if self._absent(key) else self.word(key)

    def words(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of texts."""
        if default is not None and self._absent(key):
            return default
        found: list[str] = self._get(key, _list_of(_is_word), 'a list of texts, such as ["a"]')
        if len(set(found)) < len(found):
            raise self.error(key, "it names one twice")
        return tuple(found)

    def choice(self, key: str, choices: Sequence[str], default: str | None = None) -> Any:
        """One of a few texts."""
        if default is not None and self._absent(key):
            return default
        return self._among(key, self.word(key), choices)

    def choices(self, key: str, choices: Sequence[str]) -> tuple[str, ...]:
        """Several of a few texts."""
        found = self.words(key)
        if not found:
            raise self.error(key, "an empty list fits everything: leave it out")
        return tuple(self._among(key, each, choices) for each in found)

    def truth(self, key: str, default: bool) -> bool:
        """True or false."""
        if self._absent(key):
            return default
        return bool(self._get(key, lambda value: isinstance(value, bool), "true or false"))

    def number(self, key: str, default: int | None, *, least: int) -> int:
        """A whole number."""
        if default is not None and self._absent(key):
            return default
        found: int = self._get(
            key, lambda value: _is_number(value) and value >= least, f"a whole number from {least}"
        )
        return found

    def numbers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers from 1, not empty."""
        found: list[int] = self._get(
            key,
            lambda value: _list_of(lambda n: _is_number(n) and n >= 1)(value) and bool(value),
            "a list of whole numbers from 1, such as [2]",
        )
        return tuple(found)

    def day(self, key: str) -> date:
        """A date, without a time."""
        found: date = self._get(key, _is_day, "a date, such as 2026-11-28, without quotes")
        return found

    def tables(self, key: str) -> list["_Table"]:
        """The tables of an array; nothing where it is left out."""
        if self._absent(key):
            return []
        found: list[Any] = self._get(key, _list_of(_is_table), f"tables, each under [[{key}]]")
        return [_Table(f"{self.place}: {key} {n}", each) for n, each in enumerate(found, 1)]

    def table(self, key: str) -> "_Table":
        """A table; an empty one where it is left out."""
        if self._absent(key):
            return _Table(f"{self.place}: {key}", {})
        return _Table(f"{self.place}: {key}", self._get(key, _is_table, "a table, { ... }"))

    def _absent(self, key: str) -> bool:
        self.seen.add(key)
        return key not in self.content

    def _get(self, key: str, fits: Callable[[Any], bool], what: str) -> Any:
        if self._absent(key):
            raise self.error(key, f"it is missing: give {what}")
        value = self.content[key]
        if not fits(value):
            raise self.error(key, f"{value!r} is not {what}")
        return value

    def _among(self, key: str, value: str, choices: Sequence[str]) -> str:
        if value not in choices:
            near = get_close_matches(value, choices, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise self.error(key, f"{value!r} is none of its values: {hint}{_list(choices)}")
        return value


def _list(names: Sequence[str]) -> str:
    return f"choose one of {', '.join(names)}"


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_day(value: Any) -> bool:
    return isinstance(value, date) and not isinstance(value, datetime)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))
