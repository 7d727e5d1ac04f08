"""tract: an engine in Rust, with its own optimiser."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..conformance.adapter import Adapter, Outputs, outputs_by_name
from ..kit import Case
from ..kit.known import Array


def _run(case: Case) -> Outputs:
    import tract

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.onnx"
        path.write_bytes(case.onnx.SerializeToString())
        runnable = tract.onnx().load(str(path)).into_model().into_runnable()

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        found = runnable.run([np.ascontiguousarray(array) for array in feeds.values()])
        return [value.to_numpy() for value in found]

    return outputs_by_name(case, run)


ADAPTERS = (Adapter("tract", _run, ("tract",)),)
