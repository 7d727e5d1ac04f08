"""A pass over a whole graph at once: where the channels of its tensors lie."""

from abc import abstractmethod
from typing import Any

from ..folding.fold import Fold
from ..folding.problem import Problem
from .pass_ import Pass, Rewritten, Skip, name_matches
from .report import SkippedSite
from .site import Site


class GraphPass(Pass[Any]):
    """A pass that has no sites. It says in integers what becomes of a graph; both realms do it."""

    @abstractmethod
    def plan_graph(self, problem: Problem) -> Fold:
        """What is to be done to the graph that `problem` was read from."""

    def left(self, fold: Fold) -> tuple[SkippedSite, ...]:
        """The permutations that the option `only` names and that stay, with the reason."""
        named = getattr(self, "only", ())
        return tuple(
            SkippedSite(kept.name, "permutation", self.pass_name(), kept.reason)
            for kept in fold.kept
            if name_matches(kept.name, named)
        )

    @classmethod
    def works_on_onnx(cls) -> bool:
        """Its plan takes nothing of torch."""
        return True

    def match(self, site: Site) -> Skip:
        """It has no sites."""
        return Skip(f"{self.pass_name()} looks at the whole graph")

    def rewrite(self, site: Site, description: Any) -> Rewritten:
        """It has no sites."""
        raise NotImplementedError(f"{self.pass_name()} has no sites")
