"""A tuning as a JSON file: which recipe each site has, and where that was measured.

It can be read and edited, and carried out again without measuring. For a site that it names, the
signature must be that of the site; another site with that signature takes the same recipe.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import FileError, UsageError
from ..files.atomic import whole_file
from ..plan.recipes import recipe_plan
from .sites import TunedSite

SCHEMA = "groupfx.plan/1"
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class PlannedRecipe:
    """A site, what it is (see `TunedSite.signature`), and how it is executed."""

    site: str
    signature: str
    recipe: str


@dataclass(frozen=True)
class TuningPlan:
    """Every tunable site of a model with its recipe, and what it was measured on."""

    backend: str
    version: str
    cpu: str
    threads: int
    sites: tuple[PlannedRecipe, ...]

    def to_dict(self) -> dict[str, Any]:
        """What the file holds."""
        return {"schema": SCHEMA, **asdict(self), "sites": [asdict(site) for site in self.sites]}

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all. Raises FileError."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        with whole_file(Path(path)) as file:
            file.write(f"{text}\n".encode())


@dataclass(frozen=True)
class Applied:
    """Recipes by sites, and what a user should know of them."""

    recipes: Mapping[str, str]
    notes: tuple[str, ...]


def read_plan(path: str | Path) -> TuningPlan:
    """The plan in a file. Raises FileError where it holds none."""
    place = Path(path)
    try:
        if place.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MB")
        data = json.loads(place.read_bytes())
        return _plan_of(data)
    except OSError as error:
        raise FileError(f"{place} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FileError(
            f"{place} is no plan of groupfx ({error}): 'groupfx tune --save-plan' writes one"
        ) from error


def _plan_of(data: Any) -> TuningPlan:
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    texts = {name: data[name] for name in ("backend", "version", "cpu")}
    entries = data["sites"]
    if not isinstance(entries, list) or type(data["threads"]) is not int:
        raise ValueError("sites is no list, or threads no whole number")
    fields = ("site", "signature", "recipe")
    sites = tuple(PlannedRecipe(*(entry[name] for name in fields)) for entry in entries)
    strings = [*texts.values(), *(text for site in sites for text in vars(site).values())]
    if not all(isinstance(text, str) for text in strings):
        raise ValueError("a name, a signature or a recipe is no text")
    return TuningPlan(**texts, threads=data["threads"], sites=sites)


def fits_blocks(site: TunedSite, recipe: str) -> None:
    """Raise UsageError where the blocks of `site` cannot be executed by `recipe`."""
    recipe_plan(recipe, site.structure)


def applied(
    plan: TuningPlan,
    sites: Sequence[TunedSite],
    here: TuningPlan,
    fits: Callable[[TunedSite, str], None] = fits_blocks,
) -> Applied:
    """The recipes of `plan` for `sites`, where they fit; `here` says what this machine is.

    `fits` raises UsageError for a recipe that is none for a site; by default where its blocks
    cannot be executed so.

    Raises UsageError for a recipe that does not fit the blocks of its own signature.
    """
    named = {entry.site: entry for entry in plan.sites}
    alike = {entry.signature: entry.recipe for entry in reversed(plan.sites)}
    recipes: dict[str, str] = {}
    left: list[str] = []
    for site in sites:
        entry = named.get(site.name)
        same = entry is not None and entry.signature == site.signature
        recipe = entry.recipe if entry is not None and same else alike.get(site.signature)
        if recipe is None:
            left.append(site.name)
            continue
        try:
            fits(site, recipe)
        except UsageError as error:
            raise UsageError(f"the plan for {site.name}: {error}") from error
        recipes[site.name] = recipe
    return Applied(recipes, tuple(_notes(plan, here, sites, left)))


def _notes(
    plan: TuningPlan, here: TuningPlan, sites: Sequence[TunedSite], left: Sequence[str]
) -> list[str]:
    notes = []
    pairs = {
        "runtime": (f"{plan.backend} {plan.version}", f"{here.backend} {here.version}"),
        "CPU": (plan.cpu, here.cpu),
        "number of threads": (str(plan.threads), str(here.threads)),
    }
    for what, (there, own) in pairs.items():
        if there != own:
            notes.append(f"the plan was measured with another {what}: {there}, and here {own}")
    if left:
        few = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
        notes.append(
            f"the plan fits {len(sites) - len(left)} of {len(sites)} sites; the others stay as "
            f"they are: {few}"
        )
    return notes
