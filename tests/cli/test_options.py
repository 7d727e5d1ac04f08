"""A command's options are the fields of a dataclass, and of the dataclasses in it."""

import inspect
from dataclasses import dataclass

import typer
from typer.testing import CliRunner

from groupfx.cli.input.signature import argument, option, spread


@dataclass(frozen=True, kw_only=True)
class Sizes:
    height: int = option("--height", panel="Sizes", help="Of the picture.", default=5)
    width: int | None = option("--width", panel="Sizes", help="Of the picture.")


@dataclass(frozen=True, kw_only=True)
class Picture:
    name: str = argument("NAME", "What it is called.")
    sizes: Sizes
    copy: str | None = argument("COPY", "Another.", optional=True)
    large: bool = option("--large", panel="Sizes", help="Twice of it.", default=False)


def draw(options: Picture) -> int:
    """Draw it."""
    made.append(options)
    return 0


made: list[Picture] = []
runner = CliRunner()


def test_a_group_stands_for_its_fields_in_its_place() -> None:
    signature = inspect.signature(spread(draw))
    assert [*signature.parameters] == ["name", "height", "width", "copy", "large"]
    defaults = [parameter.default for parameter in signature.parameters.values()]
    assert defaults == [inspect.Parameter.empty, 5, None, None, False]


def test_what_is_given_arrives_in_the_group() -> None:
    made.clear()
    small = typer.Typer()
    small.command()(spread(draw))
    assert runner.invoke(small, ["a", "--width", "7", "--large"]).exit_code == 0
    assert made == [Picture(name="a", sizes=Sizes(height=5, width=7), copy=None, large=True)]
    assert runner.invoke(small, []).exit_code == 2
    assert "Draw it." in runner.invoke(small, ["--help"]).output
