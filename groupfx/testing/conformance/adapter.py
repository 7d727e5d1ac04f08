"""What the kit asks of a tool: outputs for a case, or a word why there are none.

An adapter is a name, the packages that it needs, and a function from a case to its outputs. For a
runtime that function is `outputs_by_name` around one run; for a converter, `converted` around what
makes one ONNX model of another. Whatever a tool raises is a refusal: it said no, and computed
nothing wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import onnx

from ...errors import MissingDependencyError
from ..kit import Case
from ..kit.known import Array

Outputs = Sequence[Mapping[str, Array]]
"""The outputs by name, for each set of inputs of a case."""


class WrongResult(Exception):
    """What came out is no answer: a file that cannot be run, another number of outputs."""


class NotJudged(Exception):
    """A case that cannot be run here even as it is, so that nobody can tell."""


class Crashed(Exception):
    """A process of the tool died."""


@dataclass(frozen=True)
class Adapter:
    """A tool; `run` may raise anything, and may end or hang the process."""

    name: str
    run: Callable[[Case], Outputs]
    packages: tuple[str, ...] = ()
    takes: Callable[[Case], bool] = lambda case: True

    def versions(self) -> dict[str, str]:
        """The version of each package. Raises MissingDependencyError where one is missing."""
        return {package: _version(package, self.name) for package in self.packages}


@dataclass(frozen=True)
class Told:
    """What a tool says of itself: `takes` are the names of the cases that it is for."""

    name: str
    versions: Mapping[str, str]
    takes: frozenset[str]

    @classmethod
    def by(cls, adapter: Adapter, cases: Iterable[Case]) -> Told:
        """What an adapter says. Raises `MissingDependencyError`."""
        takes = frozenset(case.name for case in cases if adapter.takes(case))
        return cls(adapter.name, adapter.versions(), takes)


def _version(package: str, tool: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            f"{tool} needs {package}, which is not installed: pip install {package}"
        ) from error


def outputs_by_name(case: Case, run: Callable[[Mapping[str, Array]], Sequence[Array]]) -> Outputs:
    """Run every set of inputs; `run` gives the outputs in order."""
    return [_named(case.program.outputs, run(feeds)) for feeds in case.feeds]


def _named(names: Sequence[str], values: Sequence[Array]) -> dict[str, Array]:
    if len(values) != len(names):
        raise WrongResult(f"{len(values)} outputs instead of {len(names)}")
    return dict(zip(names, values, strict=True))


def converted(
    convert: Callable[[onnx.ModelProto], onnx.ModelProto],
) -> Callable[[Case], Outputs]:
    """The run of a converter: what it makes of a case, in ONNX Runtime without optimisations."""

    def run(case: Case) -> Outputs:
        given = onnx.ModelProto()
        given.CopyFrom(case.onnx)
        return run_converted(case, convert(given).SerializeToString())

    return run


def run_converted(case: Case, model: bytes) -> Outputs:
    """What a converter wrote, run. Raises WrongResult; NotJudged where the case does not run."""
    from ..adapters.onnx_runtime import run_onnx

    try:
        return run_onnx(case, model, "off")
    except Exception as error:
        try:
            run_onnx(case, case.onnx.SerializeToString(), "off")
        except Exception as original:
            raise NotJudged(f"ONNX Runtime does not run it as it is: {original}") from original
        raise WrongResult(f"ONNX Runtime cannot run what it wrote: {error}") from error
