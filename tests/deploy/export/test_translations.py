"""The exporter's translations are read once, and each export has its own copy of all of them."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch.onnx._internal.exporter import _registration
from torch.onnx._internal.exporter._registration import ONNXRegistry

from groupfx.deploy.export import translations
from groupfx.deploy.export.translations import translations_read_once


def read(opset: int) -> ONNXRegistry:
    return ONNXRegistry().from_torchlib(opset_version=opset)


@pytest.fixture(autouse=True)
def nothing_read() -> Iterator[None]:
    """As in a new process; and what is read here, others do not get."""
    translations._read.cache_clear()
    yield
    translations._read.cache_clear()


def test_they_are_read_again_where_there_may_be_others(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    def ops() -> tuple[()]:
        """Torch's own few translations will do, without the slow ones."""
        reads.append(1)
        return ()

    monkeypatch.setattr(_registration, "onnxscript_apis", SimpleNamespace(get_torchlib_ops=ops))
    plain = read(19)
    reads.clear()
    with translations_read_once():
        changed = read(19)
        assert changed.functions == plain.functions
        one, another, *_ = changed.functions
        changed.functions[one].clear()
        del changed.functions[another]
        assert read(19).functions == plain.functions
        assert len(reads) == 1
        assert [read(opset).opset_version for opset in (21, 19)] == [21, 19]
        assert len(reads) == 2
        with torch.library._scoped_library("groupfx_tests", "DEF") as library:
            library.define("later(Tensor x) -> Tensor")
            read(19)
        assert len(reads) == 3
    read(19)
    assert len(reads) == 4
