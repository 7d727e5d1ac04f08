"""What was measured before: a file for each runtime, version, CPU, number of threads and options.

It is written after every variant, so that an interrupted tuning goes on where it was, and with what
another process has written there in the meantime. A file that cannot be read or written is as good
as none, which is said, and so is a time in it that is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import GroupfxError, first_line
from ..files.atomic import whole_file
from .ratios import Ratio, ratio_of, settled

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
    session: str = ""
    """options of the user's session"""


@dataclass(frozen=True)
class PastRace:
    """What raced against an untouched model for so many seconds: recipes by sites, and ratios, by
    the names of the contenders.
    """

    seconds: float
    recipes: Mapping[str, Mapping[str, str]]
    ratios: Mapping[str, Ratio]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        raced = {
            name: {**ratio.to_dict(), "recipes": dict(self.recipes[name])}
            for name, ratio in self.ratios.items()
        }
        return {"seconds": round(self.seconds, 3), "raced": raced}

    @classmethod
    def read(cls, data: Any) -> PastRace | None:
        """What `to_dict` wrote; None for anything else."""
        with contextlib.suppress(AttributeError, LookupError, TypeError):
            ratios = {str(name): ratio_of(held) for name, held in data["raced"].items()}
            recipes = {name: dict(data["raced"][name]["recipes"]) for name in ratios}
            texts = [text for own in recipes.values() for text in (*own, *own.values())]
            told = {name: ratio for name, ratio in ratios.items() if ratio is not None}
            good = isinstance(data["seconds"], (int, float)) and all(map(_is_text, texts))
            if good and told and len(told) == len(ratios):
                return cls(data["seconds"], recipes, told)
        return None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


@dataclass
class Cache:
    """Microseconds by signature of the site and recipe, and the rates that were probed.

    `races` has races by the model that they were about, see `raced`. `problem` says why nothing was
    found there, or why nothing is kept.
    """

    path: Path | None
    key: Key
    machine: Mapping[str, Any] = field(default_factory=dict)
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    races: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def raced(self, called: str, seconds: float) -> PastRace | None:
        """The race of at least so many seconds about the model that is `called` so."""
        found = PastRace.read(self.races.get(called))
        return found if found is not None and found.seconds >= seconds else None

    def remember(self, called: str, race: PastRace) -> None:
        """Keep what a race has told; one that could not tell is run again."""
        if settled([*race.ratios.values()]):
            self.races[called] = race.to_dict()

    def save(self) -> None:
        """Write it, if that can be."""
        if self.path is None:
            return
        theirs = _read(self.path, self.key)
        for signature, known in ({} if theirs is None else theirs.times).items():
            self.times[signature] = {**known, **self.times.get(signature, {})}
        self.races = self.races if theirs is None else theirs.races | self.races
        data = {
            "schema": SCHEMA,
            **vars(self.key),
            "machine": dict(self.machine),
            "times": self.times,
            "races": self.races,
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path) as file:
                file.write(json.dumps(data, indent=1).encode())
        except (GroupfxError, OSError) as error:
            why = first_line(error.__cause__ or error)
            self.problem = (
                f"what was measured is not kept for the next time, as {self.path.parent} takes no "
                f"file ({why}): name another folder with ${FOLDER}"
            )


def cache_folder() -> Path | None:
    """Where it lies: $GROUPFX_CACHE, else as the XDG specification says; None for nowhere."""
    own = os.environ.get(FOLDER)
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "groupfx"
    except RuntimeError:  # a user without a home
        return None


def open_cache(key: Key, folder: Path | None) -> Cache:
    """What is known under `key`; nothing is kept where `folder` is None."""
    if folder is None:
        return Cache(None, key)
    text = "\n".join(map(str, vars(key).values()))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = folder / f"timings-{digest}.json"
    found = _read(path, key)
    if found is not None:
        return found
    there = os.path.exists(path)  # what nobody may look into does not raise
    broken = f"{path} cannot be read as timings: they are measured anew" if there else None
    return Cache(path, key, problem=broken)


def _read(path: Path, key: Key) -> Cache | None:
    """What the file at `path` holds; None where that is nothing of the kind."""
    broken = (
        *(OSError, ValueError, TypeError, AttributeError, LookupError),
        *(RecursionError, OverflowError),
    )
    with contextlib.suppress(*broken):
        data = json.loads(path.read_bytes())
        if data["schema"] == SCHEMA and {name: data[name] for name in vars(key)} == vars(key):
            times = {
                str(signature): {str(recipe): float(time) for recipe, time in known.items()}
                for signature, known in data["times"].items()
            }
            races = dict(data.get("races", {}))
            return Cache(path, key, dict(data["machine"]), _times(times), races)
    return None


def _times(held: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Those that can be times."""
    return {
        signature: {recipe: time for recipe, time in known.items() if 0 <= time < math.inf}
        for signature, known in held.items()
    }
