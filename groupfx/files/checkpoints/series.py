"""Checkpoints of one training, in the order of their epochs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import FileError, GroupfxError
from ..existing import CHECKPOINT_SUFFIXES
from ..names import shown
from .checkpoint import Checkpoint, read_checkpoint

_OURS = ".groupfx.pt"


@dataclass(frozen=True)
class Series:
    """Checkpoints with the epoch of each, in their order; None where none of them has one."""

    checkpoints: tuple[Checkpoint, ...]
    epochs: tuple[int, ...] | None

    @property
    def labels(self) -> tuple[str, ...]:
        """A short name for each: its epoch, or else that of its file."""
        if self.epochs is None:
            return tuple(checkpoint.path.name for checkpoint in self.checkpoints)
        return tuple(f"epoch {epoch}" for epoch in self.epochs)


def epoch_in_name(path: Path) -> int | None:
    """The number in a file's name: one behind `epoch`, or else the last; None where there is none.

    `net_epoch_12.pth` is of epoch 12, and so is `mobilenetv2_epoch12_acc98.pth`.
    """
    name = path.name.removesuffix(path.suffix)
    behind = re.findall(r"(?:epoch|(?<![a-z])ep)[^0-9a-z]{0,2}(\d{1,15})", name.lower())
    numbers = behind or re.findall(r"\d{1,15}", name)
    return int(numbers[-1]) if numbers else None


def checkpoint_files(
    folder: Path, *, key: str | None = None
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The checkpoints in a folder by their epochs, and those that are left out.

    Files with a number in their names make a series. Another, such as `last.pth`, joins it where it
    keeps an epoch that none of them has, next to the same network; it is left out where not, unless
    there are no others. Raises `FileError` where there is none at all.
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_file())
    except OSError as error:
        raise FileError(f"{folder} cannot be read: {error.strerror or error}") from error
    files = [
        entry
        for entry in entries
        if entry.suffix in CHECKPOINT_SUFFIXES
        and not entry.name.endswith(_OURS)
        and not entry.name.startswith(".")
    ]
    if not files:
        kinds = ", ".join(sorted(CHECKPOINT_SUFFIXES))
        raise FileError(f"{folder} has no checkpoints: no file in it ends in one of {kinds}")
    numbered = [(epoch, file) for file in files if (epoch := epoch_in_name(file)) is not None]
    if not numbered:
        return tuple(files), ()
    others = [file for file in files if epoch_in_name(file) is None]
    placed = sorted([*numbered, *_placed(others, numbered, key)])
    chosen = [file for _, file in placed]
    return tuple(chosen), tuple(file for file in files if file not in chosen)


def _placed(
    others: Sequence[Path], numbered: Sequence[tuple[int, Path]], key: str | None
) -> Iterator[tuple[int, Path]]:
    """Those of `others` that belong to the series, with the epochs that they keep."""
    first = _without_tensors(numbered[0][1], key) if others else None
    taken = {epoch for epoch, _ in numbered}
    for path in others:
        other = _without_tensors(path, key)
        if first is None or other is None or other.epoch is None or other.epoch in taken:
            continue
        if first_other_shape(first, other) is None:
            taken.add(other.epoch)
            yield other.epoch, path


def _without_tensors(path: Path, key: str | None) -> Checkpoint | None:
    """What a file says of itself; None where it is no checkpoint that can be read."""
    try:
        return read_checkpoint(path, wanted=lambda name: False, key=key)
    except GroupfxError:
        return None


def read_series(
    paths: Sequence[Path],
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    key: str | None = None,
) -> Series:
    """Read `paths` and put them in the order of their epochs; see `read_checkpoint`.

    An epoch is the number in a file's name, or else the one that the file keeps next to the
    network. Where a file has neither, or two have the same, the order is that of `paths`.
    """
    checkpoints = [read_checkpoint(path, wanted=wanted, key=key) for path in paths]
    found = [_epoch(checkpoint) for checkpoint in checkpoints]
    epochs = [epoch for epoch in found if epoch is not None]
    if len(set(epochs)) < len(found):
        return Series(tuple(checkpoints), None)
    order = sorted(range(len(epochs)), key=epochs.__getitem__)
    return Series(tuple(checkpoints[i] for i in order), tuple(epochs[i] for i in order))


def first_other_shape(one: Checkpoint, other: Checkpoint) -> str | None:
    """The first weight of one network that the other has not, or in another shape, in words.

    Only tensors of two dimensions or more are compared: buffers come and go with versions.
    """
    names = dict.fromkeys((*one.shapes, *other.shapes))
    for name in names:
        shapes = one.shapes.get(name), other.shapes.get(name)
        if shapes[0] != shapes[1] and any(shape and len(shape) > 1 for shape in shapes):
            mine, theirs = ("nothing" if s is None else str(list(s)) for s in shapes)
            return f"{shown(name)} is {mine} in one and {theirs} in the other"
    return None


def _epoch(checkpoint: Checkpoint) -> int | None:
    named = epoch_in_name(checkpoint.path)
    return checkpoint.epoch if named is None else named
