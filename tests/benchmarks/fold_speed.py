"""ONNX Runtime on one thread: networks with learned groups, frozen, before and after folding.

Ratios are times by that of masked dense, measured as in `form_speed`: below 1 is faster.
"""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import groupfx
from examples.flgc_digits.network import mobilenet_v2_flgc
from tests.benchmarks.form_speed import race, resnet_18

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "ResNet-18": partial(resnet_18, 8),
    "balanced ResNet-18": partial(resnet_18, 8, balanced=True),
    "balanced MobileNetV2": partial(mobilenet_v2_flgc, 8, balanced=True),
}
SIDES: Mapping[str, list[str]] = {
    "dense": ["freeze-learned-groups:form=dense"],
    "frozen": ["freeze-learned-groups:form=bucketed"],
    "folded": ["freeze-learned-groups:form=bucketed", "fold-permutations"],
}


def run(console: Console, quick: bool) -> None:
    """Print the table of ratios, and what is gathered."""
    table = Table(title="time by that of masked dense, one thread, 8 groups", title_justify="left")
    for column in ("network", "batch", "dense again", "frozen", "folded", "folded / frozen"):
        table.add_column(column, justify="right")
    for name, build in NETWORKS.items():
        torch.manual_seed(8)
        network, x = build().eval(), torch.randn(2, 3, 32, 32)
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for side, passes in SIDES.items():
                made = groupfx.rewrite(network, x, passes=passes, verify=False)
                paths.append(Path(folder) / f"{side}.onnx")
                groupfx.export(made, x, paths[-1])
            (fold,) = made.report.folds
            console.print(f"{name}: {fold.describe()}")
            for batch in (1,) if quick else (1, 16):
                found = race([paths[0], *paths], batch, 2 if quick else 16 // batch + 4)
                cells = [*found[1:], found[3] / found[2]]
                table.add_row(name, str(batch), *(f"{ratio:.3f}" for ratio in cells))
    console.print(table)
