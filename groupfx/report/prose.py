"""Text for a reader elsewhere: without paths of this machine, and without what cannot be seen."""

from __future__ import annotations

import math
import re

# Of a path to a file of these kinds, the file's own name is left. Names of ONNX nodes begin with a
# slash as well, and end otherwise.
_ENDINGS = "py|pyc|pt|pt2|pth|onnx|npz|npy|bin|ckpt|safetensors|json|yaml|yml|data|so|csv|txt|html"
_FOLDERS = r"(?<![\w/])(?:~|\.{1,2}|[A-Za-z]:)?[\\/](?:[^\\/:*?\"<>|\n,;()]+[\\/])*"
_FILE = re.compile(rf"{_FOLDERS}([^\\/:*?\"<>|\n,;()\s]+\.(?:{_ENDINGS}))\b")
# And of any path of a user's, or of this session.
_OWN = re.compile(r"(?<![\w.])(?:/(?:home|Users|root|tmp)|[A-Za-z]:\\Users)[\\/][^\s,;:'\"()]*")


_EXPONENT = re.compile(r"e[+]?(-?)0*(\d+)$")


def told(text: str) -> str:
    """`text` for a reader elsewhere: of a path, the file's name alone."""
    short = _FILE.sub(lambda found: found[1], shown(text))
    return _OWN.sub(lambda found: re.split(r"[\\/]", found[0].rstrip("\\/"))[-1], short)


def shown(text: str) -> str:
    """`text` with what has no sign of its own, or turns the writing around, written out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def digits(value: float | None) -> str:
    """A measured number; `-` for none."""
    if value is None:
        return "-"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return _EXPONENT.sub(r"e\1\2", f"{value:.3g}")


def exact(value: float | None) -> str:
    """A number of a model with the digits of float32."""
    if value is None or not math.isfinite(value):
        return digits(value)
    return f"{value:.7g}"


def plural(count: int, thing: str) -> str:
    """`1 site`, `2 sites`, `2 branches`."""
    ending = "" if count == 1 else "es" if thing.endswith("ch") else "s"
    return f"{count:,} {thing}{ending}"
