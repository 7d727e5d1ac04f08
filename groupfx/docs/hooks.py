"""What mkdocs calls while it builds: parts of pages that are made of code or of other files.

    <!-- generated: passes -->              a function of `generated`
    <!-- included: README.md#Figures -->    a file of the repository, or the section with that title

Whatever is said in two places would be wrong in one of them some day; so it is here once.
"""

from __future__ import annotations

import re
from typing import Any

from groupfx.docs import generated, included

_MARK = re.compile(r"^<!-- (generated|included): (\S+(?: \S+)*) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The text of a page with its parts in place."""
    return filled(markdown)


def filled(markdown: str) -> str:
    """`markdown` with every mark replaced. Raises KeyError or OSError where one leads nowhere."""

    def part(found: re.Match[str]) -> str:
        kind, name = found.groups()
        return generated.PARTS[name]() if kind == "generated" else included.text_of(name)

    return _MARK.sub(part, markdown)
