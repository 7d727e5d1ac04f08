"""Results as JUnit XML, which build servers show: one suite, a case for each result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

Kind = Literal["pass", "failure", "error", "skipped"]


@dataclass(frozen=True)
class JunitCase:
    """One result; `message` says why it is no pass."""

    group: str
    name: str
    kind: Kind = "pass"
    message: str = ""
    seconds: float = 0.0


def junit_xml(suite: str, cases: Sequence[JunitCase]) -> str:
    """A document with one suite. Characters that XML does not know are left out."""
    counts = {
        kind: sum(case.kind == kind for case in cases) for kind in ("failure", "error", "skipped")
    }
    root = ElementTree.Element("testsuites")
    top = ElementTree.SubElement(
        root,
        "testsuite",
        name=_known(suite),
        tests=str(len(cases)),
        failures=str(counts["failure"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"]),
        time=f"{sum(case.seconds for case in cases):.3f}",
    )
    for case in cases:
        names = {"classname": _known(case.group), "name": _known(case.name)}
        element = ElementTree.SubElement(top, "testcase", names, time=f"{case.seconds:.3f}")
        if case.kind != "pass":
            ElementTree.SubElement(element, case.kind, message=_known(case.message))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _known(text: str) -> str:
    return "".join(
        c
        for c in text
        if c in "\t\n" or (c >= " " and not "\ud800" <= c <= "\udfff" and c < "\ufffe")
    )
