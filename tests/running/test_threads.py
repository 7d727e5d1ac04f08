"""Two of us at once, and a training beside: what each gives is what it gives alone."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import groupfx
from groupfx.running.inputs import ExampleInputs
from groupfx.tracing.exporting import export_program

X = torch.randn(2, 6, 9, 7)


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.BatchNorm2d(6))
        self.scale = nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.scale * self.parts(x) + x
        return result


def network() -> nn.Module:
    return nn.Sequential(*(Unit() for _ in range(4)))


def rewritten(number: int, folder: Path) -> None:
    assert len(groupfx.rewrite(network(), (X,)).report.sites) == 4


def found(number: int, folder: Path) -> None:
    assert len(groupfx.find(network(), (X,))) == 4


def exported(number: int, folder: Path) -> None:
    path = folder / f"{number}.onnx"
    model = network().eval()
    groupfx.export(model, (X,), path)
    assert groupfx.validate(model, path, (X,)).ok


def trained(stop: threading.Event) -> int:
    """Steps of a training until it is stopped; every one is compared with that of a twin."""
    model = network()
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (model, twin)]
    steps = 0
    while not stop.is_set():
        x = torch.full((2, 6, 9, 7), 0.5)
        for m, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
        assert model.training
        for name, value in model.state_dict().items():
            assert torch.equal(value, twin.state_dict()[name])
        steps += 1
    return steps


WORK = {"rewrite": rewritten, "find": found, "export": exported}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_two_at_once_and_a_training_beside(
    work: Callable[[int, Path], None], tmp_path: Path
) -> None:
    stop = threading.Event()
    before = (torch.backends.mkldnn.enabled, torch.is_grad_enabled())
    with ThreadPoolExecutor(4) as pool:
        training = pool.submit(trained, stop)
        futures = [pool.submit(work, number, tmp_path) for number in range(3)]
        try:
            for future in futures:
                future.result()
        finally:
            stop.set()
        assert training.result() > 0
    assert (torch.backends.mkldnn.enabled, torch.is_grad_enabled()) == before


def test_that_torch_exports_is_said_to_this_thread_alone() -> None:
    """Else an optimizer's step in another writes into a global of the exporter's."""
    exporting = torch.compiler.is_exporting
    seen: list[tuple[bool, bool]] = []
    began, told = threading.Event(), threading.Event()

    class Recording(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            began.set()
            assert told.wait(60)
            seen.append((torch.compiler.is_exporting(), torch.backends.mkldnn.enabled))
            return super().forward(x)

    def other() -> None:
        assert began.wait(60)
        seen.append((torch.compiler.is_exporting(), torch.backends.mkldnn.enabled))
        told.set()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(other)
        export_program(Recording(3, 2), ExampleInputs.of(torch.randn(2, 3)))
        future.result()
    assert seen[:2] == [(False, True), (True, True)]
    assert torch.compiler.is_exporting is exporting


def test_an_export_beside_another_thread_bounds_no_batch() -> None:
    """Whether a convolution runs in mkldnn depends on a batch of 16, and mkldnn stays on."""
    stop = threading.Event()
    conv = nn.Conv2d(4, 4, 1, groups=2)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(stop.wait, 60)
        try:
            program = export_program(conv, ExampleInputs.of(torch.randn(2, 4, 5, 6)))
        finally:
            stop.set()
    batch = torch.randn(20, 4, 7, 8)
    torch.testing.assert_close(program.module()(batch), conv(batch))


def test_a_recurrent_model_is_exported_beside_another_thread(tmp_path: Path) -> None:
    """Where mkldnn has an operator of its own, which no file holds, it must be off."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lstm = nn.Conv1d(4, 4, 3, groups=2), nn.LSTM(4, 3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.lstm(self.conv(x).transpose(1, 2))[0]
            return result

    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(stop.wait, 60)
        try:
            groupfx.export(Recurrent().eval(), (torch.randn(2, 4, 9),), tmp_path / "net.onnx")
        finally:
            stop.set()
    assert torch.backends.mkldnn.enabled


def test_two_validations_at_once(tmp_path: Path) -> None:
    model, other = network().eval(), network().eval()
    path = tmp_path / "network.onnx"
    groupfx.export(model, (X,), path)
    before = (torch.backends.mkldnn.enabled, torch.is_grad_enabled())
    with ThreadPoolExecutor(2) as pool:
        same = [pool.submit(groupfx.validate, side, path, (X,)) for side in (model, other)]
        alike, unlike = (future.result() for future in same)
    assert alike.ok
    assert not unlike.ok
    assert (torch.backends.mkldnn.enabled, torch.is_grad_enabled()) == before


def test_the_random_state_is_what_it_was() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    models = [network() for _ in range(3)]
    torch.manual_seed(11)
    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(groupfx.rewrite, model, (X,)) for model in models]:
            future.result()
    assert torch.equal(torch.rand(3), expected)
