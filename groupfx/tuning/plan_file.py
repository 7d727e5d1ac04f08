"""A tuning as a JSON file: which recipe each site has, and where that was measured.

It can be read and edited, and carried out again without measuring. For a site that it names, the
signature must be that of the site; another site with that signature takes the same recipe.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FileError, UsageError
from ..files.atomic import whole_file
from ..files.existing import require_file
from ..plan.recipes import recipe_plan
from .backends import Session, session_text
from .sites import TunedSite

SCHEMA = "groupfx.plan/1"
_MOST_BYTES = 64 << 20
_PLACE = ("backend", "version", "cpu")


@dataclass(frozen=True)
class PlannedRecipe:
    """A site, what it is (see `TunedSite.signature`), and how it is executed."""

    site: str
    signature: str
    recipe: str


@dataclass(frozen=True)
class TuningPlan:
    """Every tunable site of a model with its recipe, and what it was measured on.

    `session` are the options of ONNX Runtime's sessions that were not as by default.
    """

    backend: str
    version: str
    cpu: str
    threads: int
    sites: tuple[PlannedRecipe, ...]
    session: Session = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """What the file holds."""
        where = {name: getattr(self, name) for name in (*_PLACE, "threads")}
        sites = [asdict(site) for site in self.sites]
        return {"schema": SCHEMA, **where, "session": dict(self.session), "sites": sites}

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
    if place.exists():
        require_file(place)
    try:
        if place.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MB")
        data = json.loads(place.read_bytes(), object_pairs_hook=_once_each)
        return _plan_of(data)
    except OSError as error:
        raise FileError(f"{place} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise FileError(
            f"{place} is no plan of groupfx ({reason}): 'groupfx tune --save-plan' writes one"
        ) from error


def _once_each(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Of a key that comes twice nobody knows which one counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, number in Counter(k for k, _ in pairs).items() if number > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found


def _plan_of(data: Any) -> TuningPlan:
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    texts = {name: data[name] for name in _PLACE}
    # Plans that were made before there were any have none.
    session = data.get("session", {})
    entries = data["sites"]
    if not isinstance(entries, list) or type(data["threads"]) is not int:
        raise ValueError("sites is no list, or threads no whole number")
    if not isinstance(session, dict):
        raise ValueError("session is no table of options by name")
    if not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("a site is no table of site, signature and recipe")
    fields = ("site", "signature", "recipe")
    sites = tuple(PlannedRecipe(*(entry[name] for name in fields)) for entry in entries)
    strings = [
        *texts.values(),
        *session.values(),
        *(text for site in sites for text in vars(site).values()),
    ]
    if not all(isinstance(text, str) for text in strings):
        raise ValueError("a name, a signature, a recipe or an option of the session is no text")
    names = Counter(site.site for site in sites)
    if len(names) < len(sites):
        raise ValueError(f"the site {names.most_common(1)[0][0]!r} is there twice")
    return TuningPlan(**texts, threads=data["threads"], sites=sites, session=session)


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
    if plan.session != here.session:
        there, own = (session_text(each) or "none" for each in (plan.session, here.session))
        notes.append(
            f"the plan was measured with other options of the session: {there}, and here {own}"
        )
    if left:
        notes.append(
            f"the plan fits {len(sites) - len(left)} of {len(sites)} sites; the others stay as "
            f"they are: {_few(left)}"
        )
        signatures = {site.name: site.signature for site in sites}
        other = next((entry for entry in plan.sites if entry.site in left), None)
        if other is not None:
            there, own = _apart(other.signature, signatures[other.site])
            notes.append(f"{other.site} was measured as {there}, and here it is {own}")
    here_too = {word for site in sites for word in (site.name, site.signature)}
    absent = [entry.site for entry in plan.sites if here_too.isdisjoint(vars(entry).values())]
    if absent:
        notes.append(f"the plan names sites that are not here, nor any like them: {_few(absent)}")
    return notes


def _apart(there: str, own: str) -> tuple[str, str]:
    """What is not the same in two signatures, in the order of their parts."""
    parts = there.split(", "), own.split(", ")
    if len(parts[0]) != len(parts[1]):
        return there, own
    differ = [pair for pair in zip(*parts, strict=True) if pair[0] != pair[1]]
    return ", ".join(pair[0] for pair in differ), ", ".join(pair[1] for pair in differ)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
