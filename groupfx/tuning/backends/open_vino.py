"""OpenVINO on the CPU: an extra. It has no profiler that names our tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ...errors import MissingDependencyError, ModelError, first_line
from .backend import Feeds, Program, WithoutSessions
from .packing import file_of


@dataclass(frozen=True)
class OpenVinoBackend(WithoutSessions):
    """For latency, with so many threads."""

    name: str = "openvino"

    def require(self) -> None:
        try:
            import openvino  # noqa: F401
        except ImportError as error:
            what = "the backend openvino needs"
            raise MissingDependencyError.of(what, "OpenVINO", "openvino") from error

    def version(self) -> str:
        import openvino

        return str(openvino.__version__)

    def clock(self, threads: int) -> Callable[[], float]:
        """Its threads are its own, whatever their number."""
        return time.perf_counter

    def packed(self, model: ir.Model | bytes) -> bytes:
        """Its file. Raises ModelError for one that is too large for a message."""
        return model if isinstance(model, bytes) else file_of(model)

    def load(self, model: ir.Model | bytes, feeds: Feeds, threads: int) -> Program:
        import openvino

        config = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY"}
        # As in ONNX Runtime: bfloat16, its default on some CPUs, would be another function.
        config["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            core = openvino.Core()
            read = core.read_model(self.packed(model))
            # A fixed size is what its user would have compiled.
            read.reshape({name: list(array.shape) for name, array in feeds.items()})
            request = core.compile_model(read, "CPU", config).create_infer_request()
        except Exception as error:
            raise ModelError(f"OpenVINO cannot load it: {first_line(error)}") from error
        arrays = dict(feeds)

        def run() -> Sequence[Any]:
            try:
                return list(request.infer(arrays).values())
            except Exception as error:
                raise ModelError(f"OpenVINO cannot run it: {first_line(error)}") from error

        return run

    def profile(self, model: ir.Model | bytes, feeds: Feeds, threads: int, seconds: float) -> None:
        return None


BACKEND = OpenVinoBackend()
