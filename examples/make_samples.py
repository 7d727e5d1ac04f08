"""Write the sample model of this folder: `python examples/make_samples.py`.

`shufflenet_v1_g3.pt` is ShuffleNet v1 with 3 groups (`shufflenet_v1.py`), random weights and a
fixed seed, as a file of groupfx: plain data that is read without trusting anybody.
"""

from pathlib import Path

import torch
from shufflenet_v1 import shufflenet_v1_g3
from torch import nn

import groupfx

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Build, give the BatchNorms some statistics, and write without rewriting anything."""
    torch.manual_seed(0)
    model = shufflenet_v1_g3()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    result = groupfx.rewrite(model.eval(), (torch.randn(2, 3, 32, 32),), passes=[])
    path = FOLDER / "shufflenet_v1_g3.pt"
    result.save(path, overwrite=True)
    print(f"wrote {path.name}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
