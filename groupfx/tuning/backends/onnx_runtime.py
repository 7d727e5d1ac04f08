"""ONNX Runtime on the CPU, with its own profiler."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper

from ...errors import ModelError, UsageError, first_line
from ..ratios import lower_half
from .backend import Feeds, NodeTime, Profile, Program
from .packing import file_of
from .session import Session, parallel, session_settings, session_text, set_session

_SILENT = 4
_LEAST_RUNS = 4
_MOST_RUNS = 60
_TIMED = "_kernel_time"
_WEIGHTS_APART = {
    "session.optimized_model_external_initializers_file_name": "optimised.data",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}
# The first run allocates, and packs weights.
_UNTIMED = 1


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """The options of a user's `session`, by default the usual ones, and a number of threads."""

    name: str = "onnxruntime"
    session: Session = field(default_factory=dict, hash=False)

    def with_session(self, given: object, threads: int) -> Self:
        found = session_settings(given, threads)
        if not found:
            return self
        made = replace(self, session=found)
        try:
            made.load(ir.from_proto(_one_node()), {"x": np.ones(2, np.float32)}, threads)()
        except ModelError as error:
            raise UsageError(f"session: {session_text(found)}: {error}") from error
        return made

    def options(self, threads: int) -> ort.SessionOptions:
        """Of a new session."""
        return session_options(threads, self.session)

    def require(self) -> None:
        """It always is there."""

    def version(self) -> str:
        return str(ort.__version__)

    def clock(self, threads: int) -> Callable[[], float]:
        """One thread is the caller's own: its time leaves other processes out."""
        alone = threads == 1 and not parallel(self.session)
        return time.thread_time if alone else time.perf_counter

    def packed(self, model: ir.Model | bytes) -> bytes:
        """Its file. Raises ModelError for one that is too large for a message."""
        return model if isinstance(model, bytes) else file_of(model)

    def load(self, model: ir.Model | bytes, feeds: Feeds, threads: int) -> Program:
        session = session_of(self.packed(model), self.options(threads))
        arrays = dict(feeds)
        return lambda: _run(session, arrays)

    def profile(
        self, model: ir.Model | bytes, feeds: Feeds, threads: int, seconds: float
    ) -> Profile:
        with tempfile.TemporaryDirectory() as folder:
            options = self.options(threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            # Its nodes are read, and no weights.
            for key, value in _WEIGHTS_APART.items():
                options.add_session_config_entry(key, value)
            session = session_of(self.packed(model), options)
            _runs(session, dict(feeds), seconds / 2)
            written = Path(session.end_profiling())
            # The profiler is off from here on.
            total = lower_half(_runs(session, dict(feeds), seconds / 2)) * 1e6
            try:
                events = json.loads(written.read_text(encoding="utf-8"))
                graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
            except Exception as error:
                # Cut off where the disk is full; protobuf has no one error for it.
                raise ModelError(f"its profile cannot be read: {first_line(error)}") from error
        return Profile(_node_times(graph.node, _by_node(events)), total)


def session_options(threads: int, session: Session) -> ort.SessionOptions:
    """As a user's session has them, and so many threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Where nodes run side by side, it is the user's who says on how many threads, or the runtime.
    options.inter_op_num_threads = 0 if parallel(session) else 1
    options.log_severity_level = _SILENT
    set_session(options, session)
    return options


def session_of(data: bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """The model of a file, ready to run. Raises ModelError."""
    try:
        # With its fallback it prints what fails, and tries the same again.
        return ort.InferenceSession(
            data, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
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


def _one_node() -> onnx.ModelProto:
    """A model to try options on."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    node = helper.make_node("Abs", ["x"], ["y"])
    graph = helper.make_graph([node], "trial", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


BACKEND = OnnxRuntimeBackend()
