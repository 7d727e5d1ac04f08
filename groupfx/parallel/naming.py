"""What branches are called together."""

from __future__ import annotations

from collections.abc import Sequence


def joint_name(names: Sequence[str]) -> str:
    """`a.weight` for `a.0.weight`, `a.1.weight` and so on; else the first name, with `_merged`."""
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) == 1:
        columns = list(zip(*parts, strict=True))
        differing = [k for k, column in enumerate(columns) if len(set(column)) > 1]
        counted = tuple(map(str, range(len(names))))
        if len(columns) > 1 and len(differing) == 1 and columns[differing[0]] == counted:
            return ".".join(p for k, p in enumerate(parts[0]) if k != differing[0])
    return f"{names[0]}_merged"
