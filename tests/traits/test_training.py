"""What a forward decides about its training, the result does as well, in every way."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from groupfx.errors import MismatchError
from groupfx.rewriting.pipeline import Pipeline
from tests.traits.trait import One, image

SPLIT: dict[str, Any] = {"passes": ["split-grouped-conv"]}
WAYS = {
    "split": SPLIT,
    "plinio": {"target": "plinio"},
    "fold": {"passes": ["split-grouped-conv", "fold-permutations"]},
}


class ByMethod(One):
    def forward(self, x: Tensor) -> Tensor:
        self.conv.weight.requires_grad_(False)
        y = self.conv(x)
        self.conv.weight.requires_grad_(True)
        return y


class ByAttribute(One):
    def forward(self, x: Tensor) -> Tensor:
        self.conv.weight.requires_grad = False
        y = self.conv(x)
        self.conv.weight.requires_grad = True
        return y


class OfAPart(One):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        for parameter in self.conv.parameters():
            parameter.requires_grad = False
        return self.norm(self.conv(x))


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", [ByMethod, ByAttribute, OfAPart])
def test_what_forward_keeps_from_training_is_kept_from_it(kind: Any, options: Any) -> None:
    model, x = kind().eval(), image()
    result = groupfx.rewrite(model, x, **options)
    assert result.report.verified
    assert len(result.report.sites) == 1
    assert any("requires_grad of" in note for note in result.report.notes)
    for each in (model, result.model.eval()):
        # After the first forward it is said what is trained.
        each(x)
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        each(x).square().mean().backward()
        optimizer.step()
    trained = result.state_dict_map.to_original(fill=model.state_dict())
    torch.testing.assert_close(dict(trained), dict(model.state_dict()))


class ScaledFromOutside(One):
    def __init__(self) -> None:
        super().__init__()
        self.held = [nn.Parameter(torch.randn(6, 1, 1))]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.held[0]


class NormOutside(ScaledFromOutside):
    def __init__(self) -> None:
        super().__init__()
        self.norm = [nn.BatchNorm2d(6)]
        self.held = [self.norm[0].weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm[0].eval()(self.conv(x))


class KernelOutside(ScaledFromOutside):
    def __init__(self) -> None:
        super().__init__()
        self.held = [torch.randn(6, 2, 3, 3, requires_grad=True)]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.conv(x), self.held[0], groups=3)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", [ScaledFromOutside, NormOutside, KernelOutside])
def test_what_is_trained_outside_of_the_model_stays_trained(kind: Any, options: Any) -> None:
    model, x = kind().eval(), image()
    result = groupfx.rewrite(model, x, **options)
    assert result.report.verified
    assert result.report.sites
    result.model.eval()(x).sum().backward()
    assert (held := getattr(result.model, "held", None)) is not None
    assert held[0].grad is not None


class ShortTokens(nn.Module):
    """An embedding that shortens the rows that it reads."""

    def __init__(self, embedding: Any, size: int) -> None:
        super().__init__()
        self.embed = embedding(9, 6, max_norm=1.0)
        self.conv = nn.Conv1d(6, 6, size, groups=3)

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.embed(tokens)
        return self.conv(rows.mT if rows.dim() == 3 else rows[..., None])


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("embedding", "size"), [(nn.Embedding, 3), (nn.EmbeddingBag, 1)])
def test_rows_that_are_shortened_as_they_are_read(embedding: Any, size: int, options: Any) -> None:
    model, tokens = ShortTokens(embedding, size).eval(), torch.randint(0, 9, (2, 5))
    before = model.embed.weight.detach().clone()
    result = groupfx.rewrite(model, tokens, **options)
    assert result.report.verified
    assert len(result.report.sites) == 1
    # Neither the model nor its rewrite has read anything yet.
    assert torch.equal(model.embed.weight, before)
    assert torch.equal(result.model.get_parameter("embed.weight"), before)
    torch.testing.assert_close(result.model(tokens), model(tokens))


class TakesMore(ShortTokens):
    def forward(self, tokens: Tensor, **_: Any) -> Tensor:
        return super().forward(tokens)


def test_a_way_that_failed_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two axes of tokens, both left open by an export that is asked for one size, too."""
    model, tokens = TakesMore(nn.Embedding, 3).eval(), torch.randint(0, 9, (2, 5))
    model.embed.max_norm = None
    report = groupfx.rewrite(model, tokens, **SPLIT).report
    assert report.model is not None
    wrong = replace(report, model=replace(report.model, ok=False, reason="it differs"))
    ways: list[str] = []

    def differs(_: Pipeline, program: Any, **__: Any) -> Any:
        ways.append(program.way)
        assert len(ways) < 9, "it goes on"
        raise MismatchError("it differs", report=wrong)

    monkeypatch.setattr(Pipeline, "run", differs)
    with pytest.raises(MismatchError):
        groupfx.rewrite(model, tokens, target="plinio")
    assert ways == ["export", "export", "modules", "modules"]
