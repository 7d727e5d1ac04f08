"""Colours that can be told apart from what they stand on, in light and in dark."""

import re
from itertools import product
from pathlib import Path

import pytest

import groupfx.page

STYLE = Path(groupfx.page.__file__).with_name("page.css").read_text("utf-8")
LEAST = 4.5  # WCAG 2.1, success criterion 1.4.3, for text of any size


def palettes() -> dict[str, dict[str, str]]:
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
    return {
        name: {key: _long(value) for key, value in re.findall(r"--([\w-]+): #(\w+)", text)}
        for name, text in (("light", light), ("dark", dark))
    }


def _long(text: str) -> str:
    return text if len(text) == 6 else "".join(letter * 2 for letter in text)


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_the_measure_is_that_of_the_standard() -> None:
    assert contrast("000000", "ffffff") == pytest.approx(21)
    assert contrast("777777", "ffffff") < LEAST < contrast("757575", "ffffff")


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_can_be_read(name: str) -> None:
    colours = palettes()[name]
    tones = ("good", "close", "bad", "open", "left")
    pairs = [
        *product(("ink", "soft", *tones), ("paper", "card")),
        ("ink", "wash"),
        ("soft", "wash"),
    ]
    pairs += [(tone, f"{tone}-wash") for tone in tones]
    faint = {pair: contrast(*(colours[key] for key in pair)) for pair in pairs}
    assert {pair: ratio for pair, ratio in faint.items() if ratio < LEAST} == {}
