"""The options of `groupfx conformance`."""

from dataclasses import dataclass
from pathlib import Path

from .options import Told
from .signature import argument, option

_CASES = "Which cases"
_OUTPUT = "Output"


@dataclass(frozen=True, kw_only=True)
class ConformanceCommand:
    """`groupfx conformance`."""

    tools: list[str] | None = argument(
        "TOOL",
        "An adapter by name, or 'all' that are installed; one of yours as module:attribute or "
        "file.py:attribute; or a command line: 'tool {model} {inputs} {outputs}' for a runtime, "
        "'tool {model} {out}' for a converter.",
        optional=True,
    )
    kind: list[str] | None = option(
        "--kind", panel=_CASES, metavar="KIND", help="Cases of this kind only. May be repeated."
    )
    case: list[str] | None = option(
        "--case",
        panel=_CASES,
        metavar="PATTERN",
        help="Cases whose names fit this pattern, such as 'transposed/2d-*'. May be repeated.",
    )
    timeout: float = option(
        "--timeout",
        panel=_CASES,
        metavar="SECONDS",
        default=20.0,
        help="The most that a case gets.",
    )
    strict: bool = option(
        "--strict", panel=_CASES, default=False, help="Count a refusal as a failure."
    )
    show: bool = option(
        "--list", panel=_OUTPUT, default=False, help="List the tools and the kinds of cases."
    )
    save: Path | None = option(
        "--save",
        panel=_OUTPUT,
        metavar="DIR",
        help="Write the cases into this folder: a model, its inputs, its answers and their bounds.",
    )
    junit: Path | None = option(
        "--junit", panel=_OUTPUT, metavar="FILE", help="Write the results as JUnit XML."
    )
    told: Told
