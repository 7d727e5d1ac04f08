"""A run that is killed between any two calls of the system leaves the old file or the new one.

Each attempt is a child that ends itself, as a kill does, in front of the n-th call that changes or
opens something in the folder; it goes on until a child comes to its end.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import groupfx.files.atomic as atomic
from groupfx.deploy.graph.files import write_onnx
from groupfx.files.atomic import whole_file

_CHANGING = {"open", "os.rename", "os.remove", "os.link", "os.truncate", "os.listdir"}
_KILLED = 137


def model(value: float) -> ir.Model:
    weight = numpy_helper.from_array(np.full((16, 16, 1, 1), value, np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 16, 3, 3)) for n in "xy")
    graph = helper.make_graph([node], f"value {value}", [x], [y], [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made.producer_name = "groupfx"
    return ir.from_proto(made)


def write(folder: Path, value: float, *, external: bool) -> None:
    write_onnx(model(value), folder / "m.onnx", overwrite=False, external=external)


def state(folder: Path) -> tuple[str, float]:
    """What a reader finds: the name of the graph, and the value of its weights."""
    found = onnx.load(folder / "m.onnx")
    (value,) = {float(v) for v in numpy_helper.to_array(found.graph.initializer[0]).ravel()}
    return found.graph.name, value


def killed_at(step: int, folder: Path, work: Callable[[], None]) -> bool:
    """Whether a child that does `work` was killed in front of its call number `step`."""
    child = os.fork()
    if not child:
        left = step

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            here = any(
                str(folder) in os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes))
            )
            if event in _CHANGING and here:
                left -= 1
                if left < 0:
                    os._exit(_KILLED)

        sys.addaudithook(count)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, _KILLED)
    return code == _KILLED


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a moment ago are as good as old ones: nobody else writes here."""
    monkeypatch.setattr(atomic, "_YOUNG", 0.0)


@pytest.mark.parametrize("after", [True, False], ids=["to-two-files", "to-one-file"])
@pytest.mark.parametrize("before", [True, False], ids=["from-two-files", "from-one-file"])
def test_a_file_and_its_weights_belong_together(tmp_path: Path, before: bool, after: bool) -> None:
    old, new = ("value 1.0", 1.0), ("value 2.0", 2.0)
    steps, seen = 0, set()
    while True:
        write(tmp_path, 1.0, external=before)
        assert len(os.listdir(tmp_path)) == 1 + before, "something of a killed run stayed"
        if not killed_at(steps, tmp_path, lambda: write(tmp_path, 2.0, external=after)):
            break
        assert state(tmp_path) in (old, new)
        seen.add(state(tmp_path))
        steps += 1
    assert state(tmp_path) == new
    assert len(os.listdir(tmp_path)) == 1 + after
    assert steps > 3
    assert old in seen


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with whole_file(tmp_path / "m") as first:
        first.write(b"first")
        with whole_file(tmp_path / "m") as second:
            second.write(b"second")
        assert len(os.listdir(tmp_path)) == 2
    assert (tmp_path / "m").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["m"]


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = (
        ".m.0123456789ab.part.mine",
        ".m.notes.part",
        ".n.0123456789ab.part",
        "m.0123456789ab.part",
    )
    for name in (*kept, ".m.0123456789ab.part"):
        (tmp_path / name).write_bytes(b"x")
    with whole_file(tmp_path / "m") as file:
        file.write(b"new")
    assert set(os.listdir(tmp_path)) == {*kept, "m"}
