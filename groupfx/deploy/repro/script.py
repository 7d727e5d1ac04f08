"""The script that shows a difference: plain numpy, onnxruntime and torch, without groupfx."""

from __future__ import annotations

import inspect

from ...version import __version__
from . import judging
from .smallest import Repro

_HEAD = '''"""Two models that should be one function, and are not: {what}.

{blame}

    python show.py

Exit code 1: the candidate gives something else than it should; 0: it does not, any more; 2: the
reference does not give what it gave. Needs {needs}. inputs.npz holds what both are given,
expected.npz what comes out of the reference in float64, and how far rounding may take the
candidate from there. Written by groupfx {version}.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
'''

_ONNX = '''

def run_onnx(file, names, inputs, optimised):
    """The one output of an ONNX file."""
    import onnxruntime

    level = "ORT_ENABLE_ALL" if optimised else "ORT_DISABLE_ALL"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    path = str(HERE / file)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = {value.name: value.type for value in session.get_inputs()}
    floats = {"tensor(float)": "f4", "tensor(float16)": "f2", "tensor(double)": "f8"}
    feeds = {
        name: array.astype(floats.get(kinds[name], array.dtype))
        for name, array in zip(names, inputs)
        if name in kinds
    }
    return session.run(None, feeds)[0]
'''

_TORCH = '''

def run_torch(file, forward, inputs, dtype):
    """What `forward` gives with the tensors of a file; floats in `dtype`, if there is one."""

    def placed(array):
        tensor = torch.from_numpy(np.array(array))
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

    with np.load(HERE / file) as held, torch.no_grad():
        tensors = SimpleNamespace(**{name: placed(held[name]) for name in held.files})
        return forward(tensors, *map(placed, inputs)).numpy()


def channels(vector, like):
    """A number for each channel, beside a value of channels."""
    return vector.reshape(1, -1, *(1,) * (like.dim() - 2))
'''

_TAIL = """

def main() -> int:
    with np.load(HERE / "inputs.npz") as held:
        inputs = [held[name] for name in held.files]
    with np.load(HERE / "expected.npz") as held:
        expected = [held[name] for name in ("expected", "allowed", "allowed_rms")]
    wrong = {{}}
    for name, run, modes in {roles}:
        for optimised in modes:
            told = difference(np.asarray(run(inputs, optimised)), *expected)
            how = f" ({{'optimised' if optimised else 'not optimised'}})" if len(modes) > 1 else ""
            print(f"{{name}}{{how}}: {{told or 'as expected'}}")
            wrong[name] = wrong.get(name, False) or told is not None
    if wrong.get("reference"):
        return 2
    return int(wrong["candidate"])


if __name__ == "__main__":
    sys.exit(main())
"""

_TORCH_NAMES = """import torch
from torch import device, inf, nan
from torch.nn import functional as F
"""


def script(repro: Repro, blame: str) -> str:
    """The text of `show.py`."""
    sides = {"reference": repro.reference, "candidate": repro.candidate}
    known = {role: side for role, side in sides.items() if side is not None}
    kinds = sorted({"numpy", *(side.needs for side in known.values())})
    roles = ", ".join(f'("{role}", {role}, {side.modes!r})' for role, side in known.items())
    head = _HEAD.format(
        what=_plain(repro.what), blame=_plain(blame), needs=", ".join(kinds), version=__version__
    )
    parts = [
        head + (_TORCH_NAMES if "torch" in kinds else ""),
        _ONNX if "onnxruntime" in kinds else "",
        _TORCH if "torch" in kinds else "",
        f"\n\n{inspect.getsource(judging.difference)}",
        *(f"\n\n{side.code}" for side in known.values()),
        _TAIL.format(roles=f"({roles},)"),
    ]
    return "".join(parts)


def _plain(text: str) -> str:
    """Inside a docstring: nothing in it may end that, or be an escape."""
    return text.replace("\\", "/").replace('"""', "'''").rstrip('"')
