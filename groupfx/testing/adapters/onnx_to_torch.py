"""onnx2torch: an ONNX model as modules of torch, run there."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..conformance.adapter import Adapter, Outputs, outputs_by_name
from ..kit import Case
from ..kit.known import Array


def _run(case: Case) -> Outputs:
    import onnx2torch

    model = onnx2torch.convert(case.onnx).eval()

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        with torch.no_grad():
            found = model(*(torch.from_numpy(array.copy()) for array in feeds.values()))
        values = found if isinstance(found, (tuple, list)) else (found,)
        return [value.numpy() for value in values]

    return outputs_by_name(case, run)


ADAPTERS = (Adapter("onnx2torch", _run, ("onnx2torch", "torch", "torchvision")),)
