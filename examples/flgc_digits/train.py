"""Train MobileNetV2 with learned groups on the digits, in one process or in several.

    python train.py
    torchrun --nproc-per-node 2 train.py

`--help` names the options. Checkpoints have the two forms of the public FLGC code:

    net_epoch_N.pth      {"net": the module itself, pickled}, every few epochs
    best.pth, last.pth   {"state_dict", "optimizer_state_dict", "lr_scheduler_state_dict",
                          "best_accuracy", "last_epoch"}, plain data
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from digits import Images, load_digits
from network import mobilenet_v2_flgc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Options:
    """What a run depends on. `batch_size` is that of all processes together."""

    checkpoints: Path = Path("checkpoints")
    resume: Path | None = None
    epochs: int = 20
    groups: int = 8
    width: float = 0.3
    balanced: int = 0
    image_size: int = 16
    batch_size: int = 64
    lr: float = 0.1
    map_lr: float = 10.0
    save_every: int = 5
    seed: int = 0
    max_steps: int | None = None


@dataclass
class Run:
    """All that a checkpoint restores, and the network as this process calls it."""

    network: nn.Module
    called: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    best_accuracy: float = 0.0
    last_epoch: int = 0

    def state(self) -> dict[str, Any]:
        """The plain checkpoint."""
        return {
            "state_dict": self.network.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "lr_scheduler_state_dict": self.scheduler.state_dict(),
            "best_accuracy": self.best_accuracy,
            "last_epoch": self.last_epoch,
        }

    def load(self, path: Path) -> None:
        """Continue where the checkpoint was written."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["state_dict"])
        self.optimizer.load_state_dict(state["optimizer_state_dict"])
        self.scheduler.load_state_dict(state["lr_scheduler_state_dict"])
        self.best_accuracy = state["best_accuracy"]
        self.last_epoch = state["last_epoch"]


def make_run(options: Options, network: nn.Module | None = None) -> Run:
    """A network, by default a fresh one, with its optimizer; or what `options.resume` holds."""
    torch.manual_seed(options.seed)
    if network is None:
        network = mobilenet_v2_flgc(
            options.groups, in_channels=1, width=options.width, balanced=options.balanced
        )
    optimizer = torch.optim.SGD(
        _parameter_groups(network, options), lr=options.lr, momentum=0.9, nesterov=True
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    run = Run(network, network, optimizer, scheduler)
    if options.resume is not None:
        run.load(options.resume)
    if distributed.is_initialized():
        run.called = DistributedDataParallel(network)
    return run


def _parameter_groups(network: nn.Module, options: Options) -> list[dict[str, Any]]:
    """Weights, and the maps apart: their gradients pass a softmax and are small."""
    maps = [p for name, p in network.named_parameters() if name.endswith("assignment_map")]
    others = [p for name, p in network.named_parameters() if not name.endswith("assignment_map")]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 1e-4}]
    return [*groups, {"params": maps, "lr": options.map_lr}] if maps else groups


def train(options: Options, console: Console, network: nn.Module | None = None) -> Run:
    """Train up to `options.epochs`; the first process shows progress and writes checkpoints.

    `network` is as in `make_run`.
    """
    digits = load_digits(options.image_size)
    run = make_run(options, network)
    first = _rank() == 0
    if first:
        options.checkpoints.mkdir(parents=True, exist_ok=True)
    count = len(digits.train.labels)
    steps = len(_batches(count, options, 0))
    with _progress(console, disable=not first) as progress:
        bar = progress.add_task("", total=options.epochs * steps, completed=run.last_epoch * steps)
        for epoch in range(run.last_epoch + 1, options.epochs + 1):
            run.called.train()
            for rows in _batches(count, options, epoch):
                loss = _step(run, digits.train.images[rows], digits.train.labels[rows])
                progress.update(bar, advance=1, description=f"epoch {epoch}, loss {loss:.3f}")
            run.scheduler.step()
            run.last_epoch = epoch
            if first:
                accuracy = accuracy_of(run.network, digits.test)
                _save(run, options, accuracy)
                console.print(f"epoch {epoch:3}  loss {loss:.4f}  test accuracy {accuracy:.2%}")
    return run


def accuracy_of(network: nn.Module, data: Images) -> float:
    """Share of the images whose digit is recognised."""
    return float((predictions(network, data.images) == data.labels).double().mean())


@torch.no_grad()
def predictions(network: nn.Module, images: Tensor) -> Tensor:
    """The digit that the network sees in each image, `[N]`."""
    network.eval()
    return torch.cat([network(batch).argmax(1) for batch in images.split(120)])


def _step(run: Run, images: Tensor, labels: Tensor) -> float:
    loss = F.cross_entropy(run.called(images), labels)
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    return loss.item()


def _batches(count: int, options: Options, epoch: int) -> list[Tensor]:
    """This process's rows of each batch; the order depends on the seed and the epoch alone."""
    generator = torch.Generator().manual_seed(options.seed * 10_000 + epoch)
    size = options.batch_size
    order = torch.randperm(count, generator=generator)[: count // size * size]
    batches = order.reshape(-1, size)[: options.max_steps]
    return list(batches[:, _rank() :: _processes()])


def _save(run: Run, options: Options, accuracy: float) -> None:
    best = accuracy > run.best_accuracy
    run.best_accuracy = max(accuracy, run.best_accuracy)
    if best:
        _write(run.state(), options.checkpoints / "best.pth")
    _write(run.state(), options.checkpoints / "last.pth")
    if run.last_epoch % options.save_every == 0:
        _write({"net": run.network}, options.checkpoints / f"net_epoch_{run.last_epoch}.pth")


def _write(content: dict[str, Any], path: Path) -> None:
    """Write all of the file or none of it: an interrupted run can then be resumed."""
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


def _progress(console: Console, *, disable: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=disable)


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Options of the command line."""
    default = Options()
    parser = argparse.ArgumentParser(
        description="Train MobileNetV2 with learned groups on scikit-learn's digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoints", type=Path, default=default.checkpoints, help="folder to write to")
    add("--resume", type=Path, help="checkpoint to go on from, such as checkpoints/last.pth")
    add("--epochs", type=int, default=default.epochs, help="how often to see each image")
    add("--groups", type=int, default=default.groups, help="groups that each projection can use")
    add("--width", type=float, default=default.width, help="factor on all channels")
    add(
        "--balanced",
        type=int,
        default=default.balanced,
        help="groups of equal sizes, multiples of this number; 0: of any size",
    )
    add("--image-size", type=int, default=default.image_size, help="size to resize images to")
    add("--batch-size", type=int, default=default.batch_size, help="of all processes together")
    add("--lr", type=float, default=default.lr, help="learning rate at the start")
    add("--map-lr", type=float, default=default.map_lr, help="the same, of the assignment maps")
    add("--save-every", type=int, default=default.save_every, help="epochs between net_epoch_N.pth")
    add("--seed", type=int, default=default.seed, help="of the weights and the order of images")
    add("--max-steps", type=int, help="batches an epoch, if not all of them")
    return Options(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train; under torchrun, as one of several processes."""
    options = parse(arguments)
    several = "WORLD_SIZE" in os.environ
    if several:
        distributed.init_process_group("gloo")
    try:
        run = train(options, Console(stderr=True))
    finally:
        if several:
            distributed.destroy_process_group()
    if "RANK" not in os.environ or os.environ["RANK"] == "0":
        print(f"best test accuracy {run.best_accuracy:.2%}, in {options.checkpoints / 'best.pth'}")


if __name__ == "__main__":
    main()
