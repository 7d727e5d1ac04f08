"""What a caller has switched on around us changes nothing of what we find, and stays on."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import groupfx

X = torch.randn(2, 6, 9, 9)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)  # type: ignore[arg-type]


CONTEXTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "meta": lambda: torch.device("meta"),
    "meta for good": lambda: default_device("meta"),
    "autocast": lambda: torch.autocast("cpu"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_a_context_of_the_caller(
    context: Callable[[], AbstractContextManager[object]], tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 3, groups=2), nn.BatchNorm2d(6)).eval()
    plain = groupfx.rewrite(model, (X,))
    with context():
        before = torch.get_default_device(), torch.is_autocast_enabled("cpu")
        assert groupfx.find(model)[0].taken
        result = groupfx.rewrite(model, (X,))
        groupfx.export(result, (X,), tmp_path / "m.onnx")
        assert groupfx.validate(model, tmp_path / "m.onnx", (X,)).ok
        assert (torch.get_default_device(), torch.is_autocast_enabled("cpu")) == before
    assert str(result.report) == str(plain.report)
    assert torch.equal(result.model(X), plain.model(X))
