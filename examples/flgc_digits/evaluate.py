"""Accuracy on the test digits of one checkpoint or several, and whether they see the same digits.

    python evaluate.py checkpoints/best.pth
    python evaluate.py checkpoints/best.pth best.groupfx.pt

Reads what `train.py` writes and files of groupfx. Each file after the first is compared with the
first, image by image.
"""

import argparse
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from digits import load_digits
from network import mobilenet_v2_flgc
from torch import nn
from train import Options, predictions

import groupfx
from groupfx.running.flops import count_flops


@dataclass(frozen=True)
class Evaluation:
    """What one network does with the test images. `same` counts the first network's predictions."""

    accuracy: float
    same: int
    images: int
    flops: int


def load_network(path: Path, *, groups: int, width: float, trust: bool = False) -> nn.Module:
    """The network in a checkpoint of `train.py`, or the model in a file of groupfx.

    `groups` and `width` are those it was trained with; `trust` allows net_epoch_N.pth, whose
    pickled module can run any code when it is loaded. Exits with a message for anything else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise SystemExit(
            f"{path} holds more than plain data. Loading it can run any code; "
            "if it is yours, give --trust"
        ) from error
    except (OSError, RuntimeError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("net"), nn.Module):
        return content["net"]
    if not isinstance(content, dict) or "state_dict" not in content:
        return _load_groupfx(path)
    sizes = {int(t) for name, t in content["state_dict"].items() if name.endswith(".balanced")}
    balanced = sizes.pop() if sizes else 0
    network = mobilenet_v2_flgc(groups, in_channels=1, width=width, balanced=balanced)
    try:
        network.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise SystemExit(
            f"{path} holds another network than the one of --groups {groups} --width {width}: "
            "give the numbers it was trained with"
        ) from error
    return network


def _load_groupfx(path: Path) -> nn.Module:
    try:
        return groupfx.load(path).model
    except groupfx.GroupfxError as error:
        raise SystemExit(str(error)) from error


def evaluate(networks: Sequence[nn.Module], image_size: int) -> list[Evaluation]:
    """Run all networks on the test images."""
    test = load_digits(image_size).test
    seen = [predictions(network, test.images) for network in networks]
    return [
        Evaluation(
            accuracy=float((own == test.labels).double().mean()),
            same=int((own == seen[0]).sum()),
            images=len(own),
            flops=count_flops(network, test.images[:1]).total,
        )
        for network, own in zip(networks, seen, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each file."""
    default = Options()
    parser = argparse.ArgumentParser(
        description="Accuracy on the test digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="FILE", help="checkpoint, or file of groupfx")
    add("--groups", type=int, default=default.groups, help="as in training")
    add("--width", type=float, default=default.width, help="as in training")
    add("--image-size", type=int, default=default.image_size, help="as in training")
    add("--trust", action="store_true", help="load pickled modules, which can run any code")
    options = parser.parse_args(arguments)
    networks = [
        load_network(path, groups=options.groups, width=options.width, trust=options.trust)
        for path in options.files
    ]
    for path, result in zip(options.files, evaluate(networks, options.image_size), strict=True):
        same = f"same digit as {options.files[0].name}: {result.same}/{result.images}"
        line = f"{path}  accuracy {result.accuracy:.2%}  {result.flops / 1e6:.2f} M FLOPs"
        print(line if path == options.files[0] else f"{line}  {same}")


if __name__ == "__main__":
    main()
