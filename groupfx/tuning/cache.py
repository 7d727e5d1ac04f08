"""What was measured before: a file for each runtime, version, CPU and number of threads.

It is written after every variant, so that an interrupted tuning goes on where it was. A file that
cannot be read or written is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FileError
from ..files.atomic import whole_file

SCHEMA = "groupfx.timings/1"
FOLDER = "GROUPFX_CACHE"
"""Environment variable that names another folder for it."""


@dataclass(frozen=True)
class Key:
    """What times depend on besides the site."""

    backend: str
    version: str
    cpu: str
    threads: int


@dataclass
class Cache:
    """Microseconds by signature of the site and recipe, and the rates that were probed."""

    path: Path | None
    key: Key
    machine: Mapping[str, Any] = field(default_factory=dict)
    times: dict[str, dict[str, float]] = field(default_factory=dict)

    def save(self) -> None:
        """Write it, if that can be."""
        if self.path is None:
            return
        data = {
            "schema": SCHEMA,
            **vars(self.key),
            "machine": dict(self.machine),
            "times": self.times,
        }
        with contextlib.suppress(FileError, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path) as file:
                file.write(json.dumps(data, indent=1).encode())


def cache_folder() -> Path:
    """Where it lies: $GROUPFX_CACHE, else as the XDG specification says."""
    own = os.environ.get(FOLDER)
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "groupfx"


def open_cache(key: Key, folder: Path | None) -> Cache:
    """What is known under `key`; nothing is kept where `folder` is None."""
    if folder is None:
        return Cache(None, key)
    text = "\n".join(map(str, vars(key).values()))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    cache = Cache(folder / f"timings-{digest}.json", key)
    assert cache.path is not None
    broken = (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError)
    with contextlib.suppress(*broken):
        data = json.loads(cache.path.read_bytes())
        if data["schema"] == SCHEMA and {name: data[name] for name in vars(key)} == vars(key):
            times = {
                str(signature): {str(recipe): float(time) for recipe, time in known.items()}
                for signature, known in data["times"].items()
            }
            cache.machine, cache.times = dict(data["machine"]), times
    return cache
