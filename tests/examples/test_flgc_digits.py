"""The example `examples/flgc_digits`: its network, data and checkpoints, and that it learns."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import groupfx
from groupfx.learned.groups import groups_of, has_learned_groups
from groupfx.running.flops import count_flops

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "flgc_digits"
SCRIPTS = ("digits", "network", "train", "evaluate", "balance")
PLAIN_KEYS = {
    "state_dict",
    "optimizer_state_dict",
    "lr_scheduler_state_dict",
    "best_accuracy",
    "last_epoch",
}


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """The scripts of the folder as modules, importable by their bare names as when they are run."""
    sys.path.insert(0, str(FOLDER))
    yield SimpleNamespace(**{name: import_module(name) for name in SCRIPTS})
    sys.path.remove(str(FOLDER))
    for name in SCRIPTS:
        del sys.modules[name]


def quiet() -> Console:
    return Console(quiet=True)


def short(example: Any, folder: Path, **changes: Any) -> Any:
    """Options of a run of a second or two, on a tiny network."""
    tiny = {"epochs": 2, "groups": 3, "width": 0.1, "image_size": 8, "batch_size": 32}
    return example.train.Options(checkpoints=folder, **tiny | {"max_steps": 2} | changes)


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


# The network


@pytest.mark.parametrize(
    ("make", "groups", "flops", "published"),
    [("mobilenet_v2", 1, 94_992_896, 94.9), ("mobilenet_v2", 8, 62_622_208, 62.6)],
    ids=["dense", "8-equal-groups"],
)
def test_flops_are_the_published_ones(
    example: Any, make: str, groups: int, flops: int, published: float
) -> None:
    network = getattr(example.network, make)(groups)
    found = count_flops(network, torch.zeros(1, 3, 32, 32))
    assert found.total == flops
    assert int(found.total / 1e5) / 10 == published
    assert count_flops(network, torch.zeros(3, 3, 32, 32)).total == 3 * flops


def test_a_layer_that_still_learns_costs_what_the_dense_one_costs(example: Any) -> None:
    x = torch.zeros(1, 3, 32, 32)
    learned = count_flops(example.network.mobilenet_v2_flgc(8), x)
    assert learned == count_flops(example.network.mobilenet_v2(), x)


def test_the_network_is_the_one_of_the_source(example: Any) -> None:
    network = example.network.mobilenet_v2_flgc(8, num_classes=7)
    learned = [groups_of(module) for module in network.modules() if has_learned_groups(module)]
    middle = [32, 96, *(144,) * 2, *(192,) * 3, *(384,) * 4, *(576,) * 3, *(960,) * 3]
    assert [groups.in_channels for groups in learned] == middle
    out = [16, 24, 24, 32, 32, 32, *(64,) * 4, *(96,) * 3, *(160,) * 3, 320]
    assert [groups.out_channels for groups in learned] == out
    assert {len(groups.inputs) for groups in learned} == {8}
    convs = [type(block.shortcut).__name__ for block in network.blocks]
    assert convs.count("Sequential") == 4
    assert convs.count("NoneType") == 3
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_the_twins_differ_in_the_projections_only(example: Any) -> None:
    learned = example.network.mobilenet_v2_flgc(4, width=0.5)
    dense = example.network.mobilenet_v2(width=0.5)
    grouped = example.network.mobilenet_v2(4, width=0.5)
    names = [{name for name, _ in network.named_modules()} for network in (learned, dense, grouped)]
    assert names[1] == names[2]
    assert names[0] - names[1] == {f"blocks.{index}.projection.conv" for index in range(17)}
    assert {block.projection.groups for block in grouped.blocks} == {4}


@pytest.mark.parametrize(
    ("channels", "width", "expected"), [(24, 1.0, 24), (24, 0.5, 16), (24, 0.3, 8), (16, 0.1, 8)]
)
def test_widths_are_multiples_of_eight(
    example: Any, channels: int, width: float, expected: int
) -> None:
    assert example.network.scaled(channels, width) == expected


# The data


def test_the_split_is_fixed_fair_and_disjoint(example: Any) -> None:
    digits, again = example.digits.load_digits(8), example.digits.load_digits(8)
    assert digits.train.images.shape == (1437, 1, 8, 8)
    assert digits.test.images.shape == (360, 1, 8, 8)
    assert digits.test.labels[:12].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]
    assert torch.equal(digits.test.images, again.test.images)
    assert torch.equal(digits.train.labels, again.train.labels)
    assert digits.test.labels.bincount().min() >= 35
    seen = {bytes(image.numpy().tobytes()) for image in digits.train.images}
    assert not any(bytes(image.numpy().tobytes()) in seen for image in digits.test.images)
    assert abs(float(digits.train.images.mean())) < 1e-5
    assert example.digits.load_digits(16).test.images.shape == (360, 1, 16, 16)


def test_without_scikit_learn_it_says_so(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(SystemExit, match=r'scikit-learn.*pip install -e "\.\[examples\]"'):
        example.digits.load_digits()


# Training and its checkpoints


def test_training_changes_all_weights_and_writes_both_forms(example: Any, tmp_path: Path) -> None:
    options = short(example, tmp_path, save_every=1)
    fresh = example.train.make_run(options).network.state_dict()
    run = example.train.train(options, quiet())
    trained = run.network.state_dict()
    weights = [name for name, _ in run.network.named_parameters()]
    assert set(weights) <= set(differing(fresh, trained))

    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"best.pth", "last.pth", "net_epoch_1.pth", "net_epoch_2.pth"}
    last = torch.load(tmp_path / "last.pth", weights_only=True)
    assert last.keys() == PLAIN_KEYS
    assert (last["last_epoch"], last["best_accuracy"]) == (2, run.best_accuracy)
    assert differing(last["state_dict"], trained) == []
    assert torch.load(tmp_path / "best.pth", weights_only=True).keys() == PLAIN_KEYS
    module = torch.load(tmp_path / "net_epoch_2.pth", weights_only=False)
    assert module.keys() == {"net"}
    assert type(module["net"]) is example.network.MobileNetV2
    assert differing(module["net"].state_dict(), trained) == []


class Interrupting(Console):
    """Stops the run where it reports its first epoch."""

    def print(self, *objects: Any, **options: Any) -> None:
        raise KeyboardInterrupt


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(example: Any, tmp_path: Path) -> None:
    options = short(example, tmp_path / "whole")
    whole = example.train.train(options, quiet())
    options = replace(options, checkpoints=tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        example.train.train(options, Interrupting(quiet=True))
    last = tmp_path / "parts" / "last.pth"
    assert torch.load(last, weights_only=True)["last_epoch"] == 1
    resumed = example.train.train(replace(options, resume=last), quiet())
    assert resumed.last_epoch == 2
    assert differing(resumed.network.state_dict(), whole.network.state_dict()) == []
    other = example.train.train(replace(options, seed=1), quiet())
    assert differing(other.network.state_dict(), whole.network.state_dict())


def test_options_of_the_command_line(example: Any) -> None:
    assert example.train.parse([]) == example.train.Options()
    arguments = ["--width", "0.5", "--resume", "a/last.pth", "--max-steps", "3", "--map-lr", "2"]
    assert example.train.parse(arguments) == example.train.Options(
        width=0.5, resume=Path("a/last.pth"), max_steps=3, map_lr=2.0
    )


# Evaluation


def untrained(example: Any) -> nn.Module:
    """A network that is not trained, and yet tells some images apart."""
    torch.manual_seed(0)
    network: nn.Module = example.network.mobilenet_v2_flgc(3, in_channels=1, width=0.1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.running_var, 0.1)
    return network.eval()


SIZES = ["--groups", "3", "--width", "0.1", "--image-size", "8"]


def test_evaluate_compares_checkpoints_of_every_form(
    example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = untrained(example)
    paths = [tmp_path / name for name in ("plain.pth", "pickled.pth", "plain.groupfx.pt")]
    torch.save({"state_dict": network.state_dict()}, paths[0])
    torch.save({"net": network}, paths[1])
    groupfx.rewrite(network, (torch.randn(2, 1, 8, 8),), verify=False).save(paths[2])
    example.evaluate.main([*map(str, paths), *SIZES, "--trust"])
    lines = capsys.readouterr().out.splitlines()
    accuracy = example.train.accuracy_of(network, example.digits.load_digits(8).test)
    assert 0 < accuracy < 1
    assert [f"accuracy {accuracy:.2%}" in line for line in lines] == [True] * 3
    assert "same" not in lines[0]
    assert all("same digit as plain.pth: 360/360" in line for line in lines[1:])


def test_evaluate_sees_a_difference(example: Any) -> None:
    network = untrained(example)
    other = example.network.mobilenet_v2_flgc(3, in_channels=1, width=0.1)
    first, second = example.evaluate.evaluate([network, other], 8)
    assert first.same == first.images == second.images == 360
    assert second.same < 360


REFUSED: dict[str, tuple[object, str]] = {
    "missing": (None, r"file\.pth cannot be read"),
    "pickled": ({"net": nn.Linear(2, 3)}, r"file\.pth holds more than plain data.*--trust"),
    "list": ([1, 2], r"file\.pth is damaged, or groupfx did not write it"),
    "another-network": (
        {"state_dict": {"weight": torch.ones(2)}},
        r"file\.pth holds another network than the one of --groups 3 --width 0\.1",
    ),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_evaluate_refuses(example: Any, tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "file.pth"
    if content is not None:
        torch.save(content, path)
    with pytest.raises(SystemExit, match=words):
        example.evaluate.load_network(path, groups=3, width=0.1)


# Longer runs


@pytest.mark.long
def test_it_learns_the_digits(example: Any, tmp_path: Path) -> None:
    run = example.train.train(example.train.Options(checkpoints=tmp_path, epochs=8), quiet())
    assert run.best_accuracy > 0.95


@pytest.mark.long
def test_two_processes_train_together(example: Any, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = ["--checkpoints", str(tmp_path), *SIZES, "--epochs", "1", "--max-steps", "3"]
    done = subprocess.run(
        [*torchrun, str(FOLDER / "train.py"), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best test accuracy") == 1
    assert done.stderr.count("epoch   1  loss") == 1
    last = torch.load(tmp_path / "last.pth", weights_only=True)
    assert last["last_epoch"] == 1
    assert not any(name.startswith("module.") for name in last["state_dict"])
    alone = example.train.train(short(example, tmp_path / "alone", epochs=1, max_steps=3), quiet())
    assert differing(last["state_dict"], alone.network.state_dict())


# Equal groups


def test_a_balanced_run_has_equal_groups_and_is_read_back(example: Any, tmp_path: Path) -> None:
    options = short(example, tmp_path, groups=4, balanced=1)
    run = example.train.train(options, quiet())
    layers = [layer for layer in run.network.modules() if has_learned_groups(layer)]
    assert len(layers) == 17
    assert all(len(set(groups_of(layer).sizes)) == 1 for layer in layers)
    read = example.evaluate.load_network(tmp_path / "last.pth", groups=4, width=0.1)
    assert not differing(run.network.state_dict(), read.state_dict())


def test_a_trained_network_is_balanced_and_fine_tuned(example: Any, tmp_path: Path) -> None:
    options = short(example, tmp_path, groups=4)
    example.train.train(options, quiet())
    tuning = replace(options, checkpoints=tmp_path / "fine-tuning", epochs=1)
    steps = example.balance.balance(tmp_path / "last.pth", tuning, multiple=1)
    assert [name for name, _ in steps] == ["as trained", "equal groups", "fine-tuned"]
    written = groupfx.load(tmp_path / "balanced.groupfx.pt").model
    convs = [m for m in written.modules() if isinstance(m, nn.Conv2d) and m.groups == 4]
    assert len(convs) == 17
    test = example.digits.load_digits(options.image_size).test
    assert example.train.accuracy_of(written, test) == steps[-1][1]
