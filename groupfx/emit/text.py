"""Names, lines and the finished text of a file.

Names come from whoever built the model, and a name is text: only plain ASCII identifiers are
written as such, all else goes into quotes. Templates give the order of a file; ruff sets its text,
sorts its imports and drops those that nothing uses.
"""

from __future__ import annotations

import builtins
import keyword
import subprocess
import textwrap
from collections import defaultdict
from collections.abc import Collection, Sequence
from importlib import resources
from typing import Any

import jinja2
from ruff import find_ruff_bin

from ..errors import RewriteError
from ..rewriting import Result
from ..version import __version__

_IMPORTS = (
    "import copy, math, operator, torch",
    "import torch.nn.functional as F",
    "from collections.abc import Callable, Sequence",
    "from math import inf, nan",
    "from torch import Tensor, device, nn",
    "from torch.overrides import TorchFunctionMode",
    "from typing import Any",
)
# What code of a file calls itself; no argument and no class may be called so.
RESERVED = frozenset(
    (
        *("copy", "math", "operator", "inf", "nan", "Sequence", "Callable", "super", "self"),
        *("torch", "F", "Tensor", "device", "nn", "Any", "TorchFunctionMode"),
    )
)


def is_name(text: object) -> bool:
    """Whether `text` can be written as an identifier, inside a class too.

    Python turns `__name` inside a class into something else, and compares other scripts after
    normalising them.
    """
    name = text if isinstance(text, str) else ""
    plain = name.isascii() and name.isidentifier() and not name.startswith("__")
    return plain and not keyword.iskeyword(name)


def free(wish: str, taken: Collection[str]) -> str:
    """`wish`, with a number where something else is called so."""
    numbered = (f"{wish}{count}" for count in range(2, len(taken) + 3))
    known = {*taken, *RESERVED, *dir(builtins)}
    return next(name for name in (wish, *numbered) if name not in known)


def attribute(owner: str, name: str) -> str:
    """`owner.name`, or `getattr(owner, "name")` where the name is no identifier."""
    return f"{owner}.{name}" if is_name(name) else f"getattr({owner}, {name!r})"


def one_line(text: str) -> str:
    """`text` for a comment or a docstring: on one line, and unable to end it."""
    plain = text.isascii() and text.isprintable() and not {'"', "\\"} & {*text}
    return text if plain else ascii(text).replace("\\", "/").replace('"', "'")


def told(result: Result, notes: Sequence[str] = ()) -> list[str]:
    """What each rewritten convolution was, and is, equal ones together; and these notes."""
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    for site in result.report.sites:
        names[site.before, site.after].append(site.name)
    sites = [f"{', '.join(where)}: {before} -> {after}" for (before, after), where in names.items()]
    whole = [*(sites or ["No convolution in it was rewritten."]), *map("Note: {}.".format, notes)]
    return [
        line
        for text in whole
        for line in textwrap.wrap(one_line(text), 96, subsequent_indent="    ")
    ]


def finished(template: str, **parts: Any) -> str:
    """The text of a file, formatted; of the usual imports it has those that it uses."""
    text = resources.files(__package__).joinpath(template).read_text("utf-8")
    fields = jinja2.Template(
        text, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    imports = "\n".join((*_IMPORTS, *parts["layers"].imports))
    text = fields.render(version=__version__, imports=imports, **parts)
    text = text.encode("ascii", "backslashreplace").decode() + "\n"
    try:
        compile(text, "the emitted file", "exec")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise RewriteError(f"the model cannot be written as Python: {error}") from error
    text = _ruff("check", "--fix", "--quiet", "--select", "I,F401", text=text)
    return _ruff("format", "--quiet", text=text)


def _ruff(*command: str, text: str) -> str:
    options = ("--isolated", "--no-cache", "--line-length", "100", "--stdin-filename")
    run = subprocess.run(
        [find_ruff_bin(), *command, *options, "emitted.py", "-"],
        input=text,
        stdout=subprocess.PIPE,
        check=True,
        encoding="utf-8",
    )
    return run.stdout
