"""Which axes of the values in a graph have other sizes for another batch, or for other images.

A shape of an example says nothing of that: of `[2, 49, 96]`, 49 may be channels or positions.
"""

from collections.abc import Collection, Iterable
from functools import cached_property
from itertools import islice

from torch import fx

from ..running.inputs import ExampleInputs
from ..verify.models import other_spatial
from .graphs import shapes_of_run

_OTHER_SIZES = 2

Axes = dict[str, frozenset[int]]


class VaryingAxes:
    """Told by runs of `module` on other inputs than `inputs`, which are made when first asked."""

    def __init__(self, module: fx.GraphModule, inputs: ExampleInputs | None) -> None:
        self._module, self._inputs = module, inputs

    def rows(self, node: fx.Node) -> Collection[int]:
        """Those that follow the batch; the first, where nothing tells."""
        return self._rows.get(node.name, (0,))

    def sized(self, node: fx.Node, rank: int) -> Collection[int]:
        """Those that follow spatial sizes; all but the first two of `rank`, where nothing tells."""
        return self._sized.get(node.name, range(2, rank))

    @property
    def takes_other_sizes(self) -> bool:
        """Whether a run on other spatial sizes ended well."""
        return bool(self._sized)

    @cached_property
    def _as_given(self) -> dict[str, tuple[int, ...]]:
        return {} if self._inputs is None else shapes_of_run(self._module, self._inputs)

    @cached_property
    def _rows(self) -> Axes:
        given = self._inputs
        batch = None if given is None else given.batch
        return {} if given is None or not batch else self._differing([given.with_batch(batch + 1)])

    @cached_property
    def _sized(self) -> Axes:
        given = self._inputs
        if given is None:
            return {}
        return self._differing(map(given.resized, other_spatial(given.spatial)))

    def _differing(self, others: Iterable[ExampleInputs]) -> Axes:
        """What differs in the first runs that go; empty without one."""
        runs = (shapes_of_run(self._module, other) for other in others)
        found = list(islice(filter(None, runs), _OTHER_SIZES))
        return {
            name: frozenset(
                axis
                for axis, size in enumerate(shape)
                if any(run[name][axis : axis + 1] != (size,) for run in found)
            )
            for name, shape in (self._as_given.items() if found else ())
        }
