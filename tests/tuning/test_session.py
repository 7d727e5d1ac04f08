"""The options of a user's session: checked by name and value, and the same for all measurements."""

from __future__ import annotations

import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import groupfx.tuning.tune as tuning
from groupfx.deploy.running.blocked_layout import block_width
from groupfx.errors import ModelError, UsageError
from groupfx.tuning import TuningOptions, backend_named, tune_graph
from groupfx.tuning.backends.onnx_runtime import OnnxRuntimeBackend
from groupfx.tuning.backends.session import _ENTRIES, session_settings
from tests.tuning.test_tune import FEEDS, MadeUp, fast_in_blocks, network, tuned

PREPACKING = "session.disable_prepacking"

PINNED = "session.intra_op_thread_affinities"
OPTIMISERS = "optimization.disable_specified_optimizers"
PARALLEL = {"execution_mode": "ORT_PARALLEL"}
GIVEN: dict[str, tuple[Any, dict[str, str]]] = {
    "nothing": (None, {}),
    "an enum": ({"execution_mode": ort.ExecutionMode.ORT_PARALLEL}, PARALLEL),
    "its name": ({"execution_mode": "ORT_PARALLEL"}, PARALLEL),
    "its short name": (["execution_mode=parallel"], PARALLEL),
    "a flag": ({"enable_mem_pattern": False}, {"enable_mem_pattern": "false"}),
    "a flag as text": ([" enable_mem_pattern = off "], {"enable_mem_pattern": "false"}),
    "a number": ({"inter_op_num_threads": 2}, {"inter_op_num_threads": "2"}),
    "an open size": ("free_dimension.batch=04", {"free_dimension.batch": "4"}),
    "an entry": ({PREPACKING: 1}, {PREPACKING: "1"}),
    "an entry as a flag": ({PREPACKING: True}, {PREPACKING: "1"}),
    "one text": (f"{PREPACKING}=0", {PREPACKING: "0"}),
    "optimisers": (
        f"{OPTIMISERS}=NchwcTransformer;ConvAddFusion",
        {OPTIMISERS: "NchwcTransformer;ConvAddFusion"},
    ),
}


@pytest.mark.parametrize(("given", "found"), GIVEN.values(), ids=GIVEN.keys())
def test_an_option_has_one_spelling(given: Any, found: dict[str, str]) -> None:
    assert session_settings(given, 1) == found


def test_their_order_says_nothing() -> None:
    both = [f"{PREPACKING}=1", "enable_mem_reuse=0"]
    assert [*session_settings(both, 1)] == [*session_settings(both[::-1], 1)]


def test_options_are_read_off_an_object() -> None:
    theirs = ort.SessionOptions()
    assert session_settings(theirs, 1) == {}
    theirs.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    theirs.enable_cpu_mem_arena = False
    theirs.inter_op_num_threads = 2
    theirs.enable_profiling = True
    theirs.add_session_config_entry(PREPACKING, "1")
    assert session_settings(theirs, 1) == {
        "enable_cpu_mem_arena": "false",
        "execution_mode": "ORT_PARALLEL",
        "inter_op_num_threads": "2",
        PREPACKING: "1",
    }
    theirs.intra_op_num_threads = 2
    assert session_settings(theirs, 2)["inter_op_num_threads"] == "2"
    with pytest.raises(UsageError, match=r"its intra_op_num_threads is 2: say threads=2"):
        session_settings(theirs, 1)


WRONG: dict[str, tuple[Any, str]] = {
    "a slip": ("execution_mod=ORT_PARALLEL", "no option 'execution_mod': execution_mode"),
    "an entry's slip": ("session.disable_prepack=1", f"no option .*: {PREPACKING} or "),
    "nothing like it": (
        "qwertz=1",
        "there are the attributes enable_cpu_mem_arena.*; the entries mlas",
    ),
    "a method": ("add_initializer=1", "no option 'add_initializer'"),
    "no value": ("execution_mode", "give NAME=VALUE, such as"),
    "no name": ("=1", "give NAME=VALUE, such as"),
    "an empty value": ("execution_mode=", "='' is no value of it: it takes ORT_SEQUENTIAL, ORT_"),
    "no member": ("execution_mode=fast", "it takes ORT_SEQUENTIAL, ORT_PARALLEL"),
    "no flag": ("enable_mem_pattern=2", "enable_mem_pattern='2' .*: it takes true or false"),
    "no flag of an entry": (f"{PREPACKING}=maybe", "it takes 0 or 1"),
    "no size": ("free_dimension.batch=n", "it takes a whole number"),
    "a size without a name": ("free_dimension.=1", "there is no option 'free_dimension.'"),
    "no number": ("inter_op_num_threads=-1", "it takes a whole number"),
    "no end": ("session.dynamic_block_base=" + "9" * 5000, "it takes a whole number"),
    "no optimiser": (f"{OPTIMISERS}=NchwcTransformr", "it takes optimisers' names, ';' between"),
    "no thread to pin": (f"{PINNED}=1", "has 1, and 0 are pinned where threads=1"),
    "no processor": (f"{PINNED}=0", "give processors from 1 to"),
    "a processor's name": (f"{PINNED}=one", "give processors from 1 to"),
    "an endless text": ("session.intra_op_thread_affinities=" + "1;" * 999, "takes processors"),
    "too many threads": ("inter_op_num_threads=5000", ": inter_op_num_threads=5000: this machine"),
    "our threads": ("intra_op_num_threads=2", "is what threads= and --threads say: threads=2"),
    "our own": ("enable_profiling=1", "enable_profiling is not taken: the tuning sets it itself"),
    "twice": (["enable_mem_reuse=1", "enable_mem_reuse=0"], "enable_mem_reuse is given twice"),
    "no table": (3, "give a table of options by name, or a SessionOptions object"),
    "a table in it": ({"enable_mem_reuse": {}}, "it takes true or false"),
    "a number as name": ({3: 1}, "there is no option 3"),
    "refused by the runtime": (
        ["execution_order=memory_efficient"],
        ": execution_order=MEMORY_EFFICIENT: ONNX Runtime cannot load it: ",
    ),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_option_is_named(
    given: Any, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=f"^session.*{said}"):
        TuningOptions(session=given, cache=None)
    assert capfd.readouterr().out == ""


def test_each_thread_but_the_callers_own_is_pinned() -> None:
    assert session_settings(f"{PINNED}=1", 2) == {PINNED: "1"}
    with pytest.raises(UsageError, match="has 2, and 1 are pinned where threads=2"):
        session_settings(f"{PINNED}=1;1", 2)


def test_without_the_blocked_layout_no_blocks_are_seen() -> None:
    plain = OnnxRuntimeBackend()
    assert block_width(partial(plain.options, 1)) == block_width()
    off = plain.with_session(f"{OPTIMISERS}=NchwcTransformer", 1)
    assert block_width(partial(off.options, 1)) == 0


def test_the_runtime_knows_every_entry() -> None:
    # It says nothing of one that it does not know: the names are in its library.
    held = Path(ort.capi.onnxruntime_pybind11_state.__file__).read_bytes()
    assert [name for name in _ENTRIES if name.encode() not in held] == []
    assert b"session.disable_prepack=" not in held


def test_all_that_is_measured_is_measured_under_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ort.SessionOptions] = []
    session = ort.InferenceSession

    def spied(data: Any, options: ort.SessionOptions, **more: Any) -> ort.InferenceSession:
        seen.append(options)
        return session(data, options, **more)

    monkeypatch.setattr(ort, "InferenceSession", spied)
    monkeypatch.setattr(tuning, "_MOST_SECONDS_A_VARIANT", 0.01)
    monkeypatch.setattr(tuning, "_MOST_SECONDS_OF_A_RACE", 0.05)
    given = {"graph_optimization_level": "enable_basic", PREPACKING: 1, "enable_mem_pattern": False}
    found = tune_graph(network({"a": 8}), FEEDS, TuningOptions(session=given, cache=None))
    profiles = sum(options.enable_profiling for options in seen)
    looked = sum(bool(options.optimized_model_filepath) for options in seen)
    # One to try them, the block width, four kernels of the probe, profiles, and heats of two.
    assert profiles >= 2
    assert looked > profiles
    assert len(seen) > looked + 1 + 4 + 2 * 5
    level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    for options in seen:
        assert options.graph_optimization_level == level
        assert options.get_session_config_entry(PREPACKING) == "1"
        assert not options.enable_mem_pattern
    told = f"enable_mem_pattern=false, graph_optimization_level=ORT_ENABLE_BASIC, {PREPACKING}=1"
    assert found.plan.session == dict(part.split("=") for part in told.split(", "))
    assert f", 1 thread, {told})" in found.summary


def test_a_size_that_a_session_is_told_is_one_that_the_file_leaves_open() -> None:
    model, wrong = network({"a": 4}), TuningOptions(session="free_dimension.n=1", cache=None)
    with pytest.raises(UsageError, match=r"free_dimension\.n: the file leaves open batch"):
        tune_graph(model, FEEDS, wrong)
    other = TuningOptions(session="free_dimension.batch=3", cache=None)
    with pytest.raises(UsageError, match="batch=3: it is 1 in the inputs that are run"):
        tune_graph(model, FEEDS, other)
    backend = OnnxRuntimeBackend().with_session("free_dimension.batch=1", 1)
    program = backend.load(model, {"x": np.ones((2, 32, 28, 28), np.float32)}, 1)
    with pytest.raises(ModelError, match="Got invalid dimensions for input: x"):
        program()


def test_nodes_on_other_threads_are_timed_on_the_wall() -> None:
    backend = backend_named("onnxruntime")
    assert backend.clock(1) is time.thread_time
    assert backend.with_session("execution_mode=sequential", 1).clock(1) is time.thread_time
    assert backend.with_session("execution_mode=parallel", 1).clock(1) is time.perf_counter


THREADS = {
    "execution_mode=sequential": 1,
    "execution_mode=parallel": 0,
    "inter_op_num_threads=2": 2,
}


@pytest.mark.parametrize(("given", "number"), THREADS.items(), ids=THREADS.keys())
def test_nodes_side_by_side_have_the_threads_of_the_user(given: str, number: int) -> None:
    backend = OnnxRuntimeBackend().with_session(given, 1)
    assert backend.options(1).inter_op_num_threads == number
    assert backend.options(2).intra_op_num_threads == 2


def test_times_of_one_set_of_options_are_not_those_of_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtimes = [MadeUp(fast_in_blocks, files=True) for _ in range(4)]
    sessions = [None, {PREPACKING: "1"}, {PREPACKING: "0"}, {PREPACKING: "1"}]
    for runtime, session in zip(runtimes, sessions, strict=True):
        tuned(monkeypatch, runtime, cache=tmp_path, session=session)
    first, *others, again = (len(runtime.profiled) for runtime in runtimes)
    assert first > 0
    assert others == [first, first]
    assert (again, runtimes[-1].loaded) == (0, 1)
    assert len([*tmp_path.iterdir()]) == 3


@pytest.mark.parametrize("name", ["torch", "torch.compile"])
def test_a_backend_without_sessions_refuses_them(name: str) -> None:
    said = f"the backend {re.escape(name)} has no sessions of ONNX Runtime"
    with pytest.raises(UsageError, match=said):
        TuningOptions(backend=name, session={PREPACKING: 1}, cache=None)
    TuningOptions(backend=name, session={}, cache=None)


def test_an_output_is_what_it_was_under_any_of_them() -> None:
    backend = backend_named("onnxruntime")
    plain, other = (
        each.load(network({"a": 4}), FEEDS, 1)()[0]
        for each in (backend, backend.with_session("graph_optimization_level=disable_all", 1))
    )
    np.testing.assert_allclose(plain, other, rtol=1e-5)
