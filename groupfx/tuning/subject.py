"""What is tuned: a model whose sites can be executed in several ways; and that of an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir

from ..plan.machine import Machine
from .backends import Profile
from .backends.backend import Feeds
from .plan_file import fits_blocks
from .processor import cpu_name
from .profile import owners, site_times
from .sites import TunedSite, expected_of, tunable_sites, with_recipes
from .variants import SiteChoices, site_choices


class Subject(Protocol):
    """A model, inputs for it, and its sites; models and inputs are what its backends take.

    `host` is whether the CPU computes, `processor` what computes.
    """

    @property
    def sites(self) -> Sequence[TunedSite]: ...

    @property
    def feeds(self) -> Any: ...

    @property
    def host(self) -> bool: ...

    @property
    def processor(self) -> str: ...

    def made(self, recipes: Mapping[str, str], *, alone: bool = False) -> Any:
        """The model with sites executed by the recipes of their names, the others untouched.

        What a profile is taken of has each site `alone`: nothing is shared with its neighbours.
        """

    def fits(self, site: TunedSite, recipe: str) -> None:
        """Raise UsageError where `recipe` does not fit `site`."""

    def choices(self, machine: Callable[[], Machine]) -> Sequence[SiteChoices]:
        """What is worth trying at each site; `machine` probes what ONNX Runtime does here."""

    def times(self, made: Any, profile: Profile) -> Mapping[str, float]:
        """Microseconds of each site in the profile of what `made` gave."""


@dataclass(frozen=True)
class GraphSubject:
    """An ONNX graph, which is not changed."""

    model: ir.Model
    feeds: Feeds
    sites: tuple[TunedSite, ...]
    host: bool = True

    @property
    def processor(self) -> str:
        return cpu_name()

    @classmethod
    def of(cls, model: ir.Model, feeds: Feeds) -> tuple[GraphSubject, tuple[str, ...]]:
        """And the names of sites whose sizes nobody knows."""
        shapes = {name: array.shape for name, array in feeds.items()}
        sites, unknown = tunable_sites(model, shapes)
        return cls(model, feeds, sites), unknown

    def made(self, recipes: Mapping[str, str], *, alone: bool = False) -> ir.Model:
        return with_recipes(self.model, recipes, alone=alone)

    def fits(self, site: TunedSite, recipe: str) -> None:
        fits_blocks(site, recipe)

    def choices(self, machine: Callable[[], Machine]) -> Sequence[SiteChoices]:
        found = machine()
        expected = expected_of(self.model, self.feeds, found)
        return [
            site_choices(site, found, expected.get(site.name, site.untouched))
            for site in self.sites
        ]

    def times(self, made: ir.Model, profile: Profile) -> Mapping[str, float]:
        return site_times(profile, owners(made, [site.name for site in self.sites]))
