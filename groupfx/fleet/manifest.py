"""Which models a fleet is: a JSON or YAML list, a folder of files, or files by themselves.

    - resnet.pt
    - {file: weights/b0.pth, arch: nets.py:b0, input_shape: "2,3,64,64", target: plinio}
    - {name: wide, factory: nets.py:wide, arch_args: {width: 2}, export: true, memory: 4GB}

Paths are from the folder of the manifest. A mapping with `defaults` and `models` instead of the
list gives all of them what they do not say themselves. An entry that cannot be understood is
refused by itself; the others are not its fault.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from ..errors import FileError, GroupfxError, first_line
from ..files.existing import MODEL_SUFFIXES, factory_in, require_file
from ..targets import ENDING
from .entries import Entry, Fleet, Limits, Reading, Refused, Work, memory_size

_LISTS = frozenset({".json", ".yaml", ".yml"})
# A model is a file too.
_MODEL = ("file", "model", "factory")
_WAYS = ("auto", "trace", "modules", "export")
# A hundred years.
_MOST_SECONDS = 3.2e9
_DTYPES = ("float32", "float16")


Part = TypeVar("Part", Reading, Work, Limits)


class _Wrong(Exception):
    """What is wrong with an entry; the message says what was expected."""


def read_fleet(places: Sequence[Path], defaults: Entry, *, apart_from: Path | None = None) -> Fleet:
    """The models of manifests, folders and files; `defaults` holds for what they do not say.

    A folder is searched with all that are in it, links too; what lies in `apart_from`, where the
    results go, is none of them. Raises FileError for a manifest that cannot be read, or where
    there is no model at all.
    """
    found: list[Entry | Refused] = []
    for place in places:
        if place.is_dir():
            root = Path() if len(places) > 1 else place
            paths = _models_in(place, apart_from)
            found += [replace(defaults, name=_name(p, root), model=p) for p in paths]
        elif place.suffix.lower() in _LISTS:
            found += _listed(place, defaults)
        elif factory_in(place) is not None or place.suffix.lower() in MODEL_SUFFIXES:
            found.append(replace(defaults, name=str(place), model=place))
        else:
            require_file(place)
            endings = ", ".join(sorted(_LISTS))
            raise FileError(
                f"{place} is no manifest: give a list of models that ends in one of {endings}, a "
                "folder of models, or models"
            )
    return Fleet(tuple(_one_of_each_name(found)))


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _models_in(folder: Path, apart_from: Path | None) -> list[Path]:
    left_out = None if apart_from is None else os.path.realpath(apart_from)
    seen: set[str] = set()
    found: list[Path] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or real == left_out:
            folders.clear()
            continue
        # A link may lead to a folder that it lies in.
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(place, name)
            for name in sorted(files)
            if Path(name).suffix.lower() in MODEL_SUFFIXES and not name.startswith(".")
        ]
    if not found:
        endings = ", ".join(sorted(MODEL_SUFFIXES))
        raise FileError(f"{folder} has no models: no file in it ends in one of {endings}")
    return found


def _one_of_each_name(entries: Sequence[Entry | Refused]) -> Iterator[Entry | Refused]:
    taken: dict[str, int] = {}
    for place, entry in enumerate(entries, 1):
        name, number = entry.name, 1
        while name in taken:
            number += 1
            name = f"{entry.name}#{number}"
        if name != entry.name and isinstance(entry, Entry):
            text = (
                f"there is a model {entry.name!r} already, the {_th(taken[entry.name])} of them: "
                f"give the {_th(place)} another name"
            )
            entry = Refused(name, str(entry.model), text)
        taken[name] = place
        yield replace(entry, name=name)


def _th(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0)
    return f"{number}{ending or 'th'}"


def _listed(path: Path, defaults: Entry) -> Iterator[Entry | Refused]:
    content = _content(path)
    if isinstance(content, Mapping):
        unknown = set(content) - {"defaults", "models"}
        if unknown or "models" not in content:
            raise FileError(
                f"{path} is neither a list of models nor a mapping with 'models' and perhaps "
                f"'defaults'{_named(unknown)}"
            )
        try:
            defaults = _with(defaults, content.get("defaults") or {}, path.parent)
        except _Wrong as error:
            raise FileError(f"{path}: of the defaults, {error}") from error
        content = content["models"]
    if not isinstance(content, list):
        raise FileError(f"{path} is no list of models: this is {_kind(content)}")
    if not content:
        raise FileError(f"{path} lists no models")
    for place, given in enumerate(content, 1):
        try:
            yield _entry(given, defaults, path.parent)
        except _Wrong as error:
            name, model = _told(given)
            yield Refused(name or f"#{place}", model, f"{path}, the {_th(place)} model: {error}")


def _named(names: set[Any]) -> str:
    return f": it has {', '.join(sorted(map(repr, names)))}" if names else ""


def _told(given: object) -> tuple[str, str]:
    """The name and the model of an entry that may hold anything."""
    table = given if isinstance(given, Mapping) else {"file": given}
    model = next((table[key] for key in _MODEL if key in table), "")
    name = table.get("name", model)
    return name if isinstance(name, str) else "", model if isinstance(model, str) else ""


def _content(path: Path) -> Any:
    """What a JSON or YAML file holds. Raises FileError, with the line of what is wrong."""
    require_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=_without_repeats)
        return yaml.load(text, _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read: {first_line(error)}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise FileError(f"{path}, {where}: this is not JSON: {error.msg}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise FileError(f"{path}{where}: this is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise FileError(f"{path} is not YAML: {first_line(error)}") from error
    except (_Wrong, ValueError) as error:
        raise FileError(f"{path}: {first_line(error)}") from error
    except RecursionError as error:
        raise FileError(f"{path} is nested too deeply to be a list of models") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Wrong(f"a mapping has the key {key!r} twice")
        found[key] = value
    return found


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain data only; a key that is there twice is a mistake, and not the last of them."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and keys.count(key.value) > 1 and key.value != "<<":
                problem = f"the key {key.value!r} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return cast(dict[Any, Any], super().construct_mapping(node, deep))


def _entry(given: object, defaults: Entry, folder: Path) -> Entry:
    if isinstance(given, str):
        given = {"factory" if factory_in(Path(given)) else "file": given}
    if not isinstance(given, Mapping):
        raise _Wrong(f"give a path or a mapping, not {_kind(given)}")
    own = dict(given)
    unknown = [key for key in own if key not in (*_KEYS, *_MODEL, "name")]
    if unknown:
        raise _unknown(unknown[0])
    models = [key for key in _MODEL if key in own]
    if len(models) != 1:
        raise _Wrong("give either a 'file', or a 'factory', such as nets.py:wide")
    model = _text(own.pop(models[0]))
    name = _text(own.pop("name", model))
    if not model:
        raise _Wrong(f"its {models[0]} is empty")
    if not name:
        raise _Wrong("its name is empty")
    if models == ["factory"] and factory_in(folder / model) is None and ":" not in model:
        raise _Wrong(f"factory {model!r}: give file.py:factory or package.module:factory")
    entry = _with(defaults, own, folder)
    return replace(entry, name=name, model=_from(folder, model))


def _from(folder: Path, text: str) -> Path:
    """A path from the folder of the manifest; a factory of a package has none."""
    place, colon, _ = text.rpartition(":")
    if colon and not place.endswith(".py") and factory_in(Path(text)) is not None:
        return Path(text)
    return folder / text


def _with(entry: Entry, given: object, folder: Path) -> Entry:
    """`entry` with what `given` says otherwise."""
    if not isinstance(given, Mapping):
        raise _Wrong(f"give a mapping, not {_kind(given)}")
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in _KEYS:
            raise _unknown(key)
        try:
            values[key] = _KEYS[key](value)
        except (_Wrong, GroupfxError) as error:
            raise _Wrong(f"{key}: {error}") from error
    if "passes" in values and "target" in values:
        raise _Wrong("give passes or a target, not both: a target is a list of passes")
    # The one that is said here takes the place of the other one of the defaults.
    for said, other in (("passes", "target"), ("target", "passes")):
        if said in given:
            values[other] = None
    values |= _placed(values, folder)
    reading = _changed(entry.reading, values)
    # As Python looks beside a script, so here beside the manifest.
    reading = replace(reading, python_path=tuple(dict.fromkeys((*reading.python_path, folder))))
    work, limits = _changed(entry.work, values), _changed(entry.limits, values)
    return replace(entry, reading=reading, work=work, limits=limits)


def _placed(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Those of `values` that name files, from the folder of the manifest."""
    found: dict[str, Any] = {}
    if "arch" in values:
        found["arch"] = str(_from(folder, values["arch"]))
    if str(values.get("target")).endswith(ENDING):
        found["target"] = str(folder / values["target"])
    if "python_path" in values:
        found["python_path"] = tuple(folder / each for each in values["python_path"])
    return found


def _unknown(key: object) -> _Wrong:
    known = ("name", *_MODEL, *_KEYS)
    near = get_close_matches(str(key), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return _Wrong(f"unknown key {key!r}: {hint}the keys are {', '.join(known)}")


def _changed(before: Part, values: Mapping[str, Any]) -> Part:
    own = {one.name for one in fields(before)}
    return replace(before, **{name: value for name, value in values.items() if name in own})


def _kind(value: object) -> str:
    kinds = {
        dict: "a mapping",
        list: "a list",
        str: "a text",
        bool: "yes or no",
        type(None): "nothing",
    }
    return kinds.get(type(value), f"{value!r}")


def _text(value: object) -> str:
    # Such as 12, or 1.5, which YAML takes for a number.
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _Wrong(f"this is to be a text, not {_kind(value)}")
    if "\0" in value:
        raise _Wrong("a text with a zero byte is no name")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(f"this is to be true or false, not {_kind(value)}")
    return value


def _texts(value: object) -> tuple[str, ...]:
    given = value if isinstance(value, list) else [value]
    return tuple(_text(each) for each in given)


def _shapes(value: object) -> tuple[str, ...]:
    """`"2,3,8,8"` or `[2, 3, 8, 8]`; for several inputs a list of such, or a mapping by name."""
    if isinstance(value, Mapping):
        return tuple(f"{_text(name)}={_shape(each)}" for name, each in value.items())
    if isinstance(value, list) and not _sizes(value):
        return tuple(_shape(each) for each in value)
    return (_shape(value),)


def _shape(value: object) -> str:
    if _sizes(value):
        return ",".join(map(str, cast(list[int], value)))
    if not isinstance(value, str):
        raise _Wrong(f"a shape is to be written as 2,3,8,8 or [2, 3, 8, 8], not {_kind(value)}")
    return value


def _sizes(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(size) is int for size in value)


def _arguments(value: object) -> str:
    if not isinstance(value, Mapping):
        raise _Wrong(f"these are to be keyword arguments as a mapping, not {_kind(value)}")
    try:
        return json.dumps(value, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise _Wrong(f"these cannot be written as JSON: {first_line(error)}") from error


def _whole(value: object) -> int:
    if type(value) is not int or value < 1:
        raise _Wrong(f"this is to be a whole number of at least 1, not {_kind(value)}")
    return value


def _seconds(value: object) -> float:
    number = not isinstance(value, bool) and isinstance(value, (int, float))
    if not number or not 0 < cast(float, value) < _MOST_SECONDS:
        raise _Wrong(f"this is to be a number of seconds, not {_kind(value)}")
    return float(cast(float, value))


def _memory(value: object) -> int:
    if not isinstance(value, str):
        raise _Wrong(f"this is to be a size such as 4GB, not {_kind(value)}")
    return memory_size(value)


@dataclass(frozen=True)
class _OneOf:
    choices: tuple[str, ...]

    def __call__(self, value: object) -> str:
        if value not in self.choices:
            raise _Wrong(f"{value!r} is none of {', '.join(self.choices)}")
        return str(value)


_KEYS: Mapping[str, Callable[[Any], Any]] = {
    "input_shape": _shapes,
    "arch": _text,
    "arch_args": _arguments,
    "key": _text,
    "trust_pickle": _flag,
    "python_path": _texts,
    "passes": _texts,
    "target": _text,
    "way": _OneOf(_WAYS),
    "verify": _flag,
    "save": _flag,
    "export": _flag,
    "validate": _flag,
    "tune": _flag,
    "dtype": _OneOf(_DTYPES),
    "opset": _whole,
    "fixed_batch": _flag,
    "dynamic_sizes": _flag,
    "budget": _seconds,
    "threads": _whole,
    "batch": _whole,
    "session": _texts,
    "backend": _text,
    "time": _seconds,
    "memory": _memory,
}
