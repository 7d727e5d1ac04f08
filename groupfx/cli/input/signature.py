"""A command takes one dataclass of options; typer wants a function with a parameter for each."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

Options = TypeVar("Options")
Complete = Callable[[str], Iterable[str]]

_TYPER = "typer"


def option(
    *flags: str,
    panel: str,
    help: str,
    metavar: str | None = None,
    default: Any = None,
    complete: Complete | None = None,
) -> Any:
    """A field that is an option, in the section `panel`; None is no default to speak of."""
    made = typer.Option(
        *flags,
        help=help,
        metavar=metavar,
        show_default=default is not None,
        rich_help_panel=panel,
        autocompletion=complete,
    )
    return field(default=default, metadata={_TYPER: made})


def argument(
    metavar: str, help: str, *, optional: bool = False, complete: Complete | None = None
) -> Any:
    """A field that is an argument; None where it is optional and not given."""
    made = typer.Argument(metavar=metavar, help=help, show_default=False, autocompletion=complete)
    default: Any = None if optional else MISSING
    return field(default=default, metadata={_TYPER: made})


def spread(command: Callable[[Options], int]) -> Callable[..., int]:
    """`command` with a parameter for each field of its options.

    A field that is a dataclass itself stands for its own fields, in its place.
    """
    (kind,) = (hint for name, hint in get_type_hints(command).items() if name != "return")

    @functools.wraps(command)
    def run(**values: Any) -> int:
        return command(_made(kind, values))

    run.__signature__ = inspect.Signature([*_parameters(kind)])  # type: ignore[attr-defined]
    return run


def _parameters(kind: Any) -> Iterator[inspect.Parameter]:
    for name, (hint, one) in _fields(kind).items():
        if is_dataclass(hint):
            yield from _parameters(hint)
            continue
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if one.default is MISSING else one.default,
            annotation=Annotated[hint, one.metadata[_TYPER]],
        )


def _made(kind: Any, values: Mapping[str, Any]) -> Any:
    made = {
        name: _made(hint, values) if is_dataclass(hint) else values[name]
        for name, (hint, _) in _fields(kind).items()
    }
    return kind(**made)


def _fields(kind: Any) -> dict[str, tuple[Any, Any]]:
    """The type and the field of each name."""
    hints = get_type_hints(kind)
    return {one.name: (hints[one.name], one) for one in fields(kind)}
