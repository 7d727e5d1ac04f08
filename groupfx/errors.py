"""Every error that groupfx raises on purpose.

One root, so that `except GroupfxError` catches what a caller can act on; `exit_code` is what the
command line returns for it.
"""


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


class MissingDependencyError(GroupfxError):
    """An optional part of groupfx needs a package that is not installed."""

    exit_code = 3


class InternalError(GroupfxError):
    """A rewrite broke one of its own rules: a bug in a pass or in groupfx, never in the input."""

    exit_code = 70


_LONGEST_LINE = 300


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or the name of its class where it says nothing."""
    line, *_ = str(error).strip().splitlines() or [type(error).__name__]
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."


def kind_and_line(error: BaseException) -> str:
    """`RuntimeError: the first line`, for an error that was not made for a user's eyes."""
    kind = type(error).__name__
    return f"{kind}: {first_line(error)}" if str(error).strip() else kind
