"""Which operations write to what they are given, however they are spelled."""

import operator
from typing import Any

import pytest
import torch
from torch import fx, nn

from groupfx.rewriting.writes import is_written

WRITES: list[tuple[Any, ...]] = [
    *((kind, 0, 1.0) for kind in (operator.setitem, "__setitem__")),
    *((kind, 2.0) for kind in (operator.iadd, "__iadd__", "add_", operator.imod, "__imod__")),
    *((kind, 2.0) for kind in (operator.ipow, operator.iand, "__ior__", operator.imatmul)),
]
READS: list[tuple[Any, ...]] = [
    *((kind, 0) for kind in (operator.getitem, "__getitem__", "select")),
    *((kind, 2.0) for kind in (operator.add, "__add__", "add", torch.add)),
    ("detach_",),
    ("requires_grad_",),
]


def name_of(call: tuple[Any, ...]) -> str:
    kind = call[0]
    return kind if isinstance(kind, str) else f"{kind.__module__ or 'torch'}.{kind.__name__}"


def is_changed(*calls: tuple[Any, ...]) -> bool:
    """Whether a value is, where each call takes what the one before gives."""
    graph = fx.Graph()
    first = value = graph.call_method("clone", (graph.placeholder("x"),))
    for kind, *rest in calls:
        call = graph.call_method if isinstance(kind, str) else graph.call_function
        value = call(kind, (value, *rest))
    graph.output(first)
    return is_written(first, nn.Module())


@pytest.mark.parametrize("call", WRITES, ids=name_of)
def test_what_writes(call: tuple[Any, ...]) -> None:
    assert is_changed(call)
    assert is_changed(("__getitem__", 0), call)
    assert not is_changed(("clone",), call)


@pytest.mark.parametrize("call", READS, ids=name_of)
def test_what_reads_alone(call: tuple[Any, ...]) -> None:
    assert not is_changed(call)
