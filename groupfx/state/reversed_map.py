"""The map of a rewrite that puts tensors together: the map of its way back, read backwards.

A merge makes one weight of those of several convolutions. What each tensor of the *original* is, in
terms of the rewritten model's, is then one entry, as what each piece of a split is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from .fit import listed
from .map import LoadResult, StateDictMap
from .picked import Part, Picked
from .requirements import Zeros
from .rows import Entry, Rows


class ReversedMap(StateDictMap):
    """How checkpoints of an original and of a model with some of its tensors joined correspond.

    Args:
        back: for each key of the original's state_dict, the rows of the rewritten model's tensors
            that it is, or what is picked of one in which zeros fill up what no tensor of the
            original is. `entries` are those of tensors that stayed as they were.
        dropped: keys of the original that the rewritten model has no place for.
        model: the rewritten model.

    The methods are those of `StateDictMap`, and raise what those do; only one map in a row with
    another cannot be composed.
    """

    def __init__(
        self,
        back: Mapping[str, Entry],
        *,
        dropped: Iterable[str] = (),
        model: nn.Module | None = None,
    ) -> None:
        kept = {key: rows for key, rows in back.items() if rows == Rows(key)}
        super().__init__(kept, dropped=dropped, model=model)
        self.back = StateDictMap({**back, **_filled_up(back)})

    @property
    def keys(self) -> frozenset[str]:
        """The names of the rewritten model's tensors."""
        return frozenset(self.back.sources)

    def load_original(self, state_dict: Mapping[str, Any], *, strict: bool = True) -> LoadResult:
        """As `StateDictMap.load_original`; each piece of a joined tensor must be there."""
        model = self._require_model()
        given = self._named(state_dict)
        unexpected = tuple(k for k in given if k not in self.back.entries and k not in self.dropped)
        if strict and unexpected:
            raise UsageError(
                f"not a checkpoint of the original model: {listed(unexpected, 'unexpected')}. "
                "Remedy: give the state_dict of the model that was rewritten (strict=False ignores "
                "unexpected keys)"
            )
        own = model.state_dict()
        made = self._joined(given)
        wrong = tuple(k for k, v in made.items() if k in own and own[k].shape != v.shape)
        if wrong:
            raise UsageError(
                f"not a checkpoint of the original model: {listed(wrong, 'of the wrong shape')}"
            )
        model.load_state_dict(made, strict=False)
        return LoadResult((), unexpected)

    def convert(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """As `StateDictMap.convert`. A joined tensor is a copy."""
        return self._joined(self._named(state_dict))

    def to_original(
        self,
        state_dict: Mapping[str, Any] | None = None,
        *,
        fill: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """As `StateDictMap.to_original`."""
        given = self._require_model().state_dict() if state_dict is None else state_dict
        return self.back.convert(given) | self._dropped_of(fill)

    def convert_optimizer(
        self, optimizer: torch.optim.Optimizer, original: nn.Module, *, elementwise: bool = False
    ) -> torch.optim.Optimizer:
        """As `StateDictMap.convert_optimizer`, where parameters are joined: in one group each."""
        back = self._back_to(original)
        return back.optimizer_to_original(optimizer, self._require_model(), elementwise=elementwise)

    def optimizer_to_original(
        self, optimizer: torch.optim.Optimizer, original: nn.Module, *, elementwise: bool = False
    ) -> torch.optim.Optimizer:
        """As `StateDictMap.optimizer_to_original`."""
        back = self._back_to(original)
        return back.convert_optimizer(optimizer, self._require_model(), elementwise=elementwise)

    def then(self, following: StateDictMap) -> StateDictMap:
        """Not for maps that join tensors: raises UsageError."""
        raise UsageError(
            "the map of a merge cannot be composed with another: convert with one after the other"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the model."""
        return {"reversed": self.back.to_dict(), "dropped": sorted(self.dropped)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, model: nn.Module | None = None) -> ReversedMap:
        """Read what `to_dict` wrote. Raises UsageError for anything else."""
        back = StateDictMap.from_dict(data.get("reversed", {}))
        dropped = data.get("dropped", ())
        plain = isinstance(dropped, (list, tuple)) and all(isinstance(k, str) for k in dropped)
        if back.requires != _filled_up(back.entries) or not plain:
            raise UsageError(
                "not a state_dict map: a map backwards asks for zeros of padding alone"
            )
        return cls(back.entries, dropped=dropped, model=model)

    def _back_to(self, original: nn.Module) -> StateDictMap:
        return StateDictMap({**self.back.entries, **self.back.requires}, model=original)

    def _named(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """The entries of a checkpoint under the names of the original."""
        if not isinstance(state_dict, Mapping):
            raise UsageError(
                f"a state_dict maps names to tensors; this is a {type(state_dict).__name__}"
            )
        return self._renamed(state_dict, {*self.back.entries})

    def _joined(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return self.back.to_original(given)


def _filled_up(back: Mapping[str, Entry]) -> dict[str, Zeros]:
    """Zeros are what no tensor of the original is of a tensor, where some is picked of it."""
    sizes = {entry.key: entry.size for entry in back.values() if isinstance(entry, Picked)}
    found = {}
    for key, (rows, *columns) in sizes.items():
        whole = Part(tuple(range(rows)), tuple(range(columns[0])) if columns else None)
        found[f"{key} (padding)"] = Zeros(Picked(key, (whole,), sizes[key]))
    return found


def map_from_dict(data: Mapping[str, Any], *, model: nn.Module | None = None) -> StateDictMap:
    """The map that `to_dict` of either kind wrote. Raises UsageError for anything else."""
    if isinstance(data, Mapping) and "reversed" in data:
        return ReversedMap.from_dict(data, model=model)
    return StateDictMap.from_dict(data, model=model)
