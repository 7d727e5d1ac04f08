"""A weight that a parametrisation computes is one value on both sides, if both compute it alike."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization

import groupfx
from groupfx.errors import MismatchError
from groupfx.passes import SplitGroupedConv
from groupfx.rewriting import Rewritten, Site


class SquashedWeight(nn.Module):
    """A user's parametrisation, with a field and a buffer that train mode writes to."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return torch.tanh(weight) * self.factor


def scaled() -> nn.Module:
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    register_parametrization(conv, "weight", SquashedWeight(0.5))
    register_parametrization(conv, "bias", SquashedWeight(2.0))
    return conv


MODELS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv1d(4, 6, 3, groups=2), dim=2),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3, groups=2)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(4, 6, 3, groups=2)),
    "transposed": lambda: parametrizations.weight_norm(nn.ConvTranspose2d(4, 6, 3, groups=2)),
    "user's": scaled,
}


def _given(conv: nn.Module) -> Tensor:
    return torch.randn(2, 4, 9) if isinstance(conv, nn.Conv1d) else torch.randn(2, 4, 9, 7)


def _rewritten(conv: nn.Module, pass_: SplitGroupedConv, **options: Any) -> Any:
    model = nn.Sequential(conv, nn.ReLU()).eval()
    return groupfx.rewrite(model, (_given(conv),), passes=[pass_], **options)


@pytest.mark.parametrize("way", ["trace", "modules"])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_its_site_is_proved_in_whole_numbers(build: Callable[[], nn.Module], way: str) -> None:
    (site,) = _rewritten(build(), SplitGroupedConv(), way=way).report.sites
    assert site.verdict.ok
    assert site.verdict.proof == "whole numbers"
    assert site.verdict.chance < 2.0**-40
    assert site.verdict.gradients_ok
    assert site.verdict.own_dtype_ok


# Wrong on purpose: in what is computed of the weight, in the weight, and in what computes it

Spoil = Callable[[Site, Rewritten, Any], None]


def swapped_branches(site: Site, made: Rewritten, computing: Any) -> None:
    first, second = made.output.args[0]
    made.output.args = ([second, first],)


def wrong_rows(site: Site, made: Rewritten, computing: Any) -> None:
    first, second = (branch.args[1] for branch in made.output.args[0])
    first.args, second.args = (
        (first.args[0], second.args[1]),
        (second.args[0], first.args[1]),
    )


def lost_bias(site: Site, made: Rewritten, computing: Any) -> None:
    first, _ = made.output.args[0]
    first.args = first.args[:2]


def lost_padding(site: Site, made: Rewritten, computing: Any) -> None:
    for branch in made.output.args[0]:
        branch.kwargs = {**branch.kwargs, "padding": (0, 0)}


def lost_gradient(site: Site, made: Rewritten, computing: Any) -> None:
    first, _ = made.output.args[0]
    with site.graph.inserting_before(first):
        first.args = (
            first.args[0],
            site.graph.call_method("detach", (first.args[1],)),
            *first.args[2:],
        )


def one_ulp(site: Site, made: Rewritten, computing: Any) -> None:
    with torch.no_grad():
        flat = next(computing.parameters()).view(-1)
        flat[0] = torch.nextafter(flat[0], torch.tensor(9.0))


def other_field(site: Site, made: Rewritten, computing: Any) -> None:
    computing[0].factor = 0.25


def other_buffer(site: Site, made: Rewritten, computing: Any) -> None:
    computing[0].calls += 1


def other_mode(site: Site, made: Rewritten, computing: Any) -> None:
    computing[0].train()


def frozen(site: Site, made: Rewritten, computing: Any) -> None:
    next(computing.parameters()).requires_grad_(False)


def another_class(site: Site, made: Rewritten, computing: Any) -> None:
    class Doubled(SquashedWeight):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * super().forward(weight)

    computing[0].__class__ = Doubled


def hooked(site: Site, made: Rewritten, computing: Any) -> None:
    computing[0].register_forward_hook(lambda _, given, found: 2 * found)


def computed_twice(site: Site, made: Rewritten, computing: Any) -> None:
    """In train mode its buffer counts two calls."""
    first, _ = made.output.args[0]
    whole = first.args[1].args[0]
    with site.graph.inserting_before(whole):
        again = site.graph.call_module(str(whole.target))
    first.args[1].args = (again, *first.args[1].args[1:])


WRONG: list[Spoil] = [
    *(swapped_branches, wrong_rows, lost_bias, lost_padding, lost_gradient, one_ulp),
    *(other_mode, frozen, hooked),
]
WRONG_OF_A_USERS: list[Spoil] = [*WRONG, other_field, other_buffer, another_class, computed_twice]
# Of a user's class, in way `modules`, calls of the function are swapped, and it stays where it is.
CASES = [
    *(pytest.param("trace", scaled, each, id=each.__name__) for each in WRONG_OF_A_USERS),
    *(
        pytest.param("modules", MODELS["weight norm"], each, id=f"{each.__name__}-modules")
        for each in WRONG
    ),
]


class SpoiledParametrized(SplitGroupedConv):
    spoil: Spoil

    def rewrite(self, site: Site, description: Any) -> Rewritten:
        computing = site.module.get_submodule("parametrizations.weight")
        made = super().rewrite(site, description)
        type(self).spoil(site, made, computing)
        return made


@pytest.mark.parametrize(("way", "build", "spoil"), CASES)
def test_a_wrong_site_is_found(way: str, build: Callable[[], nn.Module], spoil: Spoil) -> None:
    wrong = dataclasses.dataclass(frozen=True)(
        type("Wrong", (SpoiledParametrized,), {"spoil": staticmethod(spoil), "__doc__": "Wrong."})
    )
    with pytest.raises(MismatchError) as caught:
        _rewritten(build(), wrong(), way=way)
    (site,) = caught.value.report.sites
    assert not site.verdict.ok or caught.value.report.changes
