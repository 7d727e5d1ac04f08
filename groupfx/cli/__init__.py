"""The command line: `groupfx`, or `python -m groupfx`.

Nothing here imports torch before a command needs it, so that `--help`, `--version` and shell
completion answer at once.
"""

from .main import main

__all__ = ["main"]
