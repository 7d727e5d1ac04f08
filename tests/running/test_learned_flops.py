"""FLOPs of learned groups: in the network of the example, and of a layer that is called twice."""

import math

import torch
from torch import Tensor, nn

from groupfx.learned.groups import INPUT_SCORES, OUTPUT_SCORES
from groupfx.learned.layers import learned_layers
from groupfx.nn import Flgc1d
from groupfx.running.inputs import ExampleInputs
from groupfx.running.learned_flops import count_learned
from tests.models import zoo


def test_flops_of_the_published_network() -> None:
    network = zoo.load_example("flgc_digits/network").mobilenet_v2_flgc(8)
    layers = learned_layers(network)
    assert len(layers) == 17
    counted = count_learned(network, ExampleInputs.of(torch.randn(2, 3, 32, 32)), layers)
    assert round(counted.dense.total / 1e6, 2) == 94.99
    # The projections are 1x1, and the image is 32, 16, 8 and 4 wide in turn.
    positions = [32**2] * 3 + [16**2] * 3 + [8**2] * 7 + [4**2] * 4
    saved = 0
    for block, count in zip(network.blocks, positions, strict=True):
        layer = block.projection
        tables = [
            nn.functional.one_hot(layer.get_parameter(name).argmax(1), 8)
            for name in (INPUT_SCORES, OUTPUT_SCORES)
        ]
        sizes = [table.sum(0).tolist() for table in tables]
        exact = sum(i * o for i, o in zip(*sizes, strict=True))
        saved += count * (math.prod(layer.conv.weight.shape[:2]) - exact)
    assert counted.dense.total - counted.exact.total == saved
    assert counted.exact.total < counted.dense.total


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    class LearningLayerTwice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Flgc1d(3, 3, 3, padding=1, group_num=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    model = LearningLayerTwice()
    (layer,) = learned_layers(model)
    counted = count_learned(model, ExampleInputs.of(torch.randn(4, 3, 10)), [layer])
    assert counted.positions == {"layer": 20}
    assert counted.dense.convolutions == 2 * 10 * 3 * 3 * 3
    assert counted.exact.convolutions == 2 * 10 * 3 * layer.structure.exact_macs
    assert not model.layer._forward_hooks
