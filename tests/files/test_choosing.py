"""Of several networks in one file, every reader takes the same one, and says which and of which."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from groupfx.errors import FileError, UsageError
from groupfx.files.checkpoints import read_checkpoint
from groupfx.files.models import read_model


def module(value: float) -> nn.Linear:
    """A network that is told from others by its numbers."""
    linear = nn.Linear(2, 3)
    nn.init.constant_(linear.weight, value)
    return linear


def weights(value: float) -> dict[str, Any]:
    return module(value).state_dict()


def optimizer() -> dict[str, Any]:
    """What torch.optim.Adam keeps: tables of names and tensors, two dicts deep."""
    linear = nn.Linear(2, 3)
    adam = torch.optim.Adam(linear.parameters())
    linear(torch.ones(2)).sum().backward()
    adam.step()
    return adam.state_dict()


def both(path: Path, key: str | None = None) -> list[tuple[float, tuple[str, ...]]]:
    """The network that each reader takes, by its numbers, and what it says."""
    checkpoint = read_checkpoint(path, key=key)
    arch = {"arch": "torch.nn:Linear", "arch_args": {"in_features": 2, "out_features": 3}}
    model = read_model(path, key=key, **({} if checkpoint.kind == "module" else arch))
    assert isinstance(model.model, nn.Linear)
    found = ((model.model.weight, model.notes), (checkpoint.tensors["weight"], checkpoint.notes))
    return [(float(weight.detach().mean()), notes) for weight, notes in found]


# What a file holds; the number of the network that is taken; its name and those of the others.
FILES: dict[str, tuple[dict[Any, Any], float, str, str]] = {
    "two-names": (
        {"net": weights(2), "state_dict": weights(1)},
        1,
        "state_dict",
        "state_dict, net",
    ),
    "average": (
        {"epoch": 3, "model_ema": weights(2), "model": weights(1)},
        1,
        "model",
        "model, model_ema",
    ),
    "average-of-weights": (
        {"state_dict_ema": weights(2), "state_dict": weights(1), "optimizer": optimizer()},
        1,
        "state_dict",
        "state_dict, state_dict_ema",
    ),
    "module-and-weights": (
        {"state_dict": weights(2), "model": module(1)},
        1,
        "model",
        "model, state_dict",
    ),
    "module-of-no-known-name": (
        {"best": module(1), "class_weights": weights(2)},
        1,
        "best",
        "best, class_weights",
    ),
    "teacher": ({"net": weights(1), "teacher": module(2)}, 1, "net", "net, teacher"),
    "in-the-options": (
        {"state_dict": weights(1), "hyper_parameters": {"model": module(2)}},
        1,
        "state_dict",
        "state_dict, hyper_parameters",
    ),
    "nested": (
        {"ema": {"state_dict": weights(2)}, "model": {"state_dict": weights(1)}},
        1,
        "model.state_dict",
        "model, ema",
    ),
    "several-in-one": (
        {"model": {"ema": weights(2), "state_dict": weights(1)}},
        1,
        "model.state_dict",
        "model.state_dict, model.ema",
    ),
}


@pytest.mark.parametrize(("content", "number", "taken", "named"), FILES.values(), ids=FILES)
def test_both_readers_take_the_same_and_say_so(
    content: dict[Any, Any], number: float, taken: str, named: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    note = f"{path} holds several networks: {named}. {taken} was taken: --key takes another"
    assert both(path) == [(number, (note,))] * 2


ALONE: dict[str, tuple[dict[Any, Any], str | None]] = {
    "known-name": ({"weights": weights(1), "optimizer": optimizer(), "epoch": 3}, None),
    "any-name": ({"best": weights(1), "accuracy": torch.ones(3)}, None),
    "nested": ({"model": {"state_dict": weights(1), "step": 2}}, None),
    "nested-anywhere": ({"trainer": {"model": module(1)}, "optimizer": optimizer()}, None),
    "same-under-two-names": (dict.fromkeys(("net", "model"), weights(1)), None),
    "by-key": ({"ema": weights(1), "state_dict": weights(2)}, "ema"),
    "by-key-of-a-dict": ({"ema": {"state_dict": weights(1)}, "model": weights(2)}, "ema"),
    "by-keys": ({"model": {"ema": weights(1), "state_dict": weights(2)}}, "model.ema"),
    "by-key-with-a-dot": ({"model.ema": weights(1), "model": {"ema": weights(2)}}, "model.ema"),
    "by-key-that-is-no-text": ({0: weights(2), 1: weights(1)}, "1"),
}


@pytest.mark.parametrize(("content", "key"), ALONE.values(), ids=ALONE)
def test_nothing_is_said_where_nothing_is_chosen(
    content: dict[Any, Any], key: str | None, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert both(tmp_path / "model.pt", key) == [(1, ())] * 2


READERS = (read_model, read_checkpoint)
REFUSED: dict[str, tuple[object, str | None, type[Exception], str]] = {
    "two-modules": (
        {"a": module(1), "b": module(2)},
        None,
        FileError,
        r"several networks: choose one with --key: a, b$",
    ),
    "two-sets-of-weights": (
        {"a": weights(1), "b": weights(2)},
        None,
        FileError,
        r"several networks: choose one with --key: a, b$",
    ),
    "two-dicts": (
        {"generator": {"state_dict": weights(1)}, "critic": {"state_dict": weights(2)}},
        None,
        FileError,
        r"several networks: choose one with --key: generator, critic$",
    ),
    "none": ({"epoch": 3, "lr": 0.1}, None, FileError, r"no network; its keys are epoch, lr$"),
    "empty": ({}, None, FileError, r"no network; its keys are none$"),
    "a-number": (7, None, FileError, "holds no network but a int: save the module or"),
    "a-list": ([1, 2], None, FileError, r"holds no network but a list: save the module or"),
    "a-tensor": (torch.ones(2), None, FileError, r"holds no network but a \S*[Tt]ensor"),
    "no-such-key": (
        {"state_dict": weights(1), "ema": weights(2)},
        "emma",
        UsageError,
        r"--key emma: \S+ has no such key; it has state_dict, ema: did you mean ema\?$",
    ),
    "nothing-near": (
        {"state_dict": weights(1)},
        "q",
        UsageError,
        r"--key q: \S+ has no such key; it has state_dict$",
    ),
    "no-such-key-inside": (
        {"model": {"ema": weights(1)}},
        "model.emma",
        UsageError,
        r"--key model\.emma: \S+ has no such key; it has ema: did you mean ema\?$",
    ),
    "key-of-other-things": (
        {"epoch": 3, "net": weights(1)},
        "epoch",
        FileError,
        "holds no network but a int",
    ),
    "key-of-a-list": ([1], "a", UsageError, "--key a: .* holds a list, not a dict: leave --key"),
    "key-of-a-module": (module(1), "a", UsageError, "holds a .*Linear, not a dict: leave --key"),
}


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize(("content", "key", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_both_readers_refuse_in_the_same_words(
    content: object, key: str | None, kind: type[Exception], words: str, read: Any, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(kind, match=words):
        read(tmp_path / "model.pt", key=key)


def test_weights_that_do_not_fit_may_be_the_wrong_ones(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": nn.Linear(7, 5).state_dict(), "student": weights(1)}, path)
    words = r"of another shape.*; \S+ holds several networks: state_dict, student\. state_dict was"
    size = {"in_features": 2, "out_features": 3}
    with pytest.raises(FileError, match=words):
        read_model(path, arch="torch.nn:Linear", arch_args=size)
    assert read_model(path, arch="torch.nn:Linear", arch_args=size, key="student").notes == ()
