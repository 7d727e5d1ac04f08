"""Checkpoints and optimiser state, between an original model and its rewritten form.

A rewrite moves tensors: branch 1 of a split convolution holds rows 4 ... 7 of the weight, a
BatchNorm in a branch holds a piece of each of its vectors, a frozen layer holds the blocks of a
masked weight. `StateDictMap` writes down, for each tensor of the rewritten model, which elements of
which original tensor it is. Everything here follows from that one table, in both directions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InternalError, UsageError
from ..running.weightless import make_room
from . import (
    Entry,
    Fit,
    Fixed,
    Part,
    Picked,
    Reader,
    Requirement,
    Rows,
    Zeros,
    assembled,
    compare,
    compose,
    entry_to_plain,
    listed,
    require_met,
    required_keys,
    requirement_to_plain,
)
from .keys import parameters_by_key
from .optimizer import Piece, join_optimizer, split_optimizer
from .wrapping import unwrapped

__all__ = [
    "Entry",
    "Fixed",
    "LoadResult",
    "Part",
    "Picked",
    "Requirement",
    "Rows",
    "StateDictMap",
    "Zeros",
]

_FORMAT = 1


@dataclass(frozen=True)
class LoadResult:
    """Keys of the original that `load_original(strict=False)` did not find or had no use for."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


class StateDictMap:
    """How checkpoints of an original model and of its rewritten form correspond.

    Args:
        entries: for each key of the rewritten model's state_dict, the `Rows` of the original that
            it is, or what is `Picked` of it. Several keys may name the same rows (a counter that
            each branch has, tied weights); a tensor that is cut into rows alone must be covered up
            to its last row. A `Fixed` or `Zeros`, under a name that is no key, says what a
            checkpoint of the original must meet.
        dropped: keys of the original that the rewritten model has no place for, such as those of a
            module that is never called; the keys of a `Fixed` are added.
        model: the rewritten model; needed to load, and to read state out of it.

    Attributes `entries` and `requires` have the two kinds apart: `StateDictMap({**map.entries,
    **map.requires}, dropped=map.dropped)` is the same map.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry | Requirement],
        *,
        dropped: Iterable[str] = (),
        model: nn.Module | None = None,
    ) -> None:
        tensors = {new: each for new, each in entries.items() if isinstance(each, Entry)}
        others = {name: each for name, each in entries.items() if isinstance(each, Requirement)}
        self.entries: Mapping[str, Entry] = MappingProxyType(tensors)
        self.requires: Mapping[str, Requirement] = MappingProxyType(others)
        self.sources: Mapping[str, tuple[str, ...]] = MappingProxyType(_sources(tensors))
        self.dropped = frozenset((*dropped, *required_keys(others))) - self.sources.keys()
        self.model = model

    def __repr__(self) -> str:
        required = f", {len(self.requires)} required" if self.requires else ""
        return (
            f"StateDictMap({len(self.entries)} tensors from {len(self.sources)} of the original, "
            f"{len(self.dropped)} dropped{required})"
        )

    @property
    def keys(self) -> frozenset[str]:
        """The names of the rewritten model's tensors."""
        return frozenset(self.entries)

    # Checkpoints

    def load_original(self, state_dict: Mapping[str, Any], *, strict: bool = True) -> LoadResult:
        """Load a checkpoint of the original into the rewritten model: all of it or nothing.

        Names that DataParallel, `torch.compile` or a training framework changed are read as those
        of the network, as the command line reads them. What lies on `meta` gets memory first.

        `strict=False` accepts missing and unexpected keys, and tells them. Raises UsageError where
        keys are missing or unexpected; in both modes where a shape differs, and where the
        checkpoint learned other groups, or has weights where there were none, than the model that
        was frozen.
        """
        model = self._require_model()
        own = model.state_dict()
        state_dict = self._unwrapped(state_dict)
        strangers = self._misfits(own)
        if strangers:
            raise InternalError(f"the map and its model differ: {listed(strangers, 'in the map')}")
        fit = self._require_fit(state_dict, own, strict=strict)
        tensors = self._tensors_of(state_dict)
        make_room(model, tensors)
        model.load_state_dict(tensors, strict=False)
        return LoadResult(fit.missing, fit.unexpected)

    def convert(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The rewritten model's state_dict for a state_dict of the original; nothing is loaded.

        Rows are copies; a tensor taken whole is the given one. Raises UsageError as
        `load_original` does.
        """
        own = {} if self.model is None else self.model.state_dict()
        state_dict = self._unwrapped(state_dict)
        self._require_fit(state_dict, own, strict=True)
        converted = self._tensors_of(state_dict)
        for key, value in converted.items():
            entry = self.entries[key]
            if isinstance(entry, Rows) and entry.stop is not None:
                converted[key] = value.clone()
        return converted

    def to_original(
        self,
        state_dict: Mapping[str, Any] | None = None,
        *,
        fill: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The original's state_dict, out of the rewritten model's or out of the one given.

        `fill` is a state_dict of the original from which the `dropped` keys are taken, and the
        elements that a mask has hidden; without it, those keys are left out. Elements that a
        requirement says are 0 become 0, and factors are divided out.

        Raises UsageError for a missing key, and where elements were masked off and there is no
        `fill`; RewriteError where the rewritten model holds several versions of an original tensor
        that no longer agree, or padding in a weight that is no longer what it was.
        """
        given = self._require_model().state_dict() if state_dict is None else state_dict
        misfits = self._misfits(given)
        if misfits:
            raise UsageError(
                "this is not a state_dict of the rewritten model: "
                f"{listed(misfits, 'missing or of the wrong shape')}; "
                "give the state_dict of result.model, or none to take it from there"
            )
        original = _with_metadata_of(given)
        for key in self.sources:
            entries = {new: self.entries[new] for new in self.sources[key]}
            original[key] = assembled(key, entries, given, fill=fill, requires=self.requires)
        original.update(self._dropped_of(fill))
        return original

    def _dropped_of(self, fill: Mapping[str, Any] | None) -> dict[str, Any]:
        """What the rewritten model has no place for, out of a state_dict of the original."""
        wanted = sorted(self.dropped) if fill is not None else []
        for key in wanted:
            if fill is None or key not in fill:
                raise UsageError(f"`fill` has no '{key}'; give a full state_dict of the original")
        return {} if fill is None else {key: fill[key] for key in wanted}

    # Optimisers

    def convert_optimizer(
        self, optimizer: torch.optim.Optimizer, original: nn.Module, *, elementwise: bool = False
    ) -> torch.optim.Optimizer:
        """An optimiser over the rewritten model that goes on where `optimizer` is.

        It has the class, the parameter groups and the options of `optimizer`, which holds
        parameters of `original` and stays as it is. State of the parameter's shape is cut as the
        parameter is, scalars are copied: given the same gradients, the next steps are the same (to
        the bit; with `fused=True` on the CPU, to rounding). State of masked-off elements is left
        behind, and that of padding starts at 0. A plain `optimizer.state_dict()` checkpoint goes
        through an optimiser object:

            optimizer = Adam(original.parameters())   # built as it was for training
            optimizer.load_state_dict(checkpoint)
            optimizer = result.state_dict_map.convert_optimizer(optimizer, original)

        A learning-rate scheduler holds on to its optimiser, and a new one sets learning rates as
        soon as it is made: make it, load its state, then copy the `lr` of each group once more.

        `elementwise=True` vouches for a class that groupfx does not know: each element's update
        depends on that element, its gradient and its state only.

        Raises RewriteError for an optimiser that mixes the elements of a tensor (Adafactor, LBFGS,
        Muon), for one that is not known, for state that is neither of the parameter's shape nor a
        scalar, and for a weight held with factors other than 1; UsageError for parameters that are
        not those of `original`.
        """
        parameters = self._parameters_of(original)
        dropped = [parameters[key] for key in self.dropped if key in parameters]
        pieces = self._pieces(parameters)
        return split_optimizer(optimizer, pieces, dropped=dropped, elementwise=elementwise)

    def optimizer_to_original(
        self, optimizer: torch.optim.Optimizer, original: nn.Module, *, elementwise: bool = False
    ) -> torch.optim.Optimizer:
        """The way back: an optimiser over `original` out of one over the rewritten model.

        State of elements that were masked off comes back as 0.

        Raises what `convert_optimizer` does, and RewriteError where the branches of one parameter
        are in different parameter groups or have made different numbers of steps.
        """
        pieces = self._pieces(self._parameters_of(original))
        return join_optimizer(optimizer, pieces, elementwise=elementwise)

    # Composition and storage

    def then(self, following: StateDictMap) -> StateDictMap:
        """One map for two rewrites in a row: this one first, then `following`.

        Raises UsageError if `following` names a tensor or rows that this one does not make, or
        says nothing of one that it makes.
        """
        silent = self.entries.keys() - following.sources.keys() - following.dropped
        if silent:
            raise UsageError(
                "cannot compose: of what the first map makes, "
                f"{listed(tuple(sorted(silent)), 'not named in the second')}"
            )
        entries = {new: self._through(entry) for new, entry in following.entries.items()}
        reached = {entry.key for entry in entries.values()}
        dropped = (self.sources.keys() | self.dropped) - reached
        requires = dict(self.requires)
        for name, requirement in following.requires.items():
            while name in requires:
                name += "+"
            requires[name] = self._required_through(requirement)
        return StateDictMap({**entries, **requires}, dropped=dropped, model=following.model)

    def by_keys(self, before: Mapping[str, str], after: Mapping[str, str]) -> StateDictMap:
        """The map of state_dicts, where this one is of paths: `state_keys` of the two models."""
        named = {after.get(path, path): entry for path, entry in self.entries.items()}
        own = StateDictMap({**named, **self.requires}, dropped=self.dropped, model=self.model)
        return StateDictMap({path: Rows(key) for path, key in before.items()}).then(own)

    def to_dict(self) -> dict[str, Any]:
        """Plain data (dicts, lists, strings, numbers, None), without the model."""
        return {
            "format": _FORMAT,
            "entries": {new: entry_to_plain(entry) for new, entry in self.entries.items()},
            "requires": {name: requirement_to_plain(r) for name, r in self.requires.items()},
            "dropped": sorted(self.dropped),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, model: nn.Module | None = None) -> StateDictMap:
        """Read what `to_dict` wrote. Raises UsageError for anything else."""
        reader = Reader()
        entries: dict[str, Entry | Requirement] = {}
        try:
            if data["format"] != _FORMAT:
                raise ValueError(f"format {data['format']!r}, where {_FORMAT} can be read")
            for new, fields in data["entries"].items():
                entries[str(new)] = reader.entry(fields)
            for name, fields in data.get("requires", {}).items():
                entries[str(name)] = reader.requirement(fields)
            dropped = [str(key) for key in data["dropped"]]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UsageError(f"not a state_dict map: {type(error).__name__}: {error}") from error
        return cls(entries, dropped=dropped, model=model)

    # Inside

    def _require_model(self) -> nn.Module:
        if self.model is None:
            raise UsageError(
                "this map does not know its model: use the one of a rewrite result, or "
                "StateDictMap({**map.entries, **map.requires}, dropped=map.dropped, model=...)"
            )
        return self.model

    def _misfits(self, own: Mapping[str, Any]) -> tuple[str, ...]:
        """The entries that a state_dict of the rewritten model lacks, or has in another size."""
        return tuple(
            new
            for new, entry in self.entries.items()
            if new not in own or not _has_size_of(own[new], entry)
        )

    def _require_fit(
        self, state_dict: Mapping[str, Any], own: Mapping[str, Any], *, strict: bool
    ) -> Fit:
        """How a state_dict of the original fits; UsageError where it does not."""
        sources = {
            key: {new: self.entries[new] for new in names} for key, names in self.sources.items()
        }
        fit = compare(sources, required_keys(self.requires), self.dropped, state_dict, own)
        fit.require(strict=strict)
        require_met(self.requires, sources, state_dict)
        return fit

    def _unwrapped(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """The entries of a checkpoint under the names of the original; see `wrapping`."""
        if not isinstance(state_dict, Mapping) or not all(isinstance(n, str) for n in state_dict):
            return state_dict  # it is refused with what it is
        return self._renamed(state_dict, {*self.sources, *required_keys(self.requires)})

    def _renamed(self, state_dict: Mapping[str, Any], expected: set[str]) -> Mapping[str, Any]:
        names = unwrapped(state_dict, expected | set(self.dropped)).names
        if all(name == old for name, old in names.items()) and len(names) == len(state_dict):
            return state_dict
        return {name: state_dict[old] for name, old in names.items()}

    def _tensors_of(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The rewritten model's tensors for the keys that are there; rows as views."""
        found = _with_metadata_of(state_dict)
        for new, entry in self.entries.items():
            if entry.key in state_dict:
                value = state_dict[entry.key]
                whole = isinstance(entry, Rows) and entry.stop is None
                found[new] = value if whole else entry.of(value)
        return found

    def _through(self, entry: Entry) -> Entry:
        before = self.entries.get(entry.key)
        if before is None:
            raise UsageError(f"cannot compose: the first map makes no '{entry.key}'")
        return compose(before, entry)

    def _required_through(self, requirement: Requirement) -> Requirement:
        if isinstance(requirement, Zeros):
            return Zeros(self._through(requirement.source))
        before = [self._through(Rows(key)) for key in requirement.keys]
        for key, entry in zip(requirement.keys, before, strict=True):
            if not isinstance(entry, Rows) or entry.stop is not None:
                raise UsageError(
                    f"cannot compose: the second map requires something of '{key}', which is only "
                    f"a part of the original ({entry}); freeze before anything cuts that tensor"
                )
        return replace(requirement, keys=tuple(entry.key for entry in before))

    def _parameters_of(self, original: nn.Module) -> dict[str, nn.Parameter]:
        """By their names in the model that was rewritten; `original` may be compiled or wrapped."""
        named, own = map(parameters_by_key, (original, self._require_model()))
        expected = {entry.key for new, entry in self.entries.items() if new in own}
        return {name: named[old] for name, old in unwrapped(named, expected).names.items()}

    def _pieces(self, original: Mapping[str, nn.Parameter]) -> list[Piece]:
        own = parameters_by_key(self._require_model())
        pieces: dict[tuple[int, int], Piece] = {}
        for new, entry in self.entries.items():
            if new not in own:
                continue
            whole = original.get(entry.key)
            if whole is None:
                raise UsageError(
                    f"the model given has no parameter '{entry.key}', which '{new}' comes from; "
                    "give the model that was rewritten"
                )
            pieces.setdefault((id(whole), id(own[new])), Piece(whole, own[new], entry))
        return list(pieces.values())


def _sources(entries: Mapping[str, Entry]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for new, entry in entries.items():
        found.setdefault(entry.key, []).append(new)
    return {key: tuple(new) for key, new in found.items()}


def _has_size_of(value: Any, entry: Entry) -> bool:
    if isinstance(entry, Rows) and entry.stop is None:
        return True
    if not isinstance(value, Tensor) or value.dim() == 0:
        return False
    if isinstance(entry, Rows):
        return entry.stop is not None and len(value) == entry.stop - entry.start
    return tuple(value.shape[: len(entry.shape)]) == entry.shape


def _with_metadata_of(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """An empty state_dict with the module versions of another, which decide how it is loaded."""
    fresh: OrderedDict[str, Any] = OrderedDict()
    metadata = getattr(state_dict, "_metadata", None)
    if metadata is not None:
        fresh._metadata = metadata  # type: ignore[attr-defined]
    return fresh
