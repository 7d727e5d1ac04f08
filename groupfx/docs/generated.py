"""Parts of pages that are made of the code: catalogues of passes, rules, targets and commands."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from groupfx.cli.app import app
from groupfx.files import archive
from groupfx.folding.rules import as_table
from groupfx.passes import pass_class, pass_names
from groupfx.schema import NAMES, schema
from groupfx.targets import Fact, Target, target_named, targets
from groupfx.testing import all_cases

_CONFORMANCE = Path(__file__).with_name("conformance.json")


def passes() -> str:
    """Every pass: what it does, the graph before and after, its options, what it leaves."""
    return "\n\n".join(_pass(name) for name in pass_names())


def _pass(name: str) -> str:
    kind = pass_class(name)
    module = inspect.getmodule(kind)
    assert module is not None
    _, _, algebra = (inspect.getdoc(module) or "").partition("\n\n")
    lines = [f"## {name}", "", f"**`{kind.__name__}`**: {inspect.getdoc(kind)}", ""]
    lines += ["```text", algebra.rstrip(), "```", ""]
    options = kind.options()
    if options:
        rows = [(f"`{o.name}`", _default(o.default), _values(o), o.text) for o in options]
        lines += [_table(("option", "default", "values", "what"), rows), ""]
    refuses = getattr(kind, "refuses", ())
    if refuses:
        lines += ["Left as it is, with the reason in the report:", ""]
        lines += [f"- {refusal}" for refusal in refuses]
    return "\n".join(lines)


def _default(value: Any) -> str:
    if value is None or value == ():
        return "none"
    return f"`{value}`"


def _values(option: Any) -> str:
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    return "any, several times" if isinstance(option.default, tuple) else "any"


def pipelines() -> str:
    """What runs by default and for each target."""
    found = (target_named(None), *targets())
    rows = [(f"`{t.name}`", ", ".join(f"`{p}`" for p in t.passes) or "none") for t in found]
    return _table(("target", "passes, in order"), rows)


def target_facts() -> str:
    """Every fact of every target, with its source."""
    return "\n\n".join(_target(target) for target in targets())


def _target(target: Target) -> str:
    several = bool(target.methods)
    rows = [
        (
            fact.topic,
            *([", ".join(fact.methods) or "all"] if several else []),
            fact.verdict,
            _when(fact),
            fact.text,
            _source(fact),
        )
        for fact in target.facts
    ]
    titles = ("topic", *(["method"] if several else []), "verdict", "where", "what", "source")
    head = f"## {target.name}\n\n{target.title}, last gone through on {target.date}.\n\n"
    return head + _table(titles, rows)


def _when(fact: Fact) -> str:
    given = [(each.name, getattr(fact.where, each.name)) for each in fields(fact.where)]
    said = (f"{name.replace('_', ' ')} {_plain(value)}" for name, value in given)
    return "; ".join(
        text for text, (_, value) in zip(said, given, strict=True) if value not in (None, ())
    )


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return " or ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _source(fact: Fact) -> str:
    linked = re.sub(r"https?://[^\s,;]+", r"<\g<0>>", fact.source)
    return f"{linked} ({fact.version}), {fact.date}"


def commands() -> str:
    """Every command with its arguments and options, as the command line declares them."""
    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    context = typer.Context(command, info_name=f"groupfx {name}")
    usage = " ".join([f"groupfx {name}", *command.collect_usage_pieces(context)])
    text = inspect.cleandoc(command.help or "").replace("\n\n", "\n\n")
    lines = [f"## groupfx {name}", "", text, "", "```text", usage, "```", ""]
    if command.epilog:
        lines += ["For example:", "", "```text", *command.epilog.splitlines(), "```", ""]
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        is_option = parameter.param_type_name == "option"
        panel = getattr(parameter, "rich_help_panel", None) or "Options"
        label = record[0] if is_option else parameter.metavar or parameter.name
        said = record[1] if is_option else parameter.help
        sections.setdefault(panel if is_option else "Arguments", []).append((f"`{label}`", said))
    for panel, rows in sections.items():
        lines += [_table((panel, ""), rows), ""]
    return "\n".join(lines)


def file_format() -> str:
    """The table of our own file."""
    return inspect.getdoc(archive) or ""


def schemas() -> str:
    """The JSON documents that commands write."""
    rows = [(f"`{name}`", schema(name)["title"]) for name in NAMES]
    return _table(("`schema`", "what it tells"), rows)


def kinds() -> str:
    """The kinds of cases of the kit."""
    cases = all_cases()
    found = dict.fromkeys(case.kind for case in cases)
    counted = [f"`{kind}` {sum(case.kind == kind for case in cases)}" for kind in found]
    with_torch = sum(case.torch() is not None for case in cases)
    return f"{', '.join(counted)}: {len(cases)} in all, {with_torch} of them as torch models too."


def conformance() -> str:
    """What tools made of the kit when they were last run."""
    document: Mapping[str, Any] = json.loads(_CONFORMANCE.read_text(encoding="utf-8"))
    words = ("pass", "fail", "refused", "crash", "time", "skipped")
    rows = [
        (
            f"`{tool['tool']}`",
            ", ".join(f"{name} {number}" for name, number in tool["versions"].items()),
            *(str(tool["counts"][word] or "") for word in words),
        )
        for tool in document["tools"]
    ]
    wrong = [
        (f"`{tool['tool']}`", f"`{each['case']}`", f"{each['verdict']}: {each['reason']}")
        for tool in document["tools"]
        for each in tool["wrong"]
    ]
    refused = [
        (f"`{tool['tool']}`", f"`{each['case']}`{_more(each['more'])}", each["reason"])
        for tool in document["tools"]
        for each in tool["refused"]
    ]
    parts = (
        f"Run on {document['date']}.",
        _table(("tool", "versions", *words), rows),
        "### What came out wrong",
        _table(("tool", "case", "what"), wrong),
        "### What was refused",
        _table(("tool", "case", "reason"), refused),
    )
    return "\n\n".join(parts)


def _more(count: int) -> str:
    return f" and {count} more" if count else ""


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


PARTS: Mapping[str, Callable[[], str]] = {
    "passes": passes,
    "pipelines": pipelines,
    "rules": as_table,
    "targets": target_facts,
    "commands": commands,
    "file format": file_format,
    "schemas": schemas,
    "kinds": kinds,
    "conformance": conformance,
}
