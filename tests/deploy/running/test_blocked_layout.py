"""The width of the blocked layout is seen in what the runtime makes of a graph, not assumed."""

import tempfile
from typing import Any

import onnx
import onnxruntime as ort
import pytest

from groupfx.deploy.running.blocked_layout import block_width, this_machine
from groupfx.errors import ModelError
from groupfx.plan.machine import Machine


def blocked_by(width: int) -> type:
    """A runtime with blocks of `width` channels: grouped convolutions that fit stay in them."""

    class Session:
        def __init__(self, data: bytes, options: Any, providers: Any) -> None:
            model = onnx.load_from_string(data)
            (conv,) = model.graph.node
            (weight,) = model.graph.initializer
            if width and weight.dims[1] % width == 0:
                conv.domain = "com.microsoft.nchwc"
            onnx.save(model, options.optimized_model_filepath)

    return Session


@pytest.mark.parametrize(
    ("width", "machine"),
    [(8, Machine.avx2()), (16, Machine()), (0, Machine(block=0))],
)
def test_the_width_of_the_blocks_is_seen(
    monkeypatch: pytest.MonkeyPatch, width: int, machine: Machine
) -> None:
    monkeypatch.setattr(ort, "InferenceSession", blocked_by(width))
    assert block_width() == width
    assert this_machine() == machine


def test_a_runtime_that_does_not_optimise_has_no_blocks() -> None:
    def off() -> ort.SessionOptions:
        made = ort.SessionOptions()
        made.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return made

    assert block_width(off) == 0


def test_where_there_is_no_room_for_a_file_the_default_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    with pytest.raises(ModelError, match=r"does not say .* No usable temporary directory"):
        block_width()
    assert this_machine() == Machine()
