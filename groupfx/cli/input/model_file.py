"""The model of a command: read by the library, and told of."""

from collections.abc import Callable, Sequence

from ...api.source import ModelOptions, OpenedFile, open_source
from ...running.guess import Declared

__all__ = ["ModelOptions", "OpenedFile", "read_source"]


def read_source(
    options: ModelOptions, warn: Callable[[str], None], declared: Sequence[Declared] = ()
) -> OpenedFile:
    """As `open_source`; `warn` is told which of several models was taken."""
    opened = open_source(options, declared)
    for note in opened.notes:
        warn(note)
    return opened
