"""Safetensors files: names, shapes, and those tensors that are wanted."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import FileError, UsageError
from .names import shown


@dataclass(frozen=True)
class SafeTensors:
    """The shape of each tensor in a file, and the values of those that were wanted, on the CPU."""

    shapes: dict[str, tuple[int, ...]]
    tensors: dict[str, Tensor]


def read_safetensors(
    path: Path, key: str | None, wanted: Callable[[str], bool] = lambda name: True
) -> SafeTensors:
    """Read the file. Raises `FileError` where it is damaged, and `UsageError` for any `key`."""
    from safetensors import SafetensorError, safe_open

    if key is not None:
        raise UsageError(f"{path} is a safetensors file, which has no keys: leave --key out")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = sorted(file.keys(), key=_natural)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            tensors = {name: file.get_tensor(name) for name in names if wanted(name)}
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise FileError(f"{path} is damaged: {shown(error)}") from error
    return SafeTensors(shapes, tensors)


def _natural(name: str) -> list[tuple[int, str]]:
    """The order of `blocks.2` before `blocks.10`: the file has its names in that of letters."""
    return [(int(p), "") if p.isdecimal() else (0, p) for p in re.split(r"(\d{1,15})", name)]
