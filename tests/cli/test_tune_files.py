"""`groupfx tune` of ONNX files of odd kinds: tuned and the same, or refused by name."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import groupfx.tuning.tune as tuning
from tests.cli.runs import Cli

_WEIGHT = "<float[4,2,1,1] w = {1, 2, 3, 4, 5, 6, 7, 8}>"
_CONV = "y = Conv <group: int = 2> (x, w)"
_X, _Y = "float[1,4,3,5] x", "float[1,4,3,5] y"


def parsed(inputs: str, outputs: str, body: str, held: str = _WEIGHT) -> onnx.ModelProto:
    head = '<ir_version: 9, opset_import: ["" : 18]>'
    return onnx.parser.parse_model(f"{head} g ({inputs}) => ({outputs}) {held} {{ {body} }}")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("GROUPFX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "probe", lambda *given: {})
    return Cli(capsys, tmp_path, monkeypatch)


FILES: dict[str, tuple[onnx.ModelProto, int, str]] = {
    "text goes in": (
        parsed(f"{_X}, string[1] s", f"{_Y}, string[1] t", f"{_CONV} t = Identity (s)"),
        2,
        "input 's' is text, which nothing can be drawn for",
    ),
    "a sequence comes out": (
        parsed(_X, "seq(float[1,1,3,5]) z", f"{_CONV} z = SplitToSequence <axis: int = 1> (y)"),
        2,
        "output z is no tensor, which is not compared: leave it out of the file",
    ),
    "constants are convolved": (
        parsed(
            "",
            "float[1,4,1,2] y",
            _CONV,
            f"{_WEIGHT[:-1]}, float[1,4,1,2] x = {{1, 2, 3, 4, 5, 6, 7, 8}}>",
        ),
        0,
        "Same function",
    ),
}


@pytest.mark.parametrize(("model", "code", "said"), FILES.values(), ids=FILES.keys())
def test_a_file_of_an_odd_kind(cli: Cli, model: onnx.ModelProto, code: int, said: str) -> None:
    onnx.save(model, "net.onnx")
    done = cli("tune", "net.onnx", "--budget", "0.5")
    assert done.code == code, done.err
    assert said in (done.out if code == 0 else done.err)
    assert Path("net.tuned.onnx").exists() == (code == 0)
