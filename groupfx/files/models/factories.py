"""Models built by the user's own code: `package.module:factory` or `file.py:factory`."""

import contextlib
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ...errors import UsageError, kind_and_line, no_exit

_FORM = "give package.module:factory or file.py:factory"


def build(
    arch: str, arguments: Mapping[str, Any] | None = None, python_path: Sequence[Path] = ()
) -> nn.Module:
    """The model that the factory named by `arch` returns when called with `arguments`.

    `python_path` holds folders in which modules are looked for first, while the factory is
    imported and runs. Raises `UsageError`, chained to what the factory raised; that it ends the
    program counts as raising.
    """
    given = dict(arguments or {})
    if not all(isinstance(key, str) for key in given):
        raise UsageError("the arguments of --arch are a JSON object of keyword arguments")
    with searched(python_path), no_exit(f"--arch {arch}", UsageError):
        factory = named(arch, "--arch")
        name = arch.rpartition(":")[2]
        if isinstance(factory, nn.Module):
            return factory
        if not callable(factory):
            raise UsageError(f"--arch {arch}: {name} is a {type(factory).__name__}, not a function")
        try:
            model = factory(**given)
        except Exception as error:
            shown = ", ".join(f"{key}={value!r}" for key, value in given.items())
            raise UsageError(
                f"--arch {arch}: {name}({shown}) raised {kind_and_line(error)}"
            ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"--arch {arch}: {name} returned a {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def named(text: str, option: str) -> Any:
    """What `package.module:name` or `file.py:name`, given to `option`, names; it is imported.

    Raises `UsageError`.
    """
    place, _, name = text.rpartition(":")
    if not place or not name or not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{option} {text!r} is not understood: {_FORM}")
    in_file = place.endswith(".py")
    module = _import_file(Path(place), option) if in_file else _import_name(place, option)
    return _attribute(module, name, place, option)


@contextlib.contextmanager
def searched(folders: Sequence[Path]) -> Iterator[None]:
    """Look for Python modules in `folders` first. Raises `UsageError` for one that is none."""
    for folder in folders:
        if not Path(folder).is_dir():
            raise UsageError(f"--python-path {folder} is not a folder")
    before = list(sys.path)
    sys.path[:0] = [str(Path(folder).resolve()) for folder in folders]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _import_name(place: str, option: str) -> ModuleType:
    if not all(part.isidentifier() for part in place.split(".")):
        raise UsageError(f"{option} {place!r} is neither a module nor a .py file: {_FORM}")
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise UsageError(
                f"{option}: there is no module {place}: name the folder that holds it with "
                "--python-path, or give the path of the .py file"
            ) from error
        raise _import_failed(place, error, option) from error
    except Exception as error:
        raise _import_failed(place, error, option) from error


def _import_file(place: Path, option: str) -> ModuleType:
    if not place.is_file():
        raise UsageError(f"{option}: there is no file {place}")
    # A name of its own: `model.py` must not become, or find, another module called model.
    name = f"groupfx_arch_{place.stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None:
        raise UsageError(f"{option}: {place} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with searched([place.resolve().parent]):
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        raise _import_failed(str(place), error, option) from error
    return module


def _import_failed(place: str, error: Exception, option: str) -> UsageError:
    return UsageError(f"{option}: importing {place} raised {kind_and_line(error)}")


def _attribute(module: ModuleType, name: str, place: str, option: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not _has(found, part, option):
            names = {known.lower(): known for known in dir(found)}
            near = difflib.get_close_matches(part.lower(), names, n=1)
            hint = f"; did you mean {names[near[0]]}?" if near else ""
            raise UsageError(f"{option}: {place} has no {name}{hint}")
        found = getattr(found, part)
    return found


def _has(found: Any, part: str, option: str) -> bool:
    try:
        return hasattr(found, part)
    except Exception as error:  # from a __getattr__ of the module's own
        raise UsageError(f"{option}: looking for {part} raised {kind_and_line(error)}") from error
