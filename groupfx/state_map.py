"""Checkpoints and optimiser state, between an original model and its rewritten form.

A rewrite moves tensors: branch 1 of a split convolution holds rows 4 ... 7 of the weight, a
BatchNorm in a branch holds a piece of each of its vectors. `StateDictMap` writes down, for each
tensor of the rewritten model, which rows of which original tensor it is. Everything here follows
from that one table, in both directions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from groupfx.errors import InternalError, RewriteError, UsageError
from groupfx.optimizer_state import Piece, join_optimizer, split_optimizer

_FORMAT = 1
_SHOWN = 4


@dataclass(frozen=True)
class Rows:
    """Rows `[start, stop)` along axis 0 of the original's tensor `key`.

    `stop=None` is the whole tensor, of any shape, 0-d included.
    """

    key: str
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        if self.stop is None and self.start == 0:
            return
        if self.stop is None or not 0 <= self.start < self.stop:
            raise UsageError(
                f"rows {self.start}:{self.stop} of '{self.key}': give 0 <= start < stop, or "
                "neither for the whole tensor"
            )

    def __str__(self) -> str:
        return self.key if self.stop is None else f"{self.key}[{self.start}:{self.stop}]"


@dataclass(frozen=True)
class LoadResult:
    """Keys of the original that `load_original(strict=False)` did not find or had no use for."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


class StateDictMap:
    """How checkpoints of an original model and of its rewritten form correspond.

    Args:
        entries: for each key of the rewritten model's state_dict, the rows of the original that it
            is. Several keys may name the same rows (a counter that each branch has, tied weights);
            a tensor that is cut must be covered up to its last row.
        dropped: keys of the original that the rewritten model has no place for, such as those of a
            module that is never called.
        model: the rewritten model; needed to load, and to read state out of it.
    """

    def __init__(
        self,
        entries: Mapping[str, Rows],
        *,
        dropped: Iterable[str] = (),
        model: nn.Module | None = None,
    ) -> None:
        self.entries: Mapping[str, Rows] = MappingProxyType(dict(entries))
        self.sources: Mapping[str, tuple[str, ...]] = MappingProxyType(_sources(self.entries))
        self.dropped = frozenset(dropped) - self.sources.keys()
        self.model = model

    def __repr__(self) -> str:
        return (
            f"StateDictMap({len(self.entries)} tensors from {len(self.sources)} of the original, "
            f"{len(self.dropped)} dropped)"
        )

    # Checkpoints

    def load_original(self, state_dict: Mapping[str, Any], *, strict: bool = True) -> LoadResult:
        """Load a checkpoint of the original into the rewritten model: all of it or nothing.

        `strict=False` accepts missing and unexpected keys, and tells them. Raises UsageError where
        keys are missing or unexpected, or where a shape differs (in both modes).
        """
        model = self._require_model()
        own = model.state_dict()
        strangers = self._misfits(own)
        if strangers:
            raise InternalError(f"the map and its model differ: {_listed(strangers, 'in the map')}")
        fit = self._compare(state_dict, own)
        fit.require(strict=strict)
        model.load_state_dict(self._rows_of(state_dict), strict=False)
        return LoadResult(fit.missing, fit.unexpected)

    def convert(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The rewritten model's state_dict for a state_dict of the original; nothing is loaded.

        Rows are copies; a tensor taken whole is the given one. Raises UsageError as
        `load_original` does.
        """
        own = {} if self.model is None else self.model.state_dict()
        self._compare(state_dict, own).require(strict=True)
        converted = self._rows_of(state_dict)
        for key, value in converted.items():
            if self.entries[key].stop is not None:
                converted[key] = value.clone()
        return converted

    def to_original(
        self,
        state_dict: Mapping[str, Any] | None = None,
        *,
        fill: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The original's state_dict, out of the rewritten model's or out of the one given.

        `fill` is a state_dict of the original from which the `dropped` keys are taken; without it
        they are left out. Raises UsageError for a missing key, and RewriteError where the
        rewritten model holds several versions of an original tensor that no longer agree.
        """
        given = self._require_model().state_dict() if state_dict is None else state_dict
        misfits = self._misfits(given)
        if misfits:
            raise UsageError(
                "this is not a state_dict of the rewritten model: "
                f"{_listed(misfits, 'missing or of the wrong shape')}; "
                "give the state_dict of result.model, or none to take it from there"
            )
        original = _with_metadata_of(given)
        for key in self.sources:
            original[key] = self._assembled(key, given)
        for key in sorted(self.dropped if fill is not None else ()):
            if fill is None or key not in fill:
                raise UsageError(f"`fill` has no '{key}'; give a full state_dict of the original")
            original[key] = fill[key]
        return original

    # Optimisers

    def convert_optimizer(
        self, optimizer: torch.optim.Optimizer, original: nn.Module, *, elementwise: bool = False
    ) -> torch.optim.Optimizer:
        """An optimiser over the rewritten model that goes on where `optimizer` is.

        It has the class, the parameter groups and the options of `optimizer`, which holds
        parameters of `original` and stays as it is. State of the parameter's shape is cut into
        rows, scalars are copied: given the same gradients, the next steps are the same (to the bit;
        with `fused=True` on the CPU, to rounding). A plain `optimizer.state_dict()` checkpoint goes
        through an optimiser object:

            optimizer = Adam(original.parameters())   # built as it was for training
            optimizer.load_state_dict(checkpoint)
            optimizer = result.state_dict_map.convert_optimizer(optimizer, original)

        A learning-rate scheduler holds on to its optimiser, and a new one sets learning rates as
        soon as it is made: make it, load its state, then copy the `lr` of each group once more.

        `elementwise=True` vouches for a class that groupfx does not know: each element's update
        depends on that element, its gradient and its state only.

        Raises RewriteError for an optimiser that mixes the elements of a tensor (Adafactor, LBFGS,
        Muon), for one that is not known, and for state that is neither of the parameter's shape
        nor a scalar; UsageError for parameters that are not those of `original`.
        """
        parameters = dict(original.named_parameters(remove_duplicate=False))
        dropped = [parameters[key] for key in self.dropped if key in parameters]
        pieces = self._pieces(parameters)
        return split_optimizer(optimizer, pieces, dropped=dropped, elementwise=elementwise)

    def optimizer_to_original(
        self, optimizer: torch.optim.Optimizer, original: nn.Module, *, elementwise: bool = False
    ) -> torch.optim.Optimizer:
        """The way back: an optimiser over `original` out of one over the rewritten model.

        Raises what `convert_optimizer` does, and RewriteError where the branches of one parameter
        are in different parameter groups or have made different numbers of steps.
        """
        pieces = self._pieces(dict(original.named_parameters(remove_duplicate=False)))
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
                f"{_listed(tuple(sorted(silent)), 'not named in the second')}"
            )
        entries = {key: self._through(rows) for key, rows in following.entries.items()}
        reached = {rows.key for rows in entries.values()}
        dropped = (self.sources.keys() | self.dropped) - reached
        return StateDictMap(entries, dropped=dropped, model=following.model)

    def to_dict(self) -> dict[str, Any]:
        """Plain data (dicts, lists, strings, integers, None), without the model."""
        entries = {key: [rows.key, rows.start, rows.stop] for key, rows in self.entries.items()}
        return {"format": _FORMAT, "entries": entries, "dropped": sorted(self.dropped)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, model: nn.Module | None = None) -> StateDictMap:
        """Read what `to_dict` wrote. Raises UsageError for anything else."""
        try:
            if data["format"] != _FORMAT:
                raise ValueError(f"format {data['format']!r}, where {_FORMAT} can be read")
            entries = {str(new): _rows_from(fields) for new, fields in data["entries"].items()}
            dropped = [str(key) for key in data["dropped"]]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"not a state_dict map: {type(error).__name__}: {error}") from error
        return cls(entries, dropped=dropped, model=model)

    # Inside

    def _require_model(self) -> nn.Module:
        if self.model is None:
            raise UsageError(
                "this map does not know its model: use the one of a rewrite result, or "
                "StateDictMap(map.entries, dropped=map.dropped, model=...)"
            )
        return self.model

    def _misfits(self, own: Mapping[str, Any]) -> tuple[str, ...]:
        """The entries that a state_dict of the rewritten model lacks, or has in another size."""
        return tuple(
            new
            for new, rows in self.entries.items()
            if new not in own or (rows.stop is not None and not _has_rows(own[new], rows))
        )

    def _compare(self, state_dict: Mapping[str, Any], own: Mapping[str, Any]) -> _Fit:
        if not isinstance(state_dict, Mapping):
            raise UsageError(
                f"a state_dict maps names to tensors; this is a {type(state_dict).__name__}"
            )
        nested = [key for key, value in state_dict.items() if isinstance(value, Mapping)]
        return _Fit(
            missing=tuple(
                key
                for key in self.sources
                if key not in state_dict and not _is_optional(key, state_dict)
            ),
            unexpected=tuple(
                key for key in state_dict if key not in self.sources and key not in self.dropped
            ),
            misshaped=tuple(
                problem
                for key in self.sources
                if key in state_dict and (problem := self._shape_problem(key, state_dict[key], own))
            ),
            nested=tuple(nested),
        )

    def _shape_problem(self, key: str, value: Any, own: Mapping[str, Any]) -> str | None:
        """What is wrong with an original tensor, or None. `own` may lack the model's tensors."""
        stops = [stop for new in self.sources[key] if (stop := self.entries[new].stop) is not None]
        expected = own.get(self.sources[key][0])
        if not stops and not isinstance(expected, Tensor):
            return None
        if not isinstance(value, Tensor):
            return f"'{key}' is a {type(value).__name__}, not a tensor"
        if value.is_meta or value.layout is not torch.strided:
            return f"'{key}' holds no plain data (device {value.device}, layout {value.layout})"
        shape = list(value.shape)
        if stops and shape[:1] != [max(stops)]:
            return f"'{key}' is {shape}, and {max(stops)} rows are needed"
        if not isinstance(expected, Tensor):
            return None
        needed = [*([max(stops)] if stops else expected.shape[:1]), *expected.shape[1:]]
        return None if shape == needed else f"'{key}' is {shape}, and {needed} is needed"

    def _rows_of(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The rewritten model's tensors, views of the original's, for the keys that are there."""
        found = _with_metadata_of(state_dict)
        for new, rows in self.entries.items():
            if rows.key in state_dict:
                value = state_dict[rows.key]
                found[new] = value if rows.stop is None else _rows(value, rows)
        return found

    def _assembled(self, key: str, given: Mapping[str, Any]) -> Any:
        """The original tensor `key`, checked against every piece of it that there is."""
        pieces = sorted(self.sources[key], key=lambda new: self.entries[new].start)
        whole = next((new for new in pieces if self.entries[new].stop is None), None)
        value = given[whole] if whole is not None else self._concatenated(key, pieces, given)
        for new in pieces:
            rows = self.entries[new]
            part = value if rows.stop is None else _rows(value, rows)
            if not _equal(part, given[new]):
                raise RewriteError(
                    f"'{key}' of the original cannot be given back: '{new}' and "
                    f"'{whole or pieces[0]}' should hold the same values and do not; they were "
                    "changed apart from each other, so make them equal first"
                )
        return value

    def _concatenated(self, key: str, pieces: Iterable[str], given: Mapping[str, Any]) -> Tensor:
        parts: list[Tensor] = []
        end, last = 0, 0
        for new in pieces:
            rows = self.entries[new]
            last = max(last, rows.stop or 0)
            if rows.start <= end < last:
                parts.append(given[new].detach()[end - rows.start :])
                end = last
        if end != last:
            raise RewriteError(
                f"'{key}' of the original cannot be given back: of its {last} rows, the rewritten "
                f"model lacks those from {end} on"
            )
        if len({part.shape[1:] for part in parts}) > 1:
            shapes = ", ".join(str(list(part.shape)) for part in parts[:_SHOWN])
            raise RewriteError(f"the parts of '{key}' cannot be joined: their shapes are {shapes}")
        return torch.cat(parts)

    def _through(self, rows: Rows) -> Rows:
        before = self.entries.get(rows.key)
        if before is None:
            raise UsageError(f"cannot compose: the first map makes no '{rows.key}'")
        if rows.stop is None or before.stop is None:
            return before if rows.stop is None else Rows(before.key, rows.start, rows.stop)
        if rows.stop > before.stop - before.start:
            raise UsageError(f"cannot compose: {rows} is beyond the end of {before}")
        return Rows(before.key, before.start + rows.start, before.start + rows.stop)

    def _pieces(self, original: Mapping[str, nn.Parameter]) -> list[Piece]:
        own = dict(self._require_model().named_parameters(remove_duplicate=False))
        pieces: dict[tuple[int, int], Piece] = {}
        for new, rows in self.entries.items():
            if new not in own:
                continue
            whole = original.get(rows.key)
            if whole is None:
                raise UsageError(
                    f"the model given has no parameter '{rows.key}', which '{new}' comes from; "
                    "give the model that was rewritten"
                )
            piece = Piece(rows.key, whole, own[new], rows.start, rows.stop)
            pieces.setdefault((id(whole), id(own[new])), piece)
        return list(pieces.values())


@dataclass(frozen=True)
class _Fit:
    """How far a state_dict is from what the original's should be."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]
    nested: tuple[str, ...]

    def require(self, *, strict: bool) -> None:
        problems = [_listed(self.misshaped, "of the wrong shape")] if self.misshaped else []
        if strict and self.missing:
            problems.append(_listed(self.missing, "missing"))
        if strict and self.unexpected:
            problems.append(_listed(self.unexpected, "unexpected"))
        if problems:
            raise UsageError(
                f"not a checkpoint of the original model: {'; '.join(problems)}. {self._remedy()}"
            )

    def _remedy(self) -> str:
        if self.unexpected and all(key.startswith("module.") for key in self.unexpected):
            return "Remedy: it was saved from DataParallel; take 'module.' off the keys"
        if self.missing and self.nested:
            return (
                f"Remedy: the state_dict may be inside, such as under {self.nested[0]!r}; give that"
            )
        lenient = "" if self.misshaped else " (strict=False ignores missing and unexpected keys)"
        return f"Remedy: give the state_dict of the model that was rewritten{lenient}"


def _sources(entries: Mapping[str, Rows]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for new, rows in entries.items():
        found.setdefault(rows.key, []).append(new)
    return {key: tuple(new) for key, new in found.items()}


def _rows(value: Tensor, rows: Rows) -> Tensor:
    return value.detach()[rows.start : rows.stop]


def _has_rows(value: Any, rows: Rows) -> bool:
    if not isinstance(value, Tensor) or value.dim() == 0 or rows.stop is None:
        return False
    return len(value) == rows.stop - rows.start


def _with_metadata_of(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """An empty state_dict with the module versions of another, which decide how it is loaded."""
    fresh: OrderedDict[str, Any] = OrderedDict()
    metadata = getattr(state_dict, "_metadata", None)
    if metadata is not None:
        fresh._metadata = metadata  # type: ignore[attr-defined]
    return fresh


def _is_optional(key: str, state_dict: Mapping[str, Any]) -> bool:
    """Whether torch itself would load a checkpoint without this key.

    The batch counters came with version 2 of the BatchNorm classes; older checkpoints lack them.
    """
    path, _, name = key.rpartition(".")
    versions = getattr(state_dict, "_metadata", None) or {}
    return name == "num_batches_tracked" and (versions.get(path, {}).get("version") or 0) < 2


def _rows_from(fields: Any) -> Rows:
    key, start, stop = fields
    if not isinstance(key, str) or type(start) is not int or type(stop) not in (int, type(None)):
        raise TypeError(f"{fields!r} is no [key, start, stop]")
    return Rows(key, start, stop)


def _equal(left: Any, right: Any) -> bool:
    if left is right:
        return True
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return bool(left == right)
    if left.shape != right.shape:
        return False
    # NaN in both is agreement: a diverged model must still be convertible.
    return torch.equal(left, right) or (
        left.is_floating_point() and torch.allclose(left, right, rtol=0, atol=0, equal_nan=True)
    )


def _listed(items: tuple[str, ...], what: str) -> str:
    shown = ", ".join(items[:_SHOWN])
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{len(items)} {what} ({shown}{more})"
