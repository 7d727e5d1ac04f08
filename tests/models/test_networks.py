"""Networks as their libraries write them: found, split, proved, trained, saved and exported."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.convs.names import unnumbered
from groupfx.errors import ModelError
from groupfx.passes import SplitGroupedConv
from tests.models.networks import NETWORKS, Network, tensors
from tests.models.zoo import count_grouped_calls, give_statistics
from tests.thinning import long_unless

SPLIT = [SplitGroupedConv(depthwise="split")]
QUICK = ("tf-efficientnet", "tresnet", "seanet", "condconv")
each_network = pytest.mark.parametrize("network", long_unless(QUICK, NETWORKS))


def built(network: Network) -> nn.Module:
    torch.manual_seed(0)
    model = network.make()
    give_statistics(model)
    return model.eval()


def inputs(network: Network, batch: int = 2, more: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    shapes = ((batch, s[1], *(size + more for size in s[2:])) for s in network.shapes)
    return tuple(map(torch.randn, shapes))


def assert_alike(model: nn.Module, other: nn.Module, given: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        expected, found = (list(tensors(m(*(x.clone() for x in given)))) for m in (model, other))
    assert len(expected) == len(found) > 0
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()


@each_network
def test_a_network(network: Network, tmp_path: Path) -> None:
    model, given = built(network), inputs(network)
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    assert count_grouped_calls(built(network), given).total() == network.runs
    found = groupfx.find(model, given)
    assert sum({unnumbered(site.name): site.calls for site in found}.values()) == network.runs
    result = groupfx.rewrite(model, given, passes=SPLIT)
    report = result.report
    assert report.verified
    assert (report.way, len(report.skipped)) == (network.way, network.left)
    for path, module in model.named_modules():
        assert vars(module).keys() == before[path].keys()

    reference = built(network)
    for batch, more in ((2, 0), (1, 0), (3, 4)):
        assert_alike(reference, result.model, inputs(network, batch, more))

    path = tmp_path / "m.pt"
    result.save(path)
    twin = built(network) if report.way == "modules" else None
    assert_alike(reference, groupfx.load(path, twin).model, given)
    torch.manual_seed(7)
    other = network.make().eval()
    result.state_dict_map.load_original(other.state_dict())
    assert_alike(other, result.model, given)
    back = result.state_dict_map.to_original()
    assert back.keys() == other.state_dict().keys()

    result.model.train()
    sum(y.square().mean() for y in tensors(result.model(*given)) if y.requires_grad).backward()
    assert any(p.grad is not None and p.grad.any() for p in result.model.parameters())


@pytest.mark.long
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_an_export_of_a_network(network: Network, tmp_path: Path) -> None:
    model, given = built(network), inputs(network)
    for name, how in (("whole", {"target": "onnxruntime"}), ("split", {"passes": SPLIT})):
        path = tmp_path / f"{name}.onnx"
        result = groupfx.rewrite(model, given, **how)
        if not network.exported:
            with pytest.raises(ModelError, match=r"torch\.export does not take"):
                groupfx.export(result, given, path)
            continue
        groupfx.export(result, given, path)
        verdict = groupfx.validate(model, path, given)
        assert verdict.ok, verdict.blame


@pytest.mark.long
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_a_network_for_plinio(network: Network) -> None:
    model, given = built(network), inputs(network)
    result = groupfx.rewrite(model, given, target="plinio")
    assert result.report.verified
    assert_alike(built(network), result.model, given)
    assert all(each.reason for each in result.report.skipped)
