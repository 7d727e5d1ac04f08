"""Is there a file at all? Asked before torch is loaded, and by everything that reads one."""

from difflib import get_close_matches
from pathlib import Path

from ..errors import FileError

CHECKPOINT_SUFFIXES = frozenset({".pt", ".pth", ".pkl", ".ckpt", ".bin", ".tar", ".safetensors"})
"""What files are called that hold weights, or a model with them."""

MODEL_SUFFIXES = CHECKPOINT_SUFFIXES | {".pt2", ".onnx"}
"""What files are called that hold a model."""


def factory_in(path: Path) -> str | None:
    """`file.py:Name` or `package.module:name` where `path` is one and no file; else None."""
    place, _, name = str(path).rpartition(":")
    if not place or not all(part.isidentifier() for part in name.split(".")) or path.exists():
        return None
    module = all(part.isidentifier() for part in place.split("."))
    return str(path) if module or place.endswith(".py") else None


def require_model(path: Path) -> None:
    """Raise `FileError` where there is no file at `path`, or none that a factory in it names."""
    factory = factory_in(path)
    if factory is None:
        require_file(path)
        return
    place = factory.rpartition(":")[0]
    if place.endswith(".py"):
        require_file(Path(place))


def require_file(path: Path) -> None:
    """Raise `FileError` where there is no file at `path`, with the name that was perhaps meant."""
    if path.is_dir():
        raise FileError(f"{path} is a folder: name the file in it")
    if path.exists():
        if not path.is_file():
            # What comes out of a pipe or of /dev/zero may never end.
            raise FileError(f"{path} is not a regular file: save what comes from it, and name that")
        return
    if path.is_symlink():
        raise FileError(f"{path} is a link that leads to no file")
    if not path.parent.is_dir():
        raise FileError(f"there is no file {path}, and no folder {path.parent}")
    near = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
    raise FileError(f"there is no file {path}{hint}")
