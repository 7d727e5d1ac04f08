"""`.pt2` files of `torch.export`.

`torch.export.load` is not made for files of strangers. It unpickles the example inputs, constants
that are objects, and tensors that are not plain, without restriction; it evaluates the text of
size expressions with sympy, which evaluates Python; and the module that it makes executes the
text of its guards. So a `.pt2` is read only with trust, whatever lies in it.
"""

import contextlib
import json
import warnings
import zipfile
from typing import Any, BinaryIO

import torch
from torch import fx, nn

from ...errors import FileError, UsageError, kind_and_line
from ...plan.channel_order import NOTE_FILE
from ...plan.site_plan import NOTE
from ...running.inputs import ExampleInputs
from ..container import ZIP_START
from ..inert import scan
from ..names import Damaged, first_few

_MAX_LOOKED_AT = 1 << 24
_HARMLESS = ("collections.OrderedDict", "torch._utils._rebuild", "torch.storage", "torch.device")


def refusal(file: BinaryIO, source: str) -> FileError:
    """Why the file is not read without trust, with the classes that its pickles ask for."""
    try:
        asked = sorted(_asked_for(file))
    except (zipfile.BadZipFile, Damaged, EOFError, RuntimeError, NotImplementedError):
        asked = []
    pickles = f"; its pickles ask for {first_few(asked, 8)}" if asked else ""
    return FileError(
        f"{source} is a .pt2 file: torch.export.load unpickles parts of it and evaluates Python "
        f"text in it{pickles}. Ways out: save the model with groupfx, or its state_dict and give "
        "--arch; or, only for a file that you made yourself, --trust-pickle"
    )


def _asked_for(file: BinaryIO) -> set[str]:
    """What the pickles inside ask for, besides tensors."""
    names: set[str] = set()
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.file_size > _MAX_LOOKED_AT or entry.filename.endswith(".json"):
                continue
            with archive.open(entry) as record:
                names |= _globals_in(record.read(_MAX_LOOKED_AT))
    file.seek(0)
    return {name for name in names if not name.startswith(_HARMLESS) and "Storage" not in name}


def _globals_in(data: bytes) -> set[str]:
    """Names in a pickle, or in the pickle of a zip file that torch.save wrote; else none."""
    try:
        if data.startswith(b"\x80"):
            return scan(data).globals
        position = data.find(b"data.pkl")
        if data.startswith(ZIP_START) and position >= 0:
            # Records are stored as they are: the pickle begins at its first opcode.
            return scan(data[data.index(b"\x80\x02", position) :]).globals
    except (Damaged, ValueError):
        # Raw numbers may begin as a pickle does.
        pass
    return set()


def read_exported(file: BinaryIO, source: str) -> tuple[nn.Module, list[dict[str, object]] | None]:
    """The module of a trusted `.pt2` and the description of its example inputs, if it has any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            beside: dict[str, Any] = {NOTE_FILE: ""}
            program = torch.export.load(file, extra_files=beside)
            module = program.module(check_guards=False)
            _take_note(module, beside[NOTE_FILE])
        except Exception as error:
            raise FileError(f"{source} cannot be loaded: {kind_and_line(error)}") from error
    if program.example_inputs is None:
        return module, None
    args, kwargs = program.example_inputs
    try:
        return module, ExampleInputs(tuple(args), dict(kwargs)).describe()
    except UsageError:
        return module, None


def _take_note(module: nn.Module, text: str | bytes) -> None:
    """Put what a fold left in the file on the graph; what makes no sense is passed over."""
    with contextlib.suppress(ValueError):
        if text and isinstance(module, fx.GraphModule):
            module.meta[NOTE] = json.loads(text)
