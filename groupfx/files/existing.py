"""Is there a file at all? Asked before torch is loaded, and by everything that reads one."""

from difflib import get_close_matches
from pathlib import Path

from ..errors import FileError


def require_file(path: Path) -> None:
    """Raise `FileError` where there is no file at `path`, with the name that was perhaps meant."""
    if path.is_dir():
        raise FileError(f"{path} is a folder: name the file in it")
    if path.exists():
        return
    if not path.parent.is_dir():
        raise FileError(f"there is no file {path}, and no folder {path.parent}")
    near = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
    raise FileError(f"there is no file {path}{hint}")
