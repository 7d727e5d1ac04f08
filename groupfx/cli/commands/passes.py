"""`groupfx passes`: each pass, its options, and what it refuses."""

import inspect
from typing import Any

from rich.text import Text

from ...passes import pass_class, pass_names
from ...targets import target_named, targets
from ..input.files import STDOUT, check_folder, write_json
from ..input.options import PassesCommand
from ..text.screen import Screen

SCHEMA = "groupfx.passes/1"


def run_passes(options: PassesCommand) -> int:
    """Show all passes, or one."""
    check_folder(options.json, "--json")
    names = list(pass_names()) if options.name is None else [options.name]
    entries = [_entry(name) for name in names]
    pipelines = {target.name: list(target.passes) for target in (target_named(None), *targets())}
    screen = Screen(data=options.json != STDOUT)
    for entry in entries:
        _show(screen, entry)
    if options.name is None:
        screen.line("What runs where no pass is named:")
        for target, passes in pipelines.items():
            when = "by default" if target == "default" else f"--target {target}"
            screen.paragraph(f"{when}: {', '.join(passes)}", indent="  ")
    if options.json is not None:
        document = {"schema": SCHEMA, "passes": entries, "pipelines": pipelines}
        write_json(options.json, document)
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
    screen.line(Text(entry["name"], style="bold"))
    screen.paragraph(entry["text"], indent="  ")
    screen.line()
    for option in entry["options"]:
        screen.paragraph(_form(option), indent="  ")
        screen.paragraph(option["text"], indent="      ")
    if entry["refuses"]:
        screen.line("  leaves as it is, with the reason in the report:")
        for refusal in entry["refuses"]:
            screen.paragraph(f"- {refusal}", indent="      ")
    screen.line()


def _form(option: dict[str, Any]) -> str:
    values = "|".join(option["choices"]) or "..."
    if option["several"]:
        return f"{option['name']}={values}  (may be given several times)"
    default = "none" if option["default"] is None else option["default"]
    return f"{option['name']}={values}  (default: {default})"
