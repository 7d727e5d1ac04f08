"""`groupfx conformance`: does a converter or a runtime compute grouped convolutions rightly?"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ...errors import FileError, MissingDependencyError, UsageError
from ...report.junit import JunitCase, Kind, junit_xml
from ...testing import Case, Conformance, all_cases, conformance
from ...testing.adapters import adapter_for, adapter_names, require_known
from ...testing.conformance.judging import Verdict
from ...testing.conformance.saving import save_cases
from ..input.conformance import ConformanceCommand
from ..input.files import check_distinct, check_folder, write_json, write_text
from ..text.conformance_text import show_conformance, show_tools
from ..text.screen import Screen

ALL = "all"
SCHEMA = "groupfx.conformance/1"
_JUNIT: dict[Verdict, Kind] = {
    "pass": "pass",
    "fail": "failure",
    "crash": "error",
    "time": "error",
    "refused": "skipped",
    "skipped": "skipped",
}
NOTHING_COMPARED = 4


def run_conformance(options: ConformanceCommand) -> int:
    """Run the cases on each tool, and show what came of it."""
    json, junit = options.told.json, options.junit
    check_distinct({"--json": json, "--junit": junit})
    check_folder(json, "--json")
    check_folder(junit, "--junit")
    if options.timeout <= 0:
        raise UsageError(f"--timeout {options.timeout:g}: give a number of seconds above 0")
    screen = Screen.of(options.told, junit)
    cases = _chosen(options)
    if options.show:
        show_tools(screen, {name: _installed(name) for name in adapter_names()}, cases)
    if options.save is not None:
        _save(options.save, cases, screen)
    if not options.tools:
        if options.show or options.save is not None:
            return 0
        raise UsageError("name a tool: --list shows those that there are adapters for")
    results = [_run(tool, cases, options, screen) for tool in _tools(options.tools, screen)]
    if json is not None:
        write_json(json, {"schema": SCHEMA, "tools": [result.to_dict() for result in results]})
    if junit is not None:
        write_text(junit, junit_xml("groupfx conformance", _junit(results)))
    return _code(results, strict=options.strict)


def _chosen(options: ConformanceCommand) -> tuple[Case, ...]:
    cases = all_cases()
    kinds = dict.fromkeys(case.kind for case in cases)
    for kind in options.kind or ():
        if kind not in kinds:
            raise UsageError(f"there is no kind {kind!r} of cases: choose of {', '.join(kinds)}")
    wanted, patterns = options.kind or kinds, options.case or ["*"]
    found = tuple(
        case
        for case in cases
        if case.kind in wanted and any(fnmatchcase(case.name, pattern) for pattern in patterns)
    )
    if not found:
        raise UsageError(f"no case fits {' or '.join(patterns)}: --save shows their names")
    return found


def _tools(given: Sequence[str], screen: Screen) -> list[str]:
    """The tools to run; of `all`, those that are installed."""
    tools: list[str] = []
    for tool in given:
        if tool != ALL:
            require_known(tool)
            tools.append(tool)
            continue
        for name in adapter_names():
            try:
                adapter_for(name).versions()
            except MissingDependencyError as error:
                screen.warn(f"skipped: {error}")
            else:
                tools.append(name)
    return list(dict.fromkeys(tools))


def _installed(name: str) -> str:
    try:
        versions = adapter_for(name).versions()
    except MissingDependencyError as error:
        return str(error)
    return ", ".join(f"{package} {number}" for package, number in versions.items())


def _run(
    tool: str, cases: Sequence[Case], options: ConformanceCommand, screen: Screen
) -> Conformance:
    with screen.work(tool, what="cases") as advance:
        result = conformance(tool, cases, seconds=options.timeout, progress=advance)
    show_conformance(screen, result)
    return result


def _save(folder: Path, cases: Sequence[Case], screen: Screen) -> None:
    try:
        save_cases(cases, folder)
    except OSError as error:
        raise FileError(f"--save {folder} cannot be written: {error.strerror or error}") from error
    screen.note(f"Wrote {len(cases)} cases to {folder}.")


def _junit(results: Sequence[Conformance]) -> list[JunitCase]:
    return [
        JunitCase(
            f"{result.tool}.{each.kind}", each.case, _JUNIT[each.verdict], each.reason, each.seconds
        )
        for result in results
        for each in result.judged
    ]


def _code(results: Sequence[Conformance], *, strict: bool) -> int:
    refused = any(result.total.counts["refused"] for result in results)
    if not all(result.ok for result in results) or (strict and refused):
        return 1
    return 0 if all(result.compared for result in results) else NOTHING_COMPARED
