"""The errors of a validation as a file that a viewer of graphs lays over the model."""

from __future__ import annotations

import json
from pathlib import Path

from ..deploy import Validation, overlay, read_onnx
from ..files.atomic import whole_file


def write_overlay(validation: Validation, file: str | Path, path: str | Path) -> None:
    """Write the error of each node of `file`, the candidate of `validation`, to `path` as JSON.

    It is node data of Model Explorer: open `file` there, and load this for its colours. The number
    of a node is its error by what is allowed, of its site or its own: above 1 it is wrong. Raises
    `FileError` where `file` cannot be read or `path` cannot be written.
    """
    data = overlay(validation, read_onnx(file))
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    with whole_file(Path(path)) as written:
        written.write(f"{text}\n".encode())
