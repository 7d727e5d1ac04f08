"""How `--help` looks: short sections of options, and one real example at the end."""

import os
from collections import defaultdict
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

_DEFAULT_SECTION = "Options"


class Command(TyperCommand):
    """A command whose options are listed by the section that they name as their panel.

    The epilog is an example: one command a line, printed as it is.
    """

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line with MODEL instead of {MODEL}."""
        pieces = super().collect_usage_pieces(ctx)
        return [piece.replace("{", "").replace("}", "") for piece in pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The arguments, then the options, section by section."""
        _write_sections(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The example."""
        if self.epilog:
            formatter.write(f"\n{heading('Example')}:\n")
            formatter.write("".join(f"  {line}\n" for line in self.epilog.splitlines()))


class Group(TyperGroup):
    """The commands first, then the options, then an example."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The commands, then what holds for all of them."""
        self.format_commands(ctx, formatter)
        _write_sections(self, ctx, formatter)

    format_epilog = Command.format_epilog


def heading(text: str) -> str:
    """`text` in bold; what is written to no terminal loses it again."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, bold=True)


def _write_sections(command: TyperCommand | TyperGroup, ctx: Any, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is None:
            continue
        if isinstance(param, TyperArgument):
            sections["Arguments"].append((param.metavar or param.name, param.help or ""))
        else:
            panel = getattr(param, "rich_help_panel", None)
            sections[panel or _DEFAULT_SECTION].append(record)
    last = sections.pop(_DEFAULT_SECTION, [])
    for title, records in [*sections.items(), (_DEFAULT_SECTION, last)]:
        if records:
            with formatter.section(heading(title)):
                formatter.write_dl(records)
