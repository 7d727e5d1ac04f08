"""Text of other files of the repository, with links that hold on the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Where a file of the repository is shown on the site.
_PAGES = {
    "groupfx/verify/PROOFS.md": "proofs.md",
    "groupfx/toolchains/PLINIO.md": "plinio.md",
}
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


def text_of(name: str) -> str:
    """A file of the repository, or after a `#` the section of that title, without the title."""
    path, _, title = name.partition("#")
    text = (ROOT / path).read_text(encoding="utf-8")
    return _linked(_section(text, title) if title else text, posixpath.dirname(path))


def _section(text: str, title: str) -> str:
    start = re.search(rf"^(#+) {re.escape(title)}\n", text, re.MULTILINE)
    if start is None:
        raise KeyError(f"there is no section {title!r}")
    rest = text[start.end() :]
    end = re.search(rf"^#{{1,{len(start[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def _linked(text: str, folder: str) -> str:
    """Links to pages of the site; what is no page is named by its path."""

    def link(found: re.Match[str]) -> str:
        words, target = found.groups()
        if "://" in target or target.startswith("#"):
            return found[0]
        path, _, anchor = target.partition("#")
        page = _PAGES.get(posixpath.normpath(posixpath.join(folder, path)))
        if page is None:
            return f"{words} (`{posixpath.normpath(posixpath.join(folder, path))}`)"
        return f"[{words}]({page}{'#' + anchor if anchor else ''})"

    return _LINK.sub(link, text)
