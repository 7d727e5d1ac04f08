"""A pass over several convolutions at once, which stand side by side in a graph."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from ..parallel.planning import Unequal
from .pass_ import Pass, Rewritten, Skip
from .site import Site


class RegionPass(Pass[Any]):
    """A pass whose sites are concatenations of convolutions; both realms find and merge them."""

    unequal: Unequal = "keep"
    """what becomes of branches whose groups are of several sizes"""

    @abstractmethod
    def declines(self, names: Sequence[str]) -> str | None:
        """Why the options leave branches with these names alone, or None."""

    @classmethod
    def works_on_onnx(cls) -> bool:
        """It says what is to be done in integers."""
        return True

    def match(self, site: Site) -> Skip:
        """No convolution alone is a site of it."""
        return Skip(f"{self.pass_name()} looks at several convolutions at once")

    def rewrite(self, site: Site, description: Any) -> Rewritten:
        """No convolution alone is a site of it."""
        raise NotImplementedError(f"{self.pass_name()} has no sites of one convolution")
