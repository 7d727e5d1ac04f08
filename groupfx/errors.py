"""Every error that groupfx raises on purpose.

One root, so that `except GroupfxError` catches what a caller can act on; `exit_code` is what the
command line returns for it.
"""

import contextlib
from collections.abc import Iterator
from typing import Self


class GroupfxError(Exception):
    """Root of all errors of groupfx. The message names the thing, the number and the remedy."""

    exit_code = 1


class UsageError(GroupfxError):
    """An argument does not make sense: an unknown pass, an option out of range, a wrong shape."""

    exit_code = 2


class FileError(GroupfxError):
    """A file cannot be read or written: missing, truncated, of another kind, or not trusted."""

    exit_code = 2


class ModelError(GroupfxError):
    """A model cannot be opened: its forward fails, it cannot be traced, or it cannot be copied."""

    exit_code = 2


class RewriteError(GroupfxError):
    """A rewrite ran and could not do what was asked, such as a site that was named and refused."""


class MismatchError(GroupfxError):
    """The rewritten model does not compute the same function as the original.

    `report` is the whole report, with the verdict of each site.
    """

    def __init__(self, message: str, *, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class NotComparableError(MismatchError):
    """The check ran, and what it saw cannot tell whether the two are the same function."""

    exit_code = 4


class MissingDependencyError(GroupfxError):
    """An optional part of groupfx needs a package that is not installed."""

    exit_code = 3

    @classmethod
    def of(cls, what: str, package: str, extra: str) -> Self:
        """`what` needs `package`, which comes with `extra`, also from a checkout of groupfx."""
        return cls(
            f"{what} {package}, which is not installed: pip install 'groupfx[{extra}]', or in a "
            f"checkout pip install -c constraints.txt -e '.[{extra}]'"
        )


class InternalError(GroupfxError):
    """A rewrite broke one of its own rules: a bug in a pass or in groupfx, never in the input."""

    exit_code = 70


@contextlib.contextmanager
def no_exit(who: str, kind: type[GroupfxError] = ModelError) -> Iterator[None]:
    """Around code of somebody else: an end of the program is an error of `who`, not our end.

    So is whatever else it raises that is no `Exception`, but for Ctrl-C.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise kind(f"{who} raised {kind_and_line(error)}") from error


_LONGEST_LINE = 300


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or the name of its class where it says nothing."""
    line, *_ = _text(error).splitlines() or [type(error).__name__]
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."


def kind_and_line(error: BaseException) -> str:
    """`RuntimeError: the first line`, for an error that was not made for a user's eyes."""
    if isinstance(error, GroupfxError):
        return first_line(error)
    kind = type(error).__name__
    return f"{kind}: {first_line(error)}" if _text(error) else kind


def _text(error: BaseException) -> str:
    try:
        return str(error).strip()
    except Exception:  # an exception of somebody else, which cannot even say what it is
        return ""
