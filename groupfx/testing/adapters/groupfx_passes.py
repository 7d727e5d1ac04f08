"""groupfx itself: what it makes of an ONNX file, with its own check left out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ...api.onnx import rewrite_onnx
from ..conformance.adapter import Adapter, Outputs, run_converted
from ..kit import Case


def _run(case: Case, passes: Sequence[str] | None, target: str | None) -> Outputs:
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "case.onnx", Path(folder) / "out.onnx"
        path.write_bytes(case.onnx.SerializeToString())
        rewrite_onnx(path, output, passes=passes, target=target, verify=False)
        return run_converted(case, output.read_bytes())


ADAPTERS = tuple(
    Adapter(f"groupfx-{name}", partial(_run, passes=passes, target=target), ("onnxruntime",))
    for name, passes, target in (
        ("split", ["split-grouped-conv:depthwise=split"], None),
        ("discover", ["discover-groups"], None),
        ("fold", ["fold-permutations"], None),
        ("merge", ["merge-parallel-conv"], None),
        ("onnxruntime", None, "onnxruntime"),
    )
)
