"""`groupfx passes`: each pass, its options, and what it refuses."""

import inspect
from pathlib import Path
from typing import Any

from ..passes import PASSES, PIPELINES, pass_class
from .files import STDOUT, check_folder, json_text, write_text
from .screen import Screen
from .table import Column

SCHEMA = "groupfx.passes/1"


def run_passes(name: str | None, json: Path | None) -> int:
    """Show all passes, or one."""
    if json is not None:
        check_folder(json, "--json")
    names = list(PASSES) if name is None else [name]
    entries = [_entry(one) for one in names]
    pipelines = {target: list(passes) for target, passes in PIPELINES.items()}
    screen = Screen(data=json != STDOUT)
    for entry in entries:
        _show(screen, entry)
    if name is None:
        screen.line("What runs where no pass is named:")
        rows = [
            ("by default" if target == "default" else f"--target {target}", ", ".join(passes))
            for target, passes in pipelines.items()
        ]
        for left, right in rows:
            screen.paragraph(f"{left}: {right}", indent="  ")
    if json is not None:
        document = {"schema": SCHEMA, "passes": entries, "pipelines": pipelines}
        write_text(json, json_text(document))
    return 0


def _entry(name: str) -> dict[str, Any]:
    """One pass as plain data."""
    kind = pass_class(name)
    return {
        "name": name,
        "text": (inspect.getdoc(kind) or "").partition("\n")[0],
        "options": [
            {
                "name": option.name,
                "default": option.default,
                "choices": list(option.choices),
                "several": isinstance(option.default, tuple),
                "text": option.text,
            }
            for option in kind.options()
        ],
        "refuses": list(getattr(kind, "refuses", ())),
    }


def _show(screen: Screen, entry: dict[str, Any]) -> None:
    screen.line(entry["name"])
    screen.paragraph(entry["text"], indent="  ")
    if entry["options"]:
        screen.line()
        rows = [(f"  {_form(option)}", _text(option)) for option in entry["options"]]
        screen.table([Column("  option"), Column("")], rows)
    if entry["refuses"]:
        screen.line()
        screen.line("  leaves as it is, with the reason in the report:")
        for refusal in entry["refuses"]:
            screen.paragraph(f"- {refusal}", indent="  ")
    screen.line()


def _form(option: dict[str, Any]) -> str:
    if option["choices"]:
        return f"{option['name']}={'|'.join(option['choices'])}"
    return f"{option['name']}=..."


def _text(option: dict[str, Any]) -> str:
    if option["several"]:
        return f"{option['text']}; may be given several times"
    return f"{option['text']}; default {option['default']}"
