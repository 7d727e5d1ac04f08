"""Make the unequal groups of a trained network equal, and fine-tune what that costs.

    python balance.py checkpoints/best.pth
    python balance.py checkpoints/best.pth --multiple 2 --epochs 10

Prints the accuracy on the test images before, after, and fine-tuned, and writes the last as
`balanced.groupfx.pt` beside the checkpoint.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from digits import load_digits
from evaluate import load_network
from rich.console import Console
from train import Options, accuracy_of, train

import groupfx
from groupfx.passes import BalanceGroups


def balance(checkpoint: Path, options: Options, multiple: int) -> list[tuple[str, float]]:
    """Accuracies of the network as it was trained, with equal groups, and fine-tuned."""
    digits = load_digits(options.image_size)
    network = load_network(checkpoint, groups=options.groups, width=options.width)
    steps = [("as trained", accuracy_of(network, digits.test))]
    inputs = (digits.test.images[:2],)
    result = groupfx.rewrite(network, inputs, passes=[BalanceGroups(multiple=multiple)])
    steps.append(("equal groups", accuracy_of(result.model, digits.test)))
    train(options, Console(stderr=True), result.model)
    steps.append(("fine-tuned", accuracy_of(result.model, digits.test)))
    result.model.eval()
    result.save(checkpoint.with_name("balanced.groupfx.pt"), overwrite=True)
    return steps


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each step."""
    default = Options()
    parser = argparse.ArgumentParser(
        description="Make learned groups equal, and fine-tune.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="what train.py wrote")
    add("--groups", type=int, default=default.groups, help="as in training")
    add("--width", type=float, default=default.width, help="as in training")
    add("--image-size", type=int, default=default.image_size, help="as in training")
    add("--multiple", type=int, default=1, help="sizes of groups are multiples of it")
    add("--epochs", type=int, default=5, help="of fine-tuning")
    add("--lr", type=float, default=0.02, help="learning rate of fine-tuning")
    given = parser.parse_args(arguments)
    options = replace(
        default,
        checkpoints=given.checkpoint.parent / "fine-tuning",
        groups=given.groups,
        width=given.width,
        image_size=given.image_size,
        epochs=given.epochs,
        lr=given.lr,
    )
    for what, accuracy in balance(given.checkpoint, options, given.multiple):
        print(f"{what:12}  test accuracy {accuracy:.2%}")


if __name__ == "__main__":
    main()
