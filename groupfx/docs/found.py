"""Write down what tools made of the conformance kit, for the page about it.

    groupfx conformance all --json all.json
    python groupfx/docs/found.py all.json [MORE.json ...]

writes `conformance.json` beside this file: of each tool its versions and counts, and what came out
wrong. Tools that cannot be installed side by side come from several runs.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_VERDICTS = ("pass", "fail", "refused", "crash", "time", "skipped")
_WRONG = ("fail", "crash", "time")
_LONGEST = 160
_COLOUR = re.compile(r"(\x1b|\\x1b)\[\d*m")


def condensed(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the page tells of the documents that `groupfx conformance --json` wrote."""
    tools = [_tool(tool) for document in documents for tool in document["tools"]]
    return {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "tools": tools}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    cases = tool["cases"]
    reasons: dict[str, list[str]] = {}
    for case in cases:
        if case["verdict"] == "refused":
            reasons.setdefault(_short(case["reason"]), []).append(case["case"])
    return {
        "tool": tool["tool"],
        "versions": tool["versions"],
        "counts": {word: sum(case["verdict"] == word for case in cases) for word in _VERDICTS},
        "wrong": [
            {key: _short(str(case[key])) for key in ("case", "verdict", "reason")}
            for case in cases
            if case["verdict"] in _WRONG
        ],
        "refused": [
            {"case": names[0], "more": len(names) - 1, "reason": reason}
            for reason, names in reasons.items()
        ],
    }


def _short(text: str) -> str:
    line = " ".join(_COLOUR.sub("", text).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


if __name__ == "__main__":
    given = [json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:]]
    written = Path(__file__).with_name("conformance.json")
    written.write_text(json.dumps(condensed(given), indent=1) + "\n", encoding="utf-8")
