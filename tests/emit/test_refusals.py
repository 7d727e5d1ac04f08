"""What is not written as Python, and what it says."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    message = "are one parameter" if name in refused.TIED else "cannot be written as Python: it"
    with pytest.raises(RewriteError, match=message):
        graph_file(result, result.model)


class UnlikeCalls(nn.Module):
    """Calls with two numbers of groups, in a forward that no trace is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1)) if x.shape[-1] % 2 else x
        return F.conv1d(x, self.weight, groups=2) + F.conv1d(x, self.weight[:, :2], groups=4)


def test_calls_with_other_numbers_of_groups_in_one_module_are_refused() -> None:
    result = groupfx.rewrite(UnlikeCalls(), torch.randn(2, 8, 7), verify=False)
    assert result.report.way == "modules"
    with pytest.raises(RewriteError, match=r"calls with other numbers of groups.*as a layer"):
        emit_python(result)


class CalledBelow(nn.Module):
    """Calls an operator below torch's functions, which a file in plain torch does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1)) if x.shape[-1] % 2 else x
        return torch.ops.aten.conv1d(x, self.weight, None, [1], [0], [1], 2)


def test_a_file_that_would_leave_a_convolution_in_groups_is_not_given_out() -> None:
    result = groupfx.rewrite(CalledBelow(), torch.randn(2, 8, 7), verify=False)
    assert len(result.report.sites) == 1
    with pytest.raises(RewriteError, match=r"test_refusals.py:\d+\) is called in a way .* stays"):
        emit_python(result)
