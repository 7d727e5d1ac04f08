"""No false alarm: a file that another producer made honestly is the same function.

216 files are the long tests; whole numbers in float16, where scores tie, are among them.
"""

from pathlib import Path

import onnx
import pytest

import groupfx
from tests.deploy.validate.honest_producers import (
    MODELS,
    NOT_EVERYWHERE,
    PRODUCERS,
    produced,
    subject,
    why_dishonest,
)

# What an exporter refuses: attention in an old version, an output that is a constant integer.
_CANNOT = {
    ("hybrid", "torchscript-13"),
    ("tuple-output", "dynamo"),
    ("tuple-output", "torchscript-13"),
    ("tuple-output", "torchscript-17"),
}
FILES = [(m, p) for m in MODELS for p in PRODUCERS if (m, p) not in _CANNOT]


def test_there_are_two_hundred_honest_files() -> None:
    assert len(FILES) == len(set(FILES)) == 216


def is_same(model: str, producer: str, folder: Path) -> None:
    of = subject(model, folder.parent)
    path = folder / "file.onnx"
    produced(of, producer, path)
    assert why_dishonest(of, path) is None
    verdict = groupfx.validate(of.model, path, of.inputs)
    assert verdict.verdict == "same", verdict.blame
    assert [note for note in verdict.notes if "a bug of ours" in note] == []


@pytest.mark.long
@pytest.mark.parametrize(("model", "producer"), FILES)
def test_an_honest_file_is_the_same(model: str, producer: str, tmp_path: Path) -> None:
    is_same(model, producer, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("producer", NOT_EVERYWHERE)
def test_a_simplified_file_is_the_same(producer: str, tmp_path: Path) -> None:
    is_same("hybrid", producer, tmp_path)


@pytest.mark.long
def test_a_tie_excuses_no_other_place(tmp_path: Path) -> None:
    of = subject("tokens", tmp_path)
    path = tmp_path / "file.onnx"
    produced(of, "float16", path)
    proto = onnx.load(path)
    (largest,) = (node for node in proto.graph.node if node.op_type == "ArgMax")
    largest.op_type = "ArgMin"
    onnx.save(proto, path)
    assert why_dishonest(of, path) is not None
    verdict = groupfx.validate(of.model, path, of.inputs)
    assert verdict.verdict == "different"
    assert "ArgMin" in str(verdict.blame)
