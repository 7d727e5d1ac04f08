"""Run the command line in this process, and small models to run it on."""

import json
import sys
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

from groupfx.cli import main
from groupfx.passes import SplitGroupedConv
from groupfx.rewriting import Skip
from groupfx.schema import schema

# What a grouped model takes: prime numbers, and small, so that a run takes a fraction of a second.
SHAPE = "2,6,9,11"
# Where colours, widths and completion come from, other than the terminal itself.
STEERING = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM", "TTY_COMPATIBLE")


@dataclass(frozen=True)
class Run:
    """What a command left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The cells of each line of stdout: columns are two spaces apart or more."""
        lines = [line.strip() for line in self.out.splitlines()]
        return [[c.strip() for c in line.split("  ") if c.strip()] for line in lines]

    def row(self, first: str) -> list[str]:
        """The one row whose first cell is `first`."""
        (found,) = [row for row in self.rows if row and row[0] == first]
        return found


class Cli:
    """The command line in the current folder."""

    def __init__(
        self,
        capsys: pytest.CaptureFixture[str],
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Go to `folder`, and forget what in this environment steers the output."""
        self._capsys = capsys
        monkeypatch.chdir(folder)
        for name in STEERING:
            monkeypatch.delenv(name, raising=False)

    def __call__(self, *argv: object) -> Run:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in argv])
        written = self._capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Run(left.value.code, written.out, written.err)


def grouped_model() -> nn.Sequential:
    """Three convolutions: grouped with its BatchNorm, depthwise, depthwise with multiplier."""
    layers = {
        "stem": nn.Conv2d(6, 15, 3, groups=3, padding=1),
        "norm": nn.BatchNorm2d(15),
        "relu": nn.ReLU(),
        "deep": nn.Conv2d(15, 15, 3, groups=15, bias=False),
        "wide": nn.Conv2d(15, 30, 1, groups=15),
        "head": nn.Conv2d(30, 7, 1),
    }
    return nn.Sequential(OrderedDict(layers))


def dense_model() -> nn.Sequential:
    """A model without groups."""
    return nn.Sequential(nn.Conv2d(6, 5, 3), nn.ReLU())


def blind_model() -> nn.Sequential:
    """A grouped convolution behind which a BatchNorm lets nothing through."""
    model = nn.Sequential(nn.Conv2d(6, 15, 3, groups=3), nn.ReLU(), nn.BatchNorm2d(15))
    nn.init.zeros_(model[2].weight)
    return model


def save(path: Path, model: nn.Module) -> Path:
    """Pickle `model` to `path`."""
    torch.save(model, path)
    return path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with what is in it; None for a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


class SwappedGroups(SplitGroupedConv):
    """A split that is wrong on purpose: each branch reads the channels of another group."""

    def match(self, site):  # type: ignore[no-untyped-def]
        found = super().match(site)
        if not isinstance(found, Skip):
            object.__setattr__(found, "inputs", tuple(reversed(found.inputs)))
        return found


class Printing(nn.Module):
    """A model that talks, and warns, in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 15, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        sys.stdout.write("a word from the model\n")
        warnings.warn("a worry of the model", UserWarning, stacklevel=2)
        return self.conv(x)


def strict(found: Any) -> Any:
    """A schema that lets no key through that it does not name."""
    if isinstance(found, list):
        return [strict(part) for part in found]
    if not isinstance(found, Mapping):
        return found
    closed = {key: strict(value) for key, value in found.items()}
    if closed.get("type") == "object" and "properties" in closed and "anyOf" not in closed:
        closed.setdefault("additionalProperties", False)
    return closed


def check_json(text: str, name: str) -> dict[str, Any]:
    """Parse `text` and hold it to the schema called `name`, nothing left out, nothing added."""
    document: dict[str, Any] = json.loads(text, parse_constant=_no_constant)
    assert document["schema"] == name
    jsonschema.validate(document, strict(schema(name)))
    return document


def _no_constant(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")
