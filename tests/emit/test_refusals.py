"""What is not written as Python, and what it says."""

from typing import Any

import pytest
from torch import nn

import groupfx
from groupfx.emit import emit_python
from groupfx.emit.graph import graph_file
from groupfx.errors import GroupfxError, RewriteError
from tests.emit import refused as refused
from tests.emit.emitted import rewritten
from tests.models.zoo import CASES


@pytest.mark.parametrize(
    ("model", "inputs", "way", "message"), refused.REFUSED.values(), ids=refused.REFUSED
)
def test_what_cannot_be_written_is_refused(
    model: nn.Module, inputs: tuple[Any, ...], way: str, message: str
) -> None:
    result = groupfx.rewrite(model, inputs, way=way, verify=False)
    with pytest.raises(GroupfxError, match=message) as caught:
        graph_file(result, result.model)
    assert isinstance(caught.value, RewriteError)


@pytest.mark.parametrize("name", refused.NOT_AS_A_GRAPH)
def test_what_only_a_class_can_say_is_refused_in_a_graph(name: str) -> None:
    _, _, result = rewritten(CASES[name])
    with pytest.raises(RewriteError, match="cannot be written as Python: it"):
        graph_file(result, result.model)


def test_a_call_of_a_function_in_a_class_of_the_users_is_refused() -> None:
    _, _, result = rewritten(CASES["branches-on-shape"])
    with pytest.raises(RewriteError, match="is a call of a function that is taken while"):
        emit_python(result)
