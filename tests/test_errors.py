"""One line of an error, whatever it says."""

import pytest

from groupfx.errors import first_line, kind_and_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("no such layer", "no such layer"),
        ("\n  the first\nthe second", "the first"),
        ("", "ValueError"),
        (" \n", "ValueError"),
        ("a" * 300, "a" * 300),
        ("a" * 301, "a" * 300 + "..."),
    ],
    ids=["one-line", "two-lines", "nothing", "blank", "long", "too-long"],
)
def test_first_line(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line


def test_the_kind_is_said_once() -> None:
    assert kind_and_line(ValueError("no such layer\nor two")) == "ValueError: no such layer"
    assert kind_and_line(ValueError("\n")) == "ValueError"
