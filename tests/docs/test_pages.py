"""The site: every code block is run, every part is there, and it builds without a warning."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import groupfx
from groupfx.docs import found, generated, hooks, included
from groupfx.passes import pass_names
from groupfx.schema import NAMES
from groupfx.targets import targets
from groupfx.testing import Adapter, Case, all_cases, conformance
from groupfx.testing.adapters import adapter_names

from .blocks import RUN, SILENT, blocks, run_page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "groupfx" / "docs"
PAGES = sorted(path.relative_to(DOCS / "pages") for path in DOCS.rglob("*.md"))
MARK = re.compile(r"^<!-- (generated|included): ", re.MULTILINE)

# How many blocks of a page are not run: each has its reason in front of it.
NOT_RUN = {"index.md": 1, "tutorials/compilers.md": 1, "tutorials/onnx-runtime.md": 1}
NOT_RUN |= {"conformance.md": 1, "tutorials/fleet.md": 1}


def text_of(page: Path) -> str:
    return (DOCS / "pages" / page).read_text(encoding="utf-8")


def with_code() -> list[Path]:
    """The pages that have a block to run."""
    return [page for page in PAGES if any(b.language in RUN for b in blocks(text_of(page)))]


def test_every_block_is_run_or_says_why_not() -> None:
    found: Counter[str] = Counter()
    for page in PAGES:
        for block in blocks(text_of(page)):
            assert block.language in (*RUN, *SILENT), f"{page}:{block.line}: {block.language}"
            found[str(page)] += block.reason is not None
    assert +found == NOT_RUN
    assert len(with_code()) >= 6


@pytest.mark.long
@pytest.mark.parametrize("page", with_code(), ids=str)
def test_a_page_prints_what_it_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    assert run_page(text_of(page), str(page)) > 0


WRONG_PAGES = {
    "output": ('```python\nprint(1)\n```\n```text title="prints"\n2\n```\n', "prints\n1"),
    "unseen": ("```python\nprint(1)\n```\n", "prints\n1"),
    "command": ("```console\n$ groupfx --version\nother\n```\n", "instead of\nother"),
    "exit code": ("```console\n$ groupfx passes nosuch\n```\n", "exit code 2"),
    "stranger": ("```console\n$ rm x\n```\n", "only groupfx is run here"),
    "language": ("```ruby\nputs 1\n```\n", "who runs ruby"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_PAGES.values(), ids=WRONG_PAGES.keys())
def test_a_page_that_shows_something_else_is_caught(text: str, message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        run_page(text, "page.md")


def test_blocks_share_a_namespace_and_dots_stand_for_anything() -> None:
    text = '```python\nx = 5\n```\n```python\nprint(x, "a b")\n```\n'
    text += '```text title="prints"\n5 ... b\n```\n'
    assert run_page(text, "page.md") == 2


def test_a_block_that_is_marked_is_not_run() -> None:
    text = "<!-- not run: it would fail -->\n```python\n1 / 0\n```\n"
    assert run_page(text, "page.md") == 0
    with pytest.raises(ZeroDivisionError):
        run_page(text.partition("\n")[2], "page.md")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_part_of_a_page_is_found(page: Path) -> None:
    filled = hooks.filled(text_of(page))
    assert not MARK.search(filled)
    assert len(filled) > 200


def test_a_part_that_is_not_there_is_an_error() -> None:
    for mark in ("generated: nosuch", "included: README.md#Nosuch", "included: nosuch.md"):
        with pytest.raises((KeyError, OSError)):
            hooks.filled(f"<!-- {mark} -->")


def test_the_catalogues_are_whole() -> None:
    passes = generated.passes()
    assert re.findall(r"^## (\S+)$", passes, re.MULTILINE) == [*pass_names()]
    assert "| `branches` | none | any |" in passes
    assert "| `depthwise` | `auto` | `auto`, `keep`, `split` |" in passes
    named = re.findall(r"^## (\S+)$", generated.target_facts(), re.MULTILINE)
    assert named == [target.name for target in targets()]
    commands = generated.commands()
    assert {"rewrite", "export", "validate", "tune", "conformance"} <= {
        *re.findall(r"^## groupfx (\S+)$", commands, re.MULTILINE)
    }
    assert "| `--input-shape SHAPE` |" in commands
    assert all(name in generated.schemas() for name in NAMES)


def test_every_public_name_has_its_place() -> None:
    text = text_of(Path("api.md"))
    names = {*groupfx.__all__} - {"GroupfxError", "__version__"}
    assert {name for name in names if f"::: groupfx.{name}\n" not in text} == set()


def test_what_was_found_is_of_this_kit_and_these_adapters() -> None:
    document = json.loads((DOCS / "conformance.json").read_text(encoding="utf-8"))
    names = {case.name for case in all_cases()}
    assert {tool["tool"] for tool in document["tools"]} <= {*adapter_names()}
    for tool in document["tools"]:
        told = [each["case"] for each in (*tool["wrong"], *tool["refused"])]
        assert {*told} <= names, f"{tool['tool']}: the kit has changed: run it again"
        assert len(tool["wrong"]) == sum(tool["counts"][word] for word in ("fail", "crash", "time"))


def test_what_is_written_down_of_a_run() -> None:
    def refuse(case: Case) -> list[dict[str, np.ndarray]]:
        raise ValueError("\x1b[31mno\x1b[0m  groups")

    refused = conformance(Adapter("picky", refuse), all_cases()[:3]).to_dict()
    (tool,) = found.condensed([{"tools": [refused]}])["tools"]
    assert tool["refused"] == [
        {"case": "grouped/1d-bias", "more": 2, "reason": "ValueError: no groups"}
    ]
    assert (tool["counts"]["refused"], tool["wrong"]) == (3, [])


def test_links_of_included_text_lead_to_pages_or_name_files() -> None:
    made = included._linked("[a](../verify/PROOFS.md#x) [b](x.py) [c](https://y)", "groupfx/tools")
    assert made == "[a](proofs.md#x) b (`groupfx/tools/x.py`) [c](https://y)"


@pytest.mark.long
def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    command = ("-m", "mkdocs", "build", "--strict", "-q", "-f", str(DOCS / "mkdocs.yml"))
    done = subprocess.run(
        [sys.executable, *command, "-d", str(tmp_path / "site")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages = [*(tmp_path / "site").rglob("*.html")]
    assert len(pages) >= len(PAGES)
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"(https?:)?//|<link[^>]+rel=\"stylesheet\"[^>]+https?:"
    )
    assert [str(page) for page in pages if loaded.search(page.read_text())] == []
