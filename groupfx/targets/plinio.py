"""PLiNIO's optimisers: PIT, MPS and SuperNet. They want every grouped convolution split."""

from typing import TYPE_CHECKING

from . import Opinion, Target

if TYPE_CHECKING:
    from torch import nn

    from ..convs.spec import ConvSpec
    from ..running.inputs import ExampleInputs
    from ..toolchains import Obstacle

_OK = Opinion("ok", "taken as it is")
_SPLIT = Opinion("split", "refused by PIT, and counted as dense by MPS, until it is split")
_NO_RULE = Opinion("no rule", "it knows no transposed convolution, split or not")


def opinion(conv: "ConvSpec") -> Opinion:
    """Depthwise convolutions are taken, but for those with three spatial dimensions."""
    if conv.kind == "transposed":
        return _NO_RULE
    return _OK if conv.kind == "depthwise" and conv.dims < 3 else _SPLIT


def obstacles(model: "nn.Module", inputs: "ExampleInputs") -> "tuple[Obstacle, ...]":
    """What PIT, MPS and SuperNet would refuse or get wrong."""
    from ..toolchains import plinio

    return plinio.obstacles(model, inputs)


TARGET = Target(
    "plinio",
    place=1,
    passes=(
        "unfuse-norm-activations",
        "drop-asserts",
        "spell-calls",
        "flatten-views",
        "pool-means",
        "lift-functions",
        "part-norms",
        "freeze-learned-groups",
        "split-grouped-conv",
        "fold-permutations:dead=keep",
        "index-channels",
        "merge-concats",
        "keep-outputs",
    ),
    opinion=opinion,
    obstacles=obstacles,
)
