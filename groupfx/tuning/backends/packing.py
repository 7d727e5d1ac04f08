"""An ONNX graph as the bytes of its file, which is what runtimes read."""

from __future__ import annotations

import onnx_ir as ir

from ...deploy.graph.files import proto_of
from ...errors import ModelError, first_line


def file_of(model: ir.Model) -> bytes:
    """The bytes. Raises ModelError for what is too large for one message."""
    try:
        data: bytes = proto_of(model).SerializeToString()
    except Exception as error:
        # Protobuf has no one error for it.
        raise ModelError(f"it is too large to be tuned: {first_line(error)}") from error
    return data
