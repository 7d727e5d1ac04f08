"""`groupfx bench`: what it says, and which models it does not race."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

import groupfx
from groupfx.errors import UsageError
from tests.cli.runs import SHAPE, Cli, check_json, dense_model, grouped_model, save
from tests.fleet.onnx_files import grouped


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def any_budget_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a tiny model, by chance, takes long where a machine is busy with other tests."""
    monkeypatch.setattr("groupfx.tuning.benchmark.least_seconds", lambda models, run: 0.0)


def test_a_file_against_itself(cli: Cli) -> None:
    grouped(Path("a.onnx"))
    argv = ("bench", "a.onnx", "a.onnx", "--budget", 2, "--json", "bench.json")
    done = cli(*argv, "--session", "execution_mode=parallel")
    assert (done.code, done.err) == (0, "")
    document = check_json(Path("bench.json").read_text(), "groupfx.bench/1")
    first, second = document["models"]
    assert (first["name"], second["name"]) == ("a.onnx", "a.onnx (2)")
    assert first["ratio"] is None
    assert not second["differs"]
    assert document["inputs"] == {"x": [1, 6, 7, 5]}
    assert document["session"] == {"execution_mode": "ORT_PARALLEL"}
    assert "1 thread, execution_mode=ORT_PARALLEL, " in done.out
    assert second["latency"]["p50"] <= second["latency"]["p90"] <= second["latency"]["p99"]
    assert done.row("model") == ["model", "P50 ms", "P90 ms", "P99 ms", "runs"]
    assert second["verdict"] in done.out


def test_what_other_models_compute_is_said(cli: Cli) -> None:
    grouped(Path("a.onnx"))
    # Other names for the same input, and no convolution.
    shape = (1, 6, 7, 5)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("input", "out")]
    node = helper.make_node("Relu", ["input"], ["out"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), "b.onnx")
    done = cli("bench", "a.onnx", "b.onnx", "--budget", 2)
    assert done.code == 0
    assert "b.onnx gives other outputs than a.onnx" in done.err
    assert "x the time of a.onnx: " in done.out


def test_models_of_torch(cli: Cli) -> None:
    save(Path("a.pt"), grouped_model())
    save(Path("b.pt"), dense_model())
    argv = ("bench", "a.pt", "b.pt", "--input-shape", SHAPE, "--backend", "torch")
    done = cli(*argv, "--batch", 1, "--budget", 2, "--json", "-")
    document = check_json(done.out, "groupfx.bench/1")
    assert document["inputs"] == {"0": [1, 6, 9, 11]}
    assert document["models"][1]["ratio"]["value"] < 1


REFUSED = {
    "one": (["a.onnx"], "give two models or more"),
    "gone": (["a.onnx", "gone.onnx"], "there is no file gone.onnx"),
    "shapes": (
        ["a.onnx", "large.onnx"],
        "a.onnx and large.onnx cannot be raced: input x has the shape [1, 6, 7, 5], and large.onnx "
        "takes [1, 6, 9, 9]",
    ),
    "names": (["two.onnx", "mixed.onnx"], "the inputs have different names: x, y in the reference"),
    "number": (["a.onnx", "two.onnx"], "a.onnx and two.onnx cannot be raced: the reference has 1"),
    "dtype": (
        ["two.onnx", "double.onnx"],
        "two.onnx and double.onnx cannot be raced: input x is float32, and float64 in the other",
    ),
    "batch": (["a.onnx", "a.onnx", "--batch", "3"], "input x has the shape [3, 6, 7, 5]"),
    "no_batch": (["a.onnx", "a.onnx", "--batch", "0"], "batch=0: it must be at least 1"),
    "threads": (["a.onnx", "a.onnx", "--threads", "0"], "threads=0"),
    "budget": (["a.onnx", "a.onnx", "--budget", "nan"], "budget=nan"),
    "backend": (["a.onnx", "a.onnx", "--backend", "tvm"], "there is no backend 'tvm'"),
    "session": (["a.onnx", "a.onnx", "--session", "threads=2"], "there is no option 'threads'"),
    "of_torch": (
        ["a.onnx", "a.onnx", "--backend", "torch"],
        "the backend torch runs torch models: a.onnx is a file",
    ),
    "damaged": (["a.onnx", "bad.onnx"], "bad.onnx"),
}


def two_inputs(path: str, names: tuple[str, str], dtype: int = TensorProto.FLOAT) -> None:
    ends = [helper.make_tensor_value_info(n, dtype, (1, 3)) for n in (*names, "out")]
    graph = helper.make_graph([helper.make_node("Add", [*names], ["out"])], "g", ends[:2], ends[2:])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)


@pytest.mark.parametrize(("argv", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_raced(cli: Cli, argv: list[str], said: str) -> None:
    grouped(Path("a.onnx"))
    grouped(Path("large.onnx"), sizes=(1, 6, 9, 9))
    two_inputs("two.onnx", ("x", "y"))
    two_inputs("mixed.onnx", ("x", "z"))
    two_inputs("double.onnx", ("x", "y"), TensorProto.DOUBLE)
    Path("bad.onnx").write_bytes(b"nothing")
    done = cli("bench", *argv)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_modules_that_do_not_run_on_the_same_inputs(cli: Cli) -> None:
    save(Path("a.pt"), grouped_model())
    save(Path("b.pt"), grouped_model()[2:])
    argv = ("bench", "a.pt", "b.pt", "--input-shape", SHAPE, "--backend", "torch")
    done = cli(*argv)
    assert done.code == 2
    assert "a.pt and b.pt cannot be raced: b.pt does not run on inputs of [2, 6, 9, 11]" in done.err


def test_the_library_races_models_too() -> None:
    with pytest.raises(UsageError, match=r"net\.pt is no \.onnx file"):
        groupfx.bench(["net.pt", "net.pt"])
    x = torch.randn(1, 6, 9, 11)
    found = groupfx.bench([grouped_model(), dense_model()], x, budget=2, backend="torch")
    assert found.names == ("Sequential", "Sequential (2)")
    assert [raced.differs for raced in found.raced] == [False, True]
