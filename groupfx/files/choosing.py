"""Which object of a file is the network: the whole of it, or what a dict holds under a key."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import FileError, UsageError
from .names import first_few, shown

Form = Literal["module", "state_dict"]

# Under these names people keep a network next to other things, best name first.
_NAMES = (
    *("state_dict", "model_state_dict", "model", "net"),
    *("network", "module", "weights", "params"),
)
_SHOWN = 12


@dataclass(frozen=True)
class Look:
    """What an object of a file is: one that was unpickled, or that stands for one."""

    is_module: Callable[[object], bool]
    is_tensor: Callable[[object], bool]

    def form(self, found: object) -> Form | None:
        """A module, a table of names and tensors and nothing else, or no network."""
        if self.is_module(found):
            return "module"
        if not isinstance(found, Mapping) or not found:
            return None
        named = all(isinstance(name, str) for name in found)
        return "state_dict" if named and all(map(self.is_tensor, found.values())) else None

    def inside(self, found: object) -> bool:
        """Whether it is a dict with a network under a known name."""
        return isinstance(found, Mapping) and any(self.form(found.get(name)) for name in _NAMES)


@dataclass(frozen=True)
class Choice:
    """The network that was taken of what a file holds.

    `note` says which it is, and how to take another, where the file holds more than one.
    """

    network: Any
    form: Form
    note: str | None = None


def choose(found: object, look: Look, *, key: str | None, source: str) -> Choice:
    """The network in what a file holds.

    Of several, those under known names come first, and a module comes before weights alone. `key`
    takes another: `ema`, or `model.ema` for one in a dict in the dict. Raises `UsageError` for a
    `key` that is not there, and `FileError`, with the keys that are, where there is no network, or
    where nothing tells which of several it is.
    """
    place: tuple[str, ...] = ()
    if key is not None:
        found, place = _at(found, key, key, source), (key,)
    note = None
    while (form := look.form(found)) is None:
        if not isinstance(found, Mapping):
            raise FileError(
                f"{source} holds no network but a {_kind(found)}: save the module or its state_dict"
            )
        direct = [name for name, value in found.items() if look.form(value)]
        # As in {"model": {"state_dict": ...}}.
        inside = [n for n, value in found.items() if n not in direct and look.inside(value)]
        name = _best(found, direct or inside, look)
        if name is None:
            raise FileError(_refusal(found, [*direct, *inside], source))
        others = [other for other in (*direct, *inside) if found[other] is not found[name]]
        if others:
            keys = first_few([".".join((*place, str(n))) for n in (name, *others)], _SHOWN)
            note = f"{source} holds several networks: {keys}"
        found, place = found[name], (*place, str(name))
    if note is not None:
        note += f". {shown('.'.join(place))} was taken: --key takes another"
    return Choice(found, form, note)


def _best(found: Mapping[object, object], names: list[object], look: Look) -> object | None:
    """The name to choose; None where nothing tells."""
    known = [name for name in _NAMES if name in names]
    modules = [name for name in names if look.is_module(found[name])]
    named = [name for name in known if name in modules] or known
    if named:
        return named[0]
    left = modules or names
    return left[0] if len(left) == 1 else None


def _refusal(found: Mapping[object, object], several: list[object], source: str) -> str:
    if several:
        keys = first_few(several, _SHOWN)
        return f"{source} holds several networks: choose one with --key: {keys}"
    return f"{source} holds no network; its keys are {first_few(list(found), _SHOWN) or 'none'}"


def _at(found: object, key: str, whole: str, source: str) -> object:
    """What lies at `key`, the rest of the `whole` key that the user gave."""
    if not isinstance(found, Mapping):
        raise UsageError(
            f"--key {whole}: {source} holds a {_kind(found)}, not a dict: leave --key out"
        )
    entries = {str(name): value for name, value in found.items()}
    if key in entries:
        return entries[key]
    first, _, rest = key.partition(".")
    if isinstance(entries.get(first), Mapping):
        return _at(entries[first], rest, whole, source)
    near = difflib.get_close_matches(key, entries, n=1)
    hint = f": did you mean {shown(near[0])}?" if near else ""
    keys = first_few(list(found), _SHOWN) or "none"
    raise UsageError(f"--key {whole}: {source} has no such key; it has {keys}{hint}")


def _kind(found: object) -> str:
    return shown(getattr(found, "kind_name", "") or type(found).__name__)
