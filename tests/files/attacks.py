"""What hostile files are made of: pickles that call a function, and zip files of any pickle."""

import zipfile
from pathlib import Path
from typing import Any


class Call:
    """Unpickles to `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def zipped_pickle(path: Path, data: bytes, **records: bytes) -> Path:
    """A zip file as torch.save writes it, with any pickle in it."""
    entries = {"data.pkl": data, "version": b"3\n", "byteorder": b"little", **records}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
    return path
