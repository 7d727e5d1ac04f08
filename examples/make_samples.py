"""Write the sample models of this folder as files of groupfx: plain data, read without trust.

    python examples/make_samples.py                           shufflenet_v1_g3.pt
    python examples/make_samples.py CHECKPOINT --width 0.3    flgc_digits.pt as well

`shufflenet_v1_g3.pt` is ShuffleNet v1 with 3 groups (`shufflenet_v1.py`), random weights and a
fixed seed. `flgc_digits.pt` is a checkpoint that `flgc_digits/train.py` wrote.
"""

import argparse
import sys
from pathlib import Path

import torch
from shufflenet_v1 import shufflenet_v1_g3
from torch import nn

import groupfx

FOLDER = Path(__file__).resolve().parent


def write(model: nn.Module, x: torch.Tensor, name: str) -> None:
    """Write `model` as it is: a rewrite with no pass."""
    path = FOLDER / name
    groupfx.rewrite(model.eval(), (x,), passes=[]).save(path, overwrite=True)
    print(f"wrote {path.name}: {path.stat().st_size / 1e6:.1f} MB")


def shufflenet() -> None:
    """ShuffleNet with some statistics in its BatchNorms."""
    torch.manual_seed(0)
    model = shufflenet_v1_g3()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    write(model, torch.randn(2, 3, 32, 32), "shufflenet_v1_g3.pt")


def flgc_digits(checkpoint: Path, groups: int, width: float) -> None:
    """A network of `flgc_digits` with the weights of a checkpoint of its training."""
    sys.path.insert(0, str(FOLDER / "flgc_digits"))
    from network import mobilenet_v2_flgc

    model = mobilenet_v2_flgc(groups, in_channels=1, width=width)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    write(model, torch.randn(2, 1, 16, 16), "flgc_digits.pt")


def main() -> None:
    """Write what the arguments ask for."""
    parser = argparse.ArgumentParser(description="Write the sample models.")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="best.pth of flgc_digits/train.py")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--width", type=float, default=0.3)
    options = parser.parse_args()
    shufflenet()
    if options.checkpoint is not None:
        flgc_digits(options.checkpoint, options.groups, options.width)


if __name__ == "__main__":
    main()
