"""A copy is trained as the model is, and one that cannot be made says because of what."""

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.errors import ModelError
from groupfx.running.copies import copied
from groupfx.running.overlaps import overlapping


def negate(bias: Tensor) -> None:
    bias.grad.neg_()


def hooked() -> nn.Module:
    model = nn.Linear(3, 2)
    model.weight.register_hook(lambda gradient: gradient * 2)
    model.bias.register_post_accumulate_grad_hook(negate)
    return model


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(nn.Linear(3, 2))
    model.bias.requires_grad_(False)
    return model


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    model(x).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("make", [hooked, scripted])
def test_a_copy_is_trained_as_the_model_is(make: Any) -> None:
    model, x = make(), torch.randn(4, 3)
    twin = copied(model, share=False)
    assert all(parameter.is_leaf for parameter in twin.parameters())
    expected = gradients(model, x)
    assert all(p.grad is None for p in twin.parameters())
    found = gradients(twin, x)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None)
        assert gradient is None or torch.equal(found[name], gradient)


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.mutex = threading.Lock()


def test_what_cannot_be_copied_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Sequential(Locked()))
    with pytest.raises(ModelError, match=r"Sequential cannot be .* because of its 1\.0\.mutex"):
        copied(model, share=False)


def test_marks_on_parameters_are_copied_and_tensors_on_them_are_not() -> None:
    model = nn.Conv2d(6, 6, 1, groups=3)
    model.weight.decays = False  # type: ignore[attr-defined]
    model.weight.moment = torch.zeros(6)  # type: ignore[attr-defined]
    split = groupfx.rewrite(nn.Sequential(model), torch.randn(2, 6, 3, 3)).model
    marked = [p for n, p in split.named_parameters() if n.endswith("weight")]
    assert len(marked) == 3
    for parameter in (copied(model, share=False).weight, *marked):
        assert vars(parameter) == {"decays": False}


@pytest.mark.parametrize(
    "weight",
    [torch.randn(1, 2, 3, 3).expand(6, 2, 3, 3), torch.randn(6, 4, 3, 3)[1:, ::2][:, :2].mT],
    ids=["expanded", "with-gaps"],
)
def test_a_parameter_that_does_not_lie_densely_does_not_in_a_copy(weight: torch.Tensor) -> None:
    model = nn.Conv2d(6, len(weight), 3, groups=1)
    model.weight = nn.Parameter(weight)
    twin = copied(model, share=False)
    assert torch.equal(twin.weight, weight)
    assert twin.weight.stride() == weight.stride()
    assert twin.weight.data_ptr() != weight.data_ptr()
    # A copy that is no rewrite is compared with the model, layout and all.
    result = groupfx.rewrite(
        nn.Sequential(nn.Conv2d(2, 2, 1), Reads(weight)), torch.randn(1, 2, 3, 3)
    )
    assert not result.report.sites


class Reads(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight.sum()


class Overlapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Parameter(torch.randn(4, 3))
        self.part = nn.Parameter(self.whole.data[1:3, ::2])
        self.register_buffer("seen", self.whole.data[2:])


def test_what_lies_on_one_another_does_so_in_a_copy() -> None:
    model = Overlapping()
    twin = copied(model, share=False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], tensor)
    twin.whole.data[2, 2] = 7.0
    assert (twin.part[1, 1], twin.seen[0, 2]) == (7.0, 7.0)
    assert model.whole[2, 2] != 7.0
    assert [list(group) for group in overlapping(model)] == [["whole", "part", "seen"]]


def test_neighbours_in_one_memory_do_not_lie_on_one_another() -> None:
    """Such as the parameters of a model that was flattened for an optimiser."""
    model = nn.Linear(3, 2)
    flat = torch.randn(8)
    model.weight.data, model.bias.data = flat[:6].view(2, 3), flat[6:]
    assert not list(overlapping(model))
