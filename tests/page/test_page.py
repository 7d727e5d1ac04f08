"""What a page holds: everything of the result, nothing of the machine, and nothing that runs."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import groupfx
from groupfx.errors import FileError, UsageError
from groupfx.learned.layers import learned_layers
from groupfx.nn import Flgc2d
from groupfx.page import MOST_BYTES, page_of, render, write_page
from groupfx.page.content import Page, SiteRow
from groupfx.report.prose import digits, told
from groupfx.rewriting import Result
from tests.cli.runs import grouped_model
from tests.page.pages import SHUFFLED, data_of, mixed, page, site, tags_of

EVIL = "</script><script>document.title = 'run'</script><img src=x onerror=alert(1)>"


def rewritten() -> Result:
    torch.manual_seed(3)
    return groupfx.rewrite(grouped_model(), (torch.randn(2, 6, 9, 11),))


@pytest.fixture(scope="module")
def result() -> Result:
    return rewritten()


def test_a_page_shows_every_site_and_why_others_were_left(result: Result) -> None:
    shown = page_of(result)
    rows = {row.name: row for row in shown.sites}
    assert list(rows) == ["stem", "wide", "deep"]
    assert [rows[name].tone for name in rows] == ["good", "good", "left"]
    assert rows["deep"].notes == tuple(s.reason for s in result.report.skipped)
    stem = rows["stem"]
    assert stem.structure is not None
    assert len(stem.structure.blocks) == 3
    # What the fx graphs hold: a convolution and its norm, and three branches of both.
    assert [p.label for p in stem.before.pieces] == ["Conv2d 6->15 /3, 3x3", "BatchNorm2d"]
    labels = [p.label for p in stem.after.pieces]
    assert labels.count("Conv2d 2->5, 3x3") == labels.count("BatchNorm2d") == 3
    assert labels[-1] == "cat"
    text = render(shown)
    for word in (*rows, "identical", *rows["deep"].notes, "Same function, checked in float64."):
        assert word in text


def test_the_same_result_gives_the_same_bytes_without_time_or_place(
    result: Result, tmp_path: Path
) -> None:
    for name, each in (("a.html", result), ("b.html", rewritten())):
        write_page(each, tmp_path / name, name="net.pt")
    first, second = ((tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second
    text = first.decode("utf-8")
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text
    assert str(Path(__file__).parents[2]) not in text
    assert not re.search(r"20\d\d-\d\d-\d\d|\d\d:\d\d", text)


def test_a_page_needs_no_network() -> None:
    text = render(mixed(30))
    assert "http" not in text.replace("http-equiv", "")
    tags = tags_of(text)
    assert not [a for _, a in tags if {"src", "srcset", "action", "data-src"} & a.keys()]
    assert {a["href"] for tag, a in tags if "href" in a} == {"#sites"}
    assert not [tag for tag, _ in tags if tag in ("link", "iframe", "object", "embed", "base")]
    style = text[text.index("<style>") : text.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style


@pytest.mark.parametrize(
    "fields",
    [
        {"name": EVIL},
        {"kind": EVIL},
        {"notes": (EVIL,), "tone": "left"},
        {"facts": ((EVIL, EVIL),)},
    ],
    ids=["name", "kind", "note", "fact"],
)
def test_no_text_of_a_model_becomes_a_part_of_the_page(fields: dict[str, object]) -> None:
    text = render(page([site(0, **fields)]))
    scripts = [a for tag, a in tags_of(text) if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    assert not [a for tag, a in tags_of(text) if tag == "img" or any(k[:2] == "on" for k in a)]
    kept = data_of(text)
    assert EVIL in [*kept["texts"], kept["rows"][0][0]]


def test_other_texts_are_escaped_as_well() -> None:
    base = mixed(1)
    grid = replace(base.grids[0], title=EVIL, rows=[(EVIL, EVIL)], tones=["bad"])
    text = render(
        replace(base, name=EVIL, lines=(EVIL,), notes=(EVIL,), verdict=EVIL, grids=(grid,))
    )
    assert len([1 for tag, _ in tags_of(text) if tag == "script"]) == 2
    assert "<img" not in text


def test_the_table_is_one_for_those_who_cannot_see() -> None:
    tags = tags_of(render(mixed(3)))
    names = [tag for tag, _ in tags]
    assert names.count("h1") == 1
    assert names.count("main") == 1
    assert ("html", {"lang": "en"}) in tags
    for tag, attributes in tags:
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
        if tag == "button":
            assert attributes.get("type") == "button"
        if tag == "svg":
            named = attributes.get("role") == "img" or attributes.get("aria-hidden") == "true"
            assert named, attributes
    opened = [a for tag, a in tags if tag == "button" and a.get("class") == "name"]
    assert len(opened) == 4  # three rows and the one to copy
    assert {a["aria-expanded"] for a in opened} == {"false"}


@pytest.mark.parametrize("count", [0, 1, 61, 1200], ids=str)
def test_rows_as_html_and_as_data_say_the_same(count: int) -> None:
    shown = mixed(count)
    text = render(shown)
    if not count:
        assert "There is no site to show." in text
        return
    data = data_of(text)
    texts, rows = data["texts"], data["rows"]
    assert [row[0] for row in rows] == [each.name for each in shown.sites]
    assert [row[2] for row in rows] == [each.tone for each in shown.sites]
    assert [texts[row[3]] for row in rows] == [each.verdict for each in shown.sites]
    written = re.findall(
        r'<bdi>([^<]*)</bdi></button>.*?<span class="ratio">(.*?)</span>', text, re.S
    )
    assert written[: min(count, 60)] == [(row[0], row[7]) for row in rows[:60]]


def test_many_sites_stay_small_and_the_wrong_ones_stay_on_the_page() -> None:
    masks = [replace(SHUFFLED, blocks=SHUFFLED.blocks[::order]) for order in (1, -1)]
    base = [site(0, structure=mask) for mask in masks]
    sites = [
        replace(base[k % 2], name=f"{'長' * 90}.{k}", notes=(f"a reason of its own: {k}",))
        for k in range(6000)
    ]
    sites[-1] = replace(sites[-1], tone="bad", verdict="MISMATCH", ratio=7.0)
    text = render(page(sites, tone="bad"))
    assert len(text.encode("utf-8")) < MOST_BYTES
    data = data_of(text)
    assert 2000 < len(data["rows"]) < len(sites)
    assert data["rows"][-1][0] == sites[-1].name
    # The worst has its drawings, whatever there is no room for.
    assert all(key >= 0 for key in data["rows"][-1][-1])
    assert f"{len(sites) - len(data['rows']):,} more are not on this page" in text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(0.0, "0"), (float("inf"), "∞"), (float("nan"), "NaN"), (None, ""), (1.18e4, "1.18e4")],
    ids=str,
)
def test_errors_of_every_kind_are_shown(ratio: float | None, text: str) -> None:
    row = data_of(render(page([site(0, ratio=ratio)])))["rows"][0]
    assert row[7] == text
    assert 0 <= row[8] <= 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("see /home/ann/nets/model.py:33 there", "see model.py:33 there"),
        (r"C:\Users\ann\net.onnx is large", "net.onnx is large"),
        ("no file ~/a b/net.pt, so", "no file net.pt, so"),
        ("../up/net.pt", "net.pt"),
        ("/tmp/pytest-of-ann/x", "x"),
        ("the operator Conv /layer1/conv/Conv: off", "the operator Conv /layer1/conv/Conv: off"),
        ("3 MB/s and 1/2", "3 MB/s and 1/2"),
        ("a\u202eb\x00\ud800", "a\\u202eb\\x00\\ud800"),
    ],
)
def test_prose_names_files_but_no_places(text: str, wanted: str) -> None:
    assert told(text) == wanted


def test_numbers_are_short() -> None:
    assert [digits(v) for v in (1.31e-7, 0.05, 1e10)] == ["1.31e-7", "0.05", "1e10"]


def test_a_name_that_is_no_text_is_written_out() -> None:
    text = render(page([site(0, name="a\ud800\u202eb\x00")]))
    text.encode("utf-8")
    assert "a\\ud800\\u202eb\\x00" in text


def test_a_page_that_cannot_be_written_leaves_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no-folder"):
        write_page(page(), tmp_path / "no-folder" / "page.html")
    with pytest.raises(UsageError, match="not a dict"):
        write_page({}, tmp_path / "page.html")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_checked_or_wrong_says_so(result: Result) -> None:
    def of(**fields: object) -> Page:
        sites = tuple(replace(s, **fields) for s in result.report.sites)  # type: ignore[arg-type]
        return page_of(replace(result.report, sites=sites, model=result.report.model))

    open_page = of(verdict=None)
    assert (open_page.tone, open_page.sites[0].tone) == ("open", "open")
    verdict = result.report.sites[0].verdict
    assert verdict is not None
    bad = of(verdict=replace(verdict, ok=False, identical=False, reason="its bias is another"))
    assert (bad.tone, bad.verdict) == ("bad", "NOT the same function.")
    row: SiteRow = bad.sites[0]
    assert (row.tone, row.verdict, row.ratio) == ("bad", "MISMATCH", float("inf"))
    assert ("wrong", "its bias is another") in row.facts


def test_a_layer_that_learned_its_groups_shows_them_in_any_form() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(Flgc2d(12, 10, 1, group_num=3), torch.nn.ReLU()).eval()
    (layer,) = learned_layers(net)
    (row,) = page_of(groupfx.rewrite(net, (torch.randn(2, 12, 4, 4),))).sites
    assert row.structure == layer.structure
    assert "dense" in row.after.text
    assert '<svg class=\\"mask\\"' in render(page([row])).replace("\\u003c", "<")
