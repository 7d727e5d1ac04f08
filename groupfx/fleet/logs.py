"""What a process says on its way: a file without a name, which is gone with whoever holds it."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field
from typing import IO

if sys.platform != "win32":
    import fcntl

_FATAL = "Fatal Python error"
_LAST_BYTES, _LAST_LETTERS = 20_000, 500
# A model that prints without end must not fill the disk.
_MOST = 20_000_000


@dataclass(frozen=True)
class Log:
    """The output of a process."""

    file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def __post_init__(self) -> None:
        # Each writes at its end, wherever that is after it was cut.
        flags = fcntl.fcntl(self.file, fcntl.F_GETFL)
        fcntl.fcntl(self.file, fcntl.F_SETFL, flags | os.O_APPEND)

    def keep_small(self) -> None:
        """Forget what was said where it is too much."""
        if os.fstat(self.file.fileno()).st_size > _MOST:
            os.ftruncate(self.file.fileno(), 0)

    def close(self) -> None:
        """And with it the file goes."""
        self.file.close()

    @property
    def last_words(self) -> str:
        """What was said at the end, such as what ended a process and where; "" for nothing."""
        start = max(0, os.fstat(self.file.fileno()).st_size - _LAST_BYTES)
        text = os.pread(self.file.fileno(), _LAST_BYTES, start).decode("utf-8", "replace")
        lines = [line.strip() for line in text.split("\n")]
        fatal = next((place for place, line in enumerate(lines) if line.startswith(_FATAL)), None)
        if fatal is not None:
            # What Python says of a signal: a long list of modules comes last, the place first.
            where = next((line for line in lines[fatal:] if line.startswith("File ")), "")
            return f"{lines[fatal]} {where}".strip()
        return next((line for line in reversed(lines) if line), "")[:_LAST_LETTERS]
