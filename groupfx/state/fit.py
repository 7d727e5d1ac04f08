"""How far a state_dict is from what a map needs of the original's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .coverage import held_by, original_shape, taken_by
from .requirements import Fixed, Requirement, Zeros
from .rows import Entry, Rows

_SHOWN = 4

Entries = Mapping[str, Entry]


@dataclass(frozen=True)
class Fit:
    """Keys that a state_dict lacks, has for nothing, has in another shape, or that hold tables."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]
    nested: tuple[str, ...]

    def require(self, *, strict: bool) -> None:
        """Raise UsageError, with a remedy, for what does not fit.

        Missing and unexpected keys are let through where not `strict`.
        """
        problems = [listed(self.misshaped, "of the wrong shape")] if self.misshaped else []
        if strict and self.missing:
            problems.append(listed(self.missing, "missing"))
        if strict and self.unexpected:
            problems.append(listed(self.unexpected, "unexpected"))
        if problems:
            raise UsageError(
                f"not a checkpoint of the original model: {'; '.join(problems)}. {self._remedy()}"
            )

    def _remedy(self) -> str:
        if self.missing and self.nested:
            return (
                f"Remedy: the state_dict may be inside, such as under {self.nested[0]!r}; give that"
            )
        lenient = "" if self.misshaped else " (strict=False ignores missing and unexpected keys)"
        return f"Remedy: give the state_dict of the model that was rewritten{lenient}"


def compare(
    sources: Mapping[str, Entries],
    read: Collection[str],
    dropped: Collection[str],
    state_dict: Mapping[str, Any],
    own: Mapping[str, Any],
) -> Fit:
    """How a state_dict of the original fits.

    `sources` has the entries for each key of the original, `read` the keys that requirements read,
    `own` the tensors of the rewritten model as far as they are known.
    """
    if not isinstance(state_dict, Mapping):
        raise UsageError(
            f"a state_dict maps names to tensors; this is a {type(state_dict).__name__}"
        )
    needed = dict.fromkeys((*sources, *read))
    problems = [
        _shape_problem(key, state_dict[key], sources.get(key, {}), own)
        for key in needed
        if key in state_dict
    ]
    return Fit(
        missing=tuple(
            key for key in needed if key not in state_dict and not _is_optional(key, state_dict)
        ),
        unexpected=tuple(key for key in state_dict if key not in sources and key not in dropped),
        misshaped=tuple(problem for problem in problems if problem),
        nested=tuple(key for key, value in state_dict.items() if isinstance(value, Mapping)),
    )


def require_met(
    requires: Mapping[str, Requirement],
    sources: Mapping[str, Entries],
    state_dict: Mapping[str, Any],
) -> None:
    """Raise UsageError, naming the layer, where a requirement is not met.

    The shapes must fit already. One whose keys are not all there is passed over.
    """
    problems = []
    for requirement in requires.values():
        if isinstance(requirement, Zeros):
            problem = _zeros_problem(requirement.source, sources, state_dict)
        elif all(key in state_dict for key in requirement.keys):
            problem = requirement.problem([state_dict[key] for key in requirement.keys])
        else:
            continue
        if problem is not None:
            problems.append(problem)
    if problems:
        more = f" (and {len(problems) - _SHOWN} more layers)" if len(problems) > _SHOWN else ""
        raise UsageError(
            "this checkpoint does not fit the structure that was frozen: "
            f"{'; '.join(problems[:_SHOWN])}{more}. Remedy: load it into the original model, and "
            "rewrite that"
        )


def required_keys(requires: Mapping[str, Requirement]) -> tuple[str, ...]:
    """The keys of the original that `Fixed` requirements read."""
    fixed = (each for each in requires.values() if isinstance(each, Fixed))
    return tuple(dict.fromkeys(key for each in fixed for key in each.keys))


def listed(items: tuple[str, ...], what: str) -> str:
    """`3 missing (a, b, c)`, with at most four of them."""
    shown = ", ".join(items[:_SHOWN])
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{len(items)} {what} ({shown}{more})"


def _zeros_problem(
    source: Entry, sources: Mapping[str, Entries], state_dict: Mapping[str, Any]
) -> str | None:
    value = state_dict.get(source.key)
    if not isinstance(value, Tensor):
        return None
    held = held_by(sources.get(source.key, {}).values(), [source], value.shape)
    left_out = taken_by([source], held) & ~held
    count = int(value.detach()[left_out.to(value.device)].count_nonzero())
    if not count:
        return None
    return f"{source.key}: {count} elements are not 0, and the rewritten model left them out"


def _shape_problem(key: str, value: Any, entries: Entries, own: Mapping[str, Any]) -> str | None:
    """What is wrong with an original tensor, or None. `own` may lack the model's tensors."""
    first = next(iter(entries), "")
    expected = own.get(first)
    sizes = [entry.size for entry in entries.values() if not isinstance(entry, Rows)]
    stops = [entry.stop for entry in entries.values() if isinstance(entry, Rows) and entry.stop]
    stops += [size[0] for size in sizes]
    if entries and not stops and not isinstance(expected, Tensor):
        return None
    if not isinstance(value, Tensor):
        return f"'{key}' is a {type(value).__name__}, not a tensor"
    if value.is_meta or value.layout is not torch.strided:
        return f"'{key}' holds no plain data (device {value.device}, layout {value.layout})"
    shape = list(value.shape)
    if stops and shape[:1] != [max(stops)]:
        return f"'{key}' is {shape}, and {max(stops)} rows are needed"
    columns = {size[1] for size in sizes if len(size) > 1}
    if columns and shape[1:2] != [max(columns)]:
        return f"'{key}' is {shape}, and {max(columns)} columns are needed"
    if not isinstance(expected, Tensor):
        return None
    needed = list(original_shape(entries[first], expected.shape))
    needed[:1] = [max(stops)] if stops else needed[:1]
    return None if shape == needed else f"'{key}' is {shape}, and {needed} is needed"


def _is_optional(key: str, state_dict: Mapping[str, Any]) -> bool:
    """Whether torch itself would load a checkpoint without this key.

    The batch counters came with version 2 of the BatchNorm classes; older checkpoints lack them.
    """
    path, _, name = key.rpartition(".")
    versions = getattr(state_dict, "_metadata", None) or {}
    return name == "num_batches_tracked" and (versions.get(path, {}).get("version") or 0) < 2
