"""What tuning asks of a runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from ...errors import UsageError

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

    @property
    def session(self) -> Mapping[str, str]:
        """Options of a user, under which all of its programs run."""

    def with_session(self, given: object, threads: int) -> Self:
        """It with the options `given`; itself where that is None.

        Raises UsageError for what is no option of it, or does not go with so many threads.
        """

    def require(self) -> None:
        """Raise MissingDependencyError where it is not installed."""

    def version(self) -> str:
        """Its version."""

    def clock(self, threads: int) -> Callable[[], float]:
        """Seconds that its programs take, apart from other processes where that can be."""

    def packed(self, model: Any) -> Any:
        """The model as `load` and `profile` take it too: what is loaded several times is made once.

        It holds the weights a second time.
        """

    def load(self, model: Any, feeds: Any, threads: int) -> Program:
        """The model, ready to run on `feeds`."""

    def profile(self, model: Any, feeds: Any, threads: int, seconds: float) -> Profile | None:
        """What each node takes, after running for about so long; None where nobody can say."""


class WithoutSessions:
    """A backend that takes no options of a user's session."""

    name: str

    @property
    def session(self) -> Mapping[str, str]:
        """None."""
        return {}

    def with_session(self, given: object, threads: int) -> Self:
        """Itself. Raises UsageError where options are given."""
        if given:
            raise UsageError(
                f"the backend {self.name} has no sessions of ONNX Runtime: session= and --session "
                "are for onnxruntime"
            )
        return self
