"""ONNX Runtime on the CPU, with its own profiler."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort

from ...deploy.graph.files import proto_of
from ...errors import ModelError, first_line
from ..ratios import lower_half
from .backend import Feeds, NodeTime, Profile, Program

_SILENT = 4
_LEAST_RUNS = 4
_MOST_RUNS = 60
_TIMED = "_kernel_time"
# The first run allocates, and packs weights.
_UNTIMED = 1


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """The same options as a user's session has by default, but for the number of threads."""

    name: str = "onnxruntime"

    def require(self) -> None:
        """It always is there."""

    def version(self) -> str:
        return str(ort.__version__)

    def clock(self, threads: int) -> Callable[[], float]:
        """One thread is the caller's own: its time leaves other processes out."""
        return time.thread_time if threads == 1 else time.perf_counter

    def load(self, model: ir.Model, feeds: Feeds, threads: int) -> Program:
        session = _session(model, _options(threads))
        arrays = dict(feeds)
        return lambda: _run(session, arrays)

    def profile(self, model: ir.Model, feeds: Feeds, threads: int, seconds: float) -> Profile:
        with tempfile.TemporaryDirectory() as folder:
            options = _options(threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            session = _session(model, options)
            _runs(session, dict(feeds), seconds / 2)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            # The profiler is off from here on.
            total = lower_half(_runs(session, dict(feeds), seconds / 2)) * 1e6
            graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
        return Profile(_node_times(graph.node, _by_node(events)), total)


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    return options


def _session(model: ir.Model, options: ort.SessionOptions) -> ort.InferenceSession:
    data = proto_of(model).SerializeToString()
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # What the C++ code raises is not of one kind.
        raise ModelError(f"ONNX Runtime cannot load it: {first_line(error)}") from error


def _run(session: ort.InferenceSession, feeds: dict[str, Any]) -> Sequence[Any]:
    try:
        found: Sequence[Any] = session.run(None, feeds)
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot run it: {first_line(error)}") from error
    return found


def _runs(session: ort.InferenceSession, feeds: dict[str, Any], seconds: float) -> list[float]:
    """What several runs took, by a clock on the wall, as the profiler reads it."""
    times: list[float] = []
    while len(times) < _LEAST_RUNS or (len(times) < _MOST_RUNS and sum(times) < seconds):
        start = time.perf_counter()
        _run(session, feeds)
        times.append(time.perf_counter() - start)
    return times


def _by_node(events: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Microseconds of each node, one number a run."""
    found: dict[str, list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_TIMED):
            found.setdefault(name.removesuffix(_TIMED), []).append(float(event["dur"]))
    return found


def _node_times(
    nodes: Iterable[onnx.NodeProto], times: Mapping[str, list[float]]
) -> tuple[NodeTime, ...]:
    return tuple(
        NodeTime(
            node.name,
            node.op_type,
            tuple(node.input),
            tuple(node.output),
            lower_half(times[node.name][_UNTIMED:]),
        )
        for node in nodes
        if node.name in times
    )


BACKEND = OnnxRuntimeBackend()
