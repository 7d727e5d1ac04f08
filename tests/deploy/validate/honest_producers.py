"""Honest files of other producers: exporters, optimisers, converters of dtype and version.

Each is tried to be honest before anyone judges it: it runs, and its outputs are those of the model
in float64, by the roundings of its dtype.
"""

import copy
import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxscript.optimizer
import pytest
import torch
from onnx import version_converter
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

import groupfx
from tests.deploy.validate.corruption_models import MODELS as SITE_MODELS
from tests.deploy.validate.operator_models import OPERATOR_MODELS
from tests.models import zoo

_SILENT = 4
_FOREIGN = (UserWarning, FutureWarning, DeprecationWarning, torch.jit.TracerWarning)
# By how much of an output's largest number an honest file may be off.
_OFF = {"float32": 1e-4, "float16": 5e-2}
# And in how many of its places an integer output may be, where numbers nearly tie.
_TIED = {"float32": 0.05, "float16": 0.25}


@dataclass(frozen=True)
class Subject:
    """A model in eval mode, its inputs, and the file that `groupfx.export` makes of it."""

    model: nn.Module
    inputs: tuple[torch.Tensor, ...]
    file: onnx.ModelProto


class _Own(nn.Module):
    """What a vision model has that the others do not: pools, resizes, slices, scaled branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(3, 12)
        self.mix = nn.Conv2d(12, 12, 3, padding=1, groups=4)
        self.scale = nn.Parameter(torch.full((12, 1, 1), 0.3))
        self.head = nn.Linear(24, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = nn.functional.mish(self.norm(self.stem(x)))
        y = y + self.scale * self.mix(y)
        a, b = y.chunk(2, 1)
        y = torch.cat([a * torch.sigmoid(b), b], 1)
        pooled = torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1)
        scores = self.head(pooled)
        return scores, scores.argmax(-1)


def _zoo(name: str) -> tuple[nn.Module, Any]:
    case = zoo.CASES[name]
    return case.build().eval(), case.inputs()


_ZOO = (
    "resnext",
    "positional",
    "torch-functions",
    "conv-bn",
    "two-inputs",
    "dict-output",
    "tuple-output",
    "masked",
    "bn-and-skip",
    "called-twice",
)
# That one is large, and has nothing that the others have not.
_LARGE = "regnet-y"
_DRAWN = dict.fromkeys(name for name in (*OPERATOR_MODELS, *SITE_MODELS) if name != _LARGE)
MODELS = (*_DRAWN, "scaled-branch", *_ZOO)


@functools.lru_cache(maxsize=2)
def subject(name: str, folder: Path) -> Subject:
    """The model of this name."""
    if name == "scaled-branch":
        torch.manual_seed(0)
        model, inputs = _Own().eval(), (torch.randn(2, 3, 14, 10),)
    elif name in _ZOO:
        model, inputs = _zoo(name)
    else:
        case = {**OPERATOR_MODELS, **SITE_MODELS}[name]
        model, inputs = case.build(), case.inputs()
    path = folder / f"{name}.onnx"
    groupfx.export(model, inputs, path, overwrite=True)
    return Subject(model, inputs, onnx.load(path))


Producer = Callable[[Subject, Path], onnx.ModelProto]


def _dynamo(of: Subject, path: Path) -> onnx.ModelProto:
    torch.onnx.export(of.model, of.inputs, path, dynamo=True, verbose=False)
    return onnx.load(path)


def _torchscript(opset: int) -> Producer:
    def made(of: Subject, path: Path) -> onnx.ModelProto:
        names = [f"in{place}" for place in range(len(of.inputs))]
        torch.onnx.export(
            of.model,
            of.inputs,
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=names,
            dynamic_axes={name: {0: "batch"} for name in names},
        )
        return onnx.load(path)

    return made


def _onnxruntime(level: str) -> Producer:
    def made(of: Subject, path: Path) -> onnx.ModelProto:
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(path)
        options.log_severity_level = _SILENT
        ort.InferenceSession(
            of.file.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return onnx.load(path)

    return made


def _float16(*, keep_io_types: bool) -> Producer:
    return lambda of, _: convert_float_to_float16(
        copy.deepcopy(of.file), keep_io_types=keep_io_types
    )


def _version(opset: int) -> Producer:
    return lambda of, _: version_converter.convert_version(of.file, opset)


def _onnxscript(of: Subject, _: Path) -> onnx.ModelProto:
    return onnxscript.optimizer.optimize(copy.deepcopy(of.file))


def _onnxsim(of: Subject, _: Path) -> onnx.ModelProto:
    return pytest.importorskip("onnxsim").simplify(of.file)[0]


def _onnxslim(of: Subject, _: Path) -> onnx.ModelProto:
    return pytest.importorskip("onnxslim").slim(copy.deepcopy(of.file))


PRODUCERS: dict[str, Producer] = {
    "dynamo": _dynamo,
    "torchscript-17": _torchscript(17),
    "torchscript-13": _torchscript(13),
    "onnxruntime-basic": _onnxruntime("ORT_ENABLE_BASIC"),
    "onnxruntime-extended": _onnxruntime("ORT_ENABLE_EXTENDED"),
    "onnxruntime-all": _onnxruntime("ORT_ENABLE_ALL"),
    "float16": _float16(keep_io_types=False),
    "float16-inside": _float16(keep_io_types=True),
    "version-21": _version(21),
    "version-23": _version(23),
    "onnxscript": _onnxscript,
}
NOT_EVERYWHERE: dict[str, Producer] = {"onnxsim": _onnxsim, "onnxslim": _onnxslim}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what foreign tools log and warn of."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            for category in _FOREIGN:
                warnings.simplefilter("ignore", category)
            yield
    finally:
        logging.disable(logging.NOTSET)


def produced(of: Subject, producer: str, path: Path) -> None:
    """Write the file of a producer."""
    with _quiet():
        made = {**PRODUCERS, **NOT_EVERYWHERE}[producer](of, path)
    onnx.save(made, path)


def why_dishonest(of: Subject, path: Path) -> str | None:
    """How far the file is from the model, in ONNX Runtime; None where it is the same function."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _SILENT
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = list(of.inputs.values()) if isinstance(of.inputs, dict) else of.inputs
    feeds = {
        each.name: _as(value, each.type)
        for each, value in zip(session.get_inputs(), inputs, strict=True)
    }
    wide = copy.deepcopy(of.model).double()
    with torch.no_grad():
        given = [v.double() if v.is_floating_point() else v for v in inputs]
        expected = _flat(wide(*given))
    for value, found in zip(expected, session.run(None, feeds), strict=True):
        dtype = "float16" if _is_half(path) else "float32"
        wanted = value.numpy()
        if found.shape != wanted.shape:
            return f"{found.shape} for {wanted.shape}"
        if wanted.dtype.kind != "f":
            off, limit = float((found != wanted).mean()), _TIED[dtype]
        else:
            off = float(np.abs(found - wanted).max() / np.abs(wanted).max())
            limit = _OFF[dtype]
        if not off <= limit:
            return f"off by {off:.3g}"
    return None


def _is_half(path: Path) -> bool:
    held = onnx.load(path).graph.initializer
    return any(each.data_type == onnx.TensorProto.FLOAT16 for each in held)


def _as(value: torch.Tensor, kind: str) -> np.ndarray:
    return value.numpy().astype(np.float16) if kind == "tensor(float16)" else value.numpy()


def _flat(made: Any) -> list[torch.Tensor]:
    leaves, _ = torch.utils._pytree.tree_flatten(made)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
