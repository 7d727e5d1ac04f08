"""What tuning asks of a runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Program = Callable[[], Sequence[np.ndarray[Any, Any]]]
"""One run of a model on its inputs; gives the outputs."""


@dataclass(frozen=True)
class NodeTime:
    """A node of the graph that the runtime really runs: its tensors, and microseconds of a run."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    time: float


@dataclass(frozen=True)
class Profile:
    """What each node takes with the profiler on, and the whole with it off: microseconds."""

    nodes: tuple[NodeTime, ...]
    total: float


class Backend(Protocol):
    """A runtime. Its programs run on so many threads; what it raises is a GroupfxError.

    It takes ONNX graphs and arrays by the names of inputs, or modules of torch and example inputs.
    """

    name: str

    def require(self) -> None:
        """Raise MissingDependencyError where it is not installed."""

    def version(self) -> str:
        """Its version."""

    def clock(self, threads: int) -> Callable[[], float]:
        """Seconds that its programs take, apart from other processes where that can be."""

    def load(self, model: Any, feeds: Any, threads: int) -> Program:
        """The model, ready to run on `feeds`."""

    def profile(self, model: Any, feeds: Any, threads: int, seconds: float) -> Profile | None:
        """What each node takes, after running for about so long; None where nobody can say."""
