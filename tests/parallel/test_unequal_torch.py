"""Branches whose groups are of several sizes, in torch graphs: buckets, or padding, on request."""

from __future__ import annotations

import copy
import json
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.errors import UsageError
from groupfx.passes import MergeParallelConv
from groupfx.state.reversed_map import map_from_dict
from groupfx.testing import check_pass
from tests.parallel.torch_branches import SideBySide, X

SIDES = ((4, 6, 2), (6, 3, 3), (2, 3, 1))
"""Inputs, outputs and groups of branches, of which the first and the last have like groups."""


def unequal_parts(x: Tensor) -> list[Tensor]:
    return [x[:, :4], x[:, 4:10], x[:, 10:]]


def unequal_model(kind: Any = nn.Conv2d, **options: Any) -> SideBySide:
    convs = [kind(i, o, 3, groups=g, **options) for i, o, g in SIDES]
    behind = [nn.Sequential(nn.BatchNorm2d(o), nn.ReLU()) for _, o, _ in SIDES]
    return SideBySide(unequal_parts, convs, behind)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize(("unequal", "convs"), [("bucketed", 2), ("padded", 1)])
def test_groups_of_several_sizes_on_request(
    unequal: Literal["bucketed", "padded"], convs: int, kind: Any
) -> None:
    model = unequal_model(kind).eval()
    assert not groupfx.rewrite(model, X, passes=[MergeParallelConv()]).report.sites
    result = check_pass(MergeParallelConv(unequal=unequal), model, (X,), sites=1)
    (site,) = result.report.sites
    assert site.after.startswith(unequal)
    assert "groups of several sizes (2->1, 2->3 channels)" in site.notes[0]
    assert sum(isinstance(m, kind) for m in result.model.modules()) == convs
    back = result.state_dict_map.to_original()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())


def test_a_bucket_of_one_branch_is_that_branch() -> None:
    result = groupfx.rewrite(
        unequal_model().eval(), X, passes=[MergeParallelConv(unequal="bucketed")]
    )
    assert {"convs.0_merged.weight", "convs.1.weight"} <= result.model.state_dict().keys()


@pytest.mark.parametrize("unequal", ["bucketed", "padded"])
def test_unequal_branches_train_as_they_did(unequal: Literal["bucketed", "padded"]) -> None:
    """Steps with weight decay and momentum: what fills up stays 0, and the map gives all back."""
    model = unequal_model()
    result = groupfx.rewrite(model, X, passes=[MergeParallelConv(unequal=unequal)])
    other = copy.deepcopy(model)
    for each in (other, result.model):
        optimizer = torch.optim.Adam(each.parameters(), lr=0.05, weight_decay=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            each(X).square().mean().backward()
            optimizer.step()
    final = result.state_dict_map.to_original()
    for key, value in other.named_parameters():
        assert torch.allclose(final[key], value, atol=1e-4), key
    result.state_dict_map.load_original(other.state_dict())
    assert torch.allclose(result.model.eval()(X), other.eval()(X), atol=1e-5)


def test_a_map_with_padding_is_read_back() -> None:
    result = groupfx.rewrite(
        unequal_model().eval(), X, passes=[MergeParallelConv(unequal="padded")]
    )
    plain = json.loads(json.dumps(result.state_dict_map.to_dict()))
    again = map_from_dict(plain, model=result.model).to_original()
    assert all(torch.equal(again[k], v) for k, v in result.state_dict_map.to_original().items())
    with torch.no_grad():
        result.model.get_submodule("convs").weight += 1
    with pytest.raises(UsageError, match=r"convs\.weight"):
        result.state_dict_map.to_original()


def test_zeros_of_a_transposed_convolution_would_be_trained() -> None:
    convs = [nn.ConvTranspose2d(i, o, 3) for i, o in ((4, 6), (6, 6), (2, 6))]
    model = SideBySide(unequal_parts, convs).eval()
    result = groupfx.rewrite(model, X, passes=[MergeParallelConv(unequal="padded")])
    assert "no transposed convolution keeps the zeros" in result.report.skipped[0].reason
