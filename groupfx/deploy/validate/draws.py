"""Random numbers on both sides of a validation: made equal, or told to be beyond comparing.

Two draws differ, and their difference is no rounding. So each draw of the reference is taken from a
run of it and given to both sides; what the draws were made from is compared like an output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...verify.yardstick import rms
from .onnx_draws import draws_of, opened_functions, recorder, without_draws
from .reaching import values_behind
from .sides import OnnxSide, Side, TorchSide
from .torch_draws import Kind

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

PREFIX = "groupfx.draw"
# Threads add up in any order; what differs by more between two runs is drawn.
_UNSTEADY = 1e-3


@dataclass(frozen=True)
class SettledDraws:
    """Both sides without draws of their own, where that can be.

    `draw` gives the numbers of one run, by the names of the new inputs. `behind` are the outputs of
    each side that cannot be compared, with what draws. `wrong` says that two draws are not alike.
    """

    reference: Side
    candidate: Side
    draw: Callable[[Feeds], Mapping[str, Array]] = field(default=lambda _: {})
    names: tuple[str, ...] = ()
    behind: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})
    notes: tuple[str, ...] = ()
    wrong: str | None = None


def settle_draws(
    reference: Side, candidate: Side, feeds: tuple[Feeds, Feeds], dtype: torch.dtype
) -> SettledDraws:
    """Make draws equal on both sides; `feeds` are an example of each side's inputs."""
    sides = tuple(_opened(side) for side in (reference, candidate))
    lists = [_draws(side, given) for side, given in zip(sides, feeds, strict=True)]
    kinds = [[kind for _, kind in found] for found in lists]
    cut = bool(kinds[0]) and None not in kinds[0] and _families(kinds[0]) == _families(kinds[1])
    if not cut:
        behind = tuple(
            _behind(side, given, found, dtype)
            for side, given, found in zip(sides, feeds, lists, strict=True)
        )
        return SettledDraws(reference, candidate, behind=(behind[0], behind[1]))
    names = tuple(f"{PREFIX}.{number}" for number in range(len(kinds[0])))
    first, draw = _cut(sides[0], names, feeds[0])
    second, _ = _cut(sides[1], names, feeds[1])
    texts = [text for text, _ in lists[1]]
    note = f"random numbers of {', '.join(texts)} are drawn once and given to both sides"
    pairs = list(zip(*kinds, strict=True))
    unlike = [k for k, pair in enumerate(pairs) if not _alike(*pair)]
    wrong = None
    if unlike:
        k = unlike[0]
        wrong = f"{texts[k]} draws {_words(kinds[1][k])}, the reference {_words(kinds[0][k])}"
    left = _unsteady(first, {**feeds[0], **draw(feeds[0])}, dtype)
    return SettledDraws(first, second, draw, names, (left, {}), (note,), wrong)


def _opened(side: Side) -> Side:
    if isinstance(side, TorchSide):
        return side
    model = opened_functions(side.model)
    return side if model is side.model else replace(side, model=model, data=None)


def _draws(side: Side, feeds: Feeds) -> list[tuple[str, Kind | None]]:
    """What each draw is called, and its kind."""
    if isinstance(side, OnnxSide):
        return [(str(draw), draw.kind) for draw in draws_of(side.model)]
    return [(kind[0], kind) for kind in side.draws(feeds).kinds]


def _families(kinds: Sequence[Kind | None]) -> list[str]:
    return [kind[0] if kind else "" for kind in kinds]


def _alike(one: Kind | None, other: Kind | None) -> bool:
    if one is None or other is None:
        return False
    return all(
        math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
        for a, b in zip(one[1:], other[1:], strict=True)
    )


def _words(kind: Kind | None) -> str:
    return (
        "something"
        if kind is None
        else " ".join([kind[0], *(f"{number:.4g}" for number in kind[1:])])
    )


def _cut(
    side: Side, names: Sequence[str], feeds: Feeds
) -> tuple[Side, Callable[[Feeds], Mapping[str, Array]]]:
    """The side without its draws, and what gives those of a run."""
    if isinstance(side, TorchSide):
        return replace(side, drawn=tuple(names)), lambda given: dict(
            zip(names, (v.cpu().numpy() for v in side.draws(given).values), strict=True)
        )
    record = recorder(side.model, side.source)
    dtypes = [dtype for _, dtype in record(side.own(feeds))]
    made = without_draws(side.model, names, dtypes)

    def draw(given: Feeds) -> Mapping[str, Array]:
        return dict(zip(names, (v for v, _ in record(side.own(given))), strict=True))

    return OnnxSide(side.source, made, side.notes, tuple(names)), draw


def _behind(
    side: Side, feeds: Feeds, found: Sequence[tuple[str, Kind | None]], dtype: torch.dtype
) -> Mapping[str, str]:
    """The outputs that something random reaches, by structure or as two runs differ."""
    reached: dict[str, str] = {}
    if isinstance(side, OnnxSide):
        for draw in draws_of(side.model):
            values = {v.name for v in values_behind(side.model.graph, draw.node.outputs)}
            reached.update({name: str(draw) for name in side.outputs if name in values})
    known = ", ".join(dict.fromkeys(text for text, _ in found))
    unsteady = _unsteady(side, feeds, dtype)
    return {**{name: known or text for name, text in unsteady.items()}, **reached}


def _unsteady(side: Side, feeds: Feeds, dtype: torch.dtype) -> dict[str, str]:
    """The outputs that differ between two runs on the same inputs."""
    try:
        first, second = side.twice(feeds, dtype)
    except Exception:  # the runs of the comparison tell of it
        return {}
    text = f"something in {side.source} that gives other values each time"
    return {name: text for name, value in first.items() if _differs(value, second[name])}


def _differs(first: Array, second: Array) -> bool:
    if first.shape != second.shape:
        return True
    if first.dtype.kind != "f":
        return not np.array_equal(first, second)
    with np.errstate(all="ignore"):
        off = second.astype(np.float64) - first.astype(np.float64)
        off = off[np.isfinite(off)]
    return rms(off) > _UNSTEADY * rms(first.astype(np.float64)[np.isfinite(first)])
