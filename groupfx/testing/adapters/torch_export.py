"""torch.onnx.export of the torch cases, run in ONNX Runtime."""

from __future__ import annotations

import torch

from ..conformance.adapter import Adapter, Outputs, run_converted
from ..kit import Case
from .choosing import one_in, with_torch

# An export takes a second or more.
_EXPORTED = 12


def _run(case: Case) -> Outputs:
    model = case.torch()
    assert model is not None, "the adapter takes torch cases alone"
    example = tuple(torch.from_numpy(array.copy()) for array in case.feeds[0].values())
    names = list(case.program.outputs)
    program = torch.onnx.export(model, example, dynamo=True, output_names=names, verbose=False)
    assert program is not None, "an export without a file gives the program"
    return run_converted(case, program.model_proto.SerializeToString())


ADAPTERS = (
    Adapter(
        "torch-onnx-export",
        _run,
        ("torch", "onnxscript", "onnxruntime"),
        one_in(_EXPORTED, with_torch),
    ),
)
