"""A page as a browser opens it: rows, details, keyboard, widths, colours, and how long it takes."""

import re
from pathlib import Path

import pytest
from PIL import Image

from groupfx.page import write_page
from groupfx.page.content import Page
from tests.page import browser
from tests.page.pages import mixed, page, site

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        browser.BROWSER is None, reason="no Chromium here: apt-get install chromium"
    ),
]

EVIL = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
_TELL = "parent.postMessage(String({value}), '*');"


def written(folder: Path, shown: Page) -> Path:
    path = folder / "page.html"
    write_page(shown, path)
    return path


def test_the_first_wrong_site_is_open_and_the_table_is_whole(tmp_path: Path) -> None:
    text = browser.dom(written(tmp_path, mixed(30)))
    assert text.count('<tr class="site"') == 30 + 1  # and the one to copy
    opened = re.findall(r'aria-expanded="true" aria-controls="site-(\d+)"', text)
    assert opened == ["3"]
    body = text[text.index('id="site-3"') :]
    assert body.count("<svg") >= 3
    assert '<svg class="mask"' in body
    assert '<form id="tools" role="search">' in text  # shown: it needs scripts


def test_five_thousand_sites_open_in_two_seconds(tmp_path: Path) -> None:
    path = written(tmp_path, mixed(5000))
    taken = min(_opened_ms(browser.dom(path)) for _ in range(3))
    assert taken < 2000
    text = browser.dom(path)
    assert "60 of 5,000 shown" in text


def _opened_ms(text: str) -> int:
    found = re.search(r'data-opened-ms="(\d+)"', text)
    assert found is not None
    return int(found[1])


def test_nothing_of_a_name_runs(tmp_path: Path) -> None:
    shown = page([site(0, name=EVIL, tone="bad", notes=(EVIL,), facts=((EVIL, EVIL),))], name=EVIL)
    text = browser.dom(written(tmp_path, shown))
    assert 'id="site-0"' in text
    assert "<title>run</title>" not in text
    assert "<img" not in text.replace("&lt;img", "")[: text.index('id="data"')]


@pytest.mark.parametrize("width", [375, 768, 1600])
def test_no_width_needs_scrolling_to_the_side(tmp_path: Path, width: int) -> None:
    long = site(1, name="a" * 300, notes=("b" * 400,), tone="bad", verdict="MISMATCH")
    shown = mixed(12)
    path = written(tmp_path, Page(**{**vars(shown), "sites": (*shown.sites, long)}))
    code = (
        "document.querySelectorAll('.name').forEach((b) => { if (b.ariaExpanded !== 'true') "
        "b.click(); });" + _TELL.format(value="document.documentElement.scrollWidth")
    )
    assert browser.probed(path, code, width=width) == str(width)


_ACTS = {
    "find": (
        "const i = document.getElementById('find'); i.value = '段7.'; "
        "i.dispatchEvent(new Event('input'));",
        "1",
    ),
    "tones": ("document.querySelector('[data-tone=good]').click();", "24"),
    "order": (
        "const o = document.getElementById('order'); o.value = 'error'; "
        "o.dispatchEvent(new Event('change'));",
        "30",
    ),
}


@pytest.mark.parametrize("name", list(_ACTS))
def test_what_a_reader_asks_for_is_shown(tmp_path: Path, name: str) -> None:
    code, rows = _ACTS[name]
    value = "document.querySelectorAll('#rows .site').length"
    path = written(tmp_path, mixed(30))
    assert browser.probed(path, code + _TELL.format(value=value)) == rows
    if name == "order":
        first = "document.querySelector('#rows .site .chip').textContent"
        assert browser.probed(path, code + _TELL.format(value=first)) == "MISMATCH"


def test_a_name_is_opened_and_closed_by_its_button(tmp_path: Path) -> None:
    code = (
        "const b = document.querySelectorAll('#rows .name')[1]; b.focus(); b.click(); "
        "const was = b.ariaExpanded; b.click();"
    )
    told = "was + ' ' + b.ariaExpanded + ' ' + (document.activeElement === b)"
    path = written(tmp_path, mixed(5))
    assert browser.probed(path, code + _TELL.format(value=told)) == "true false true"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_follows_light_and_dark(tmp_path: Path, dark: bool) -> None:
    path, to = written(tmp_path, mixed(8)), tmp_path / "page.png"
    browser.picture(path, to, width=1000, height=700, dark=dark)
    with Image.open(to) as image:
        grey = image.convert("L")
        corner = grey.getpixel((3, 3))
    assert isinstance(corner, int)
    assert (corner < 60) == dark
    assert (corner > 230) == (not dark)
