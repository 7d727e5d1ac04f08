"""Example inputs: read, resized, made random, written down; and guessed."""

import json
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from groupfx.errors import ModelError, UsageError
from groupfx.running.guess import infer_inputs
from groupfx.running.inputs import ExampleInputs
from groupfx.running.unchanged import evaluate, unchanged
from groupfx.verify import Fingerprint
from tests.models import zoo


def shapes(inputs: ExampleInputs) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in inputs.tensors()]


X, Y = (
    torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(3)),
    torch.arange(6).reshape(2, 3),
)

READ: dict[str, tuple[Any, int, list[str]]] = {
    "tensor": (X, 1, []),
    "tuple": ((X, Y), 2, []),
    "list": ([X, Y, None], 3, []),
    "dict": ({"x": X, "y": Y}, 0, ["x", "y"]),
    "nested": (((X, [Y]), 3), 2, []),
    "inputs": (ExampleInputs((X,), {"y": Y}), 1, ["y"]),
}


@pytest.mark.parametrize(("value", "args", "names"), READ.values(), ids=READ.keys())
def test_inputs_are_read(value: Any, args: int, names: list[str]) -> None:
    inputs = ExampleInputs.of(value)
    assert len(inputs.args) == args
    assert list(inputs.kwargs) == names
    assert next(inputs.tensors()) is X


REFUSED: dict[str, tuple[Any, str]] = {
    "number": (3, "not a int"),
    "none": (None, "not a NoneType"),
    "text": ("2,3,4", "not a str"),
    "array": (np.ones(3), "not a ndarray"),
    "keys": ({1: X}, "not a dict"),
    "empty": ((), r"no tensor among the example inputs \(\)"),
    "shape": ((2, 3, 8, 8), r"if this is a shape, give torch.randn\(2, 3, 8, 8\)"),
    "no_tensor": ({"flag": True}, "no tensor among"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_input_is_refused(value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExampleInputs.of(value)


def test_a_model_is_called_with_them() -> None:
    def model(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return args, kwargs

    args, kwargs = ExampleInputs((X, 3), {"y": Y}).call(model)
    assert args[0] is X
    assert args[1] == 3
    assert kwargs["y"] is Y


def test_a_batch_is_repeated_or_trimmed() -> None:
    inputs = ExampleInputs((X, [Y]), {"scale": torch.tensor(2.0), "flag": True})
    assert inputs.batch == 2
    larger = inputs.with_batch(5)
    assert shapes(larger) == [(5, 3, 5, 7), (5, 3), ()]
    assert torch.equal(larger.args[0][4], X[0])
    assert torch.equal(larger.args[0][3], X[1])
    assert larger.kwargs["flag"] is True
    assert shapes(inputs.with_batch(1)) == [(1, 3, 5, 7), (1, 3), ()]
    assert inputs.with_batch(2) is inputs
    with pytest.raises(UsageError, match="at least 1 row, not 0"):
        inputs.with_batch(0)


@pytest.mark.parametrize(
    "value", [(X, torch.ones(3, 4)), torch.tensor(1.0), torch.ones(0, 3)], ids=["two", "0-d", "0"]
)
def test_without_a_common_batch_nothing_is_repeated(value: Any) -> None:
    inputs = ExampleInputs.of(value)
    assert inputs.with_batch(7) is inputs


def test_spatial_sizes_change_together() -> None:
    mask, other = torch.ones(2, 1, 5, 7), torch.ones(2, 3, 4, 4)
    inputs = ExampleInputs((X, mask, other, Y))
    assert inputs.spatial == (5, 7)
    found = inputs.resized((11, 3))
    assert shapes(found) == [(2, 3, 11, 3), (2, 1, 11, 3), (2, 3, 4, 4), (2, 3)]
    assert torch.equal(found.args[0][..., 5:10, :], X[..., :3])
    tokens = ExampleInputs.of({"ids": Y, "mask": torch.ones(2, 3), "other": torch.ones(2, 9)})
    assert tokens.spatial == (3,)
    assert shapes(tokens.resized((8,))) == [(2, 8), (2, 8), (2, 9)]
    assert ExampleInputs.of(torch.ones(4)).spatial == ()
    for wrong in ((5,), (5, 6, 7), (5, 0)):
        with pytest.raises(UsageError, match="cannot resize"):
            inputs.resized(wrong)


def test_random_values_keep_what_a_model_relies_on() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = ExampleInputs.of(
        {
            "float": torch.full((50,), 3.0, requires_grad=True),
            "half": torch.zeros(50, dtype=torch.float16),
            "complex": torch.zeros(50, dtype=torch.complex64),
            "ids": torch.tensor([7, 9, 11] * 20),
            "ones": torch.ones(9, dtype=torch.int32),
            "bools": torch.tensor([True, False]),
            "empty": torch.ones(0, 2),
            "number": 4,
        }
    )
    found = inputs.randomized(generator).kwargs
    assert {k: v.dtype for k, v in found.items() if isinstance(v, Tensor)} == {
        k: v.dtype for k, v in inputs.kwargs.items() if isinstance(v, Tensor)
    }
    assert found["float"].requires_grad
    for name in ("float", "half", "complex"):
        assert len(set(found[name].tolist())) > 30
    assert set(found["ids"].tolist()) == {7, 8, 9, 10, 11}
    assert torch.equal(found["ones"], inputs.kwargs["ones"])
    assert torch.equal(found["bools"], inputs.kwargs["bools"])
    assert found["number"] == 4
    again = inputs.randomized(torch.Generator().manual_seed(3)).kwargs
    assert torch.equal(again["ids"], found["ids"])
    assert not torch.equal(inputs.randomized(generator).kwargs["float"], found["float"])


def test_a_description_is_plain_data_and_makes_inputs_of_the_same_kind() -> None:
    inputs = ExampleInputs(
        (X, Y + 5, (X.half(), [torch.tensor([True])])),
        {"ids": Y.int(), "options": {"a": X, "b": "text"}, "flag": None, "rate": 0.5},
    )
    described = json.loads(json.dumps(inputs.describe()))
    assert described[0] == {"name": None, "dtype": "float32", "shape": [2, 3, 5, 7]}
    assert described[1] == {"name": None, "dtype": "int64", "shape": [2, 3], "low": 5, "high": 10}
    assert described[3]["name"] == "ids"
    found = ExampleInputs.from_description(described)
    assert shapes(found) == shapes(inputs)
    assert [t.dtype for t in found.tensors()] == [t.dtype for t in inputs.tensors()]
    assert found.kwargs["flag"] is None
    assert found.kwargs["rate"] == 0.5
    assert found.kwargs["options"]["b"] == "text"
    assert 5 <= int(found.args[1].min()) <= int(found.args[1].max()) <= 10
    assert found.args[0].unique().numel() > 100
    described = ExampleInputs((X, nn.Linear(1, 1))).describe()
    assert described[1] == {"name": None, "type": "torch.nn.modules.linear.Linear"}
    with pytest.raises(UsageError, match=r"of type torch.*Linear cannot be made from its descr"):
        ExampleInputs.from_description(described)


NOT_A_DESCRIPTION: dict[str, Any] = {
    "no_name": [{"dtype": "float32", "shape": [2]}],
    "dtype": [{"name": None, "dtype": "Tensor", "shape": [2]}],
    "unknown_dtype": [{"name": None, "dtype": "float33", "shape": [2]}],
    "shape": [{"name": None, "dtype": "float32", "shape": "2,3"}],
    "negative": [{"name": None, "dtype": "float32", "shape": [-2]}],
    "huge": [{"name": None, "dtype": "float32", "shape": [10**6, 10**6]}],
    "range": [{"name": None, "dtype": "int64", "shape": [2], "low": 5, "high": 1}],
    "kind": [{"name": None, "items": []}],
    "text": "inputs",
}


@pytest.mark.parametrize("entries", NOT_A_DESCRIPTION.values(), ids=NOT_A_DESCRIPTION.keys())
def test_what_is_no_description_is_refused(entries: Any) -> None:
    with pytest.raises(UsageError, match="not a description of inputs"):
        ExampleInputs.from_description(entries)


# Guessing


class CallCounter(nn.Module):
    """Counts its calls in eval mode, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 200)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x) + torch.rand(()) + random.random()


GUESSES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "image": (lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(5, 2, 3)), (2, 5, 224, 224), "1"),
    "fixed_image": (
        lambda: nn.Sequential(nn.Conv2d(3, 1, 3), nn.Flatten(), nn.Linear(900, 2)),
        (2, 3, 32, 32),
        "0",
    ),
    "sound": (lambda: nn.Conv1d(7, 2, 3), (2, 7, 128), "the model"),
    "long_sound": (CallCounter, (2, 3, 256), "conv"),
    "volume": (lambda: nn.Conv3d(2, 2, 3), (2, 2, 32, 32, 32), "the model"),
    "decoder": (lambda: nn.ConvTranspose2d(8, 2, 3), (2, 8, 4, 4), "the model"),
    "linear": (lambda: nn.Sequential(nn.Linear(9, 4), nn.BatchNorm1d(4)), (2, 9), "0"),
    "half": (lambda: nn.Conv1d(7, 2, 3).bfloat16(), (2, 7, 128), "the model"),
}


@pytest.mark.parametrize(("make", "shape", "path"), GUESSES.values(), ids=GUESSES.keys())
def test_shapes_are_guessed(
    make: Callable[[], nn.Module], shape: tuple[int, ...], path: str
) -> None:
    model = make()
    before, state = Fingerprint.of(model), torch.get_rng_state()
    python = random.getstate()
    inputs, source, *_ = infer_inputs(model)
    assert shapes(inputs) == [shape]
    assert source == f"{list(shape)} from {path}"
    assert before.changes(model) == ()
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert next(inputs.tensors()).dtype == next(model.parameters()).dtype
    model(*inputs.args)


class Dummy(nn.Module):
    """Says itself what it takes, as models of transformers do."""

    main_input_name = "input_ids"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.conv = nn.Conv1d(4, 4, 1)
        vars(self).update(fields)

    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.conv(self.embed(input_ids).transpose(1, 2))


class Config:
    vocab_size = 11


def test_a_model_that_says_what_it_takes_is_believed() -> None:
    ids = torch.tensor([[1, 2, 3]])
    inputs, source, *_ = infer_inputs(Dummy(dummy_inputs={"input_ids": ids, "mask": ids}))
    assert source == "the model's dummy_inputs"
    assert shapes(inputs) == [(2, 3), (2, 3)]
    inputs, source, *_ = infer_inputs(Dummy(config=Config()))
    assert source == "input_ids: token ids [2, 16]"
    assert int(inputs.kwargs["input_ids"].max()) > 1


@pytest.mark.parametrize("name", ["regnet-y", "squeezebert", "wav2vec2"])
def test_transformers_models_are_guessed(name: str) -> None:
    model = zoo.CASES[name].build()
    inputs, *_ = infer_inputs(model)
    assert inputs.batch == 2
    inputs.call(model)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_graph_inside_a_model_prints_no_traceback(
    depth: int, capfd: pytest.CaptureFixture[str]
) -> None:
    class Reshaping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(2, 7)

    model: nn.Module = fx.symbolic_trace(Reshaping())
    for _ in range(depth):
        model = nn.Sequential(model)
    with pytest.raises(RuntimeError, match="is invalid for input of size 12"):
        ExampleInputs.of(torch.zeros(2, 6)).call(model)
    assert capfd.readouterr().err == ""
    assert ExampleInputs.of(torch.zeros(2, 7)).call(model).shape == (2, 7)


def test_what_a_model_with_a_graph_says_on_stderr_is_kept(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Speaking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sys.stderr.write("said\n")
            return x

    model = nn.Sequential(fx.symbolic_trace(nn.Identity()), Speaking())
    ExampleInputs.of(torch.zeros(2)).call(model)
    assert capfd.readouterr().err == "said\n"


def test_a_model_that_takes_nothing_usual_says_what_was_tried() -> None:
    class TwoImages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(3, 2, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.conv(left + right)

    with pytest.raises(ModelError) as caught:
        infer_inputs(TwoImages())
    message = str(caught.value)
    assert "tried [2, 3, 32, 32, 32] from conv; [2, 3, 64, 64, 64] from conv" in message
    assert "missing 1 required positional argument: 'right'" in message
    assert "--input-shape 2,3,224,224" in message
    with pytest.raises(ModelError, match=r"tried nothing; .* nothing in it says what shape"):
        infer_inputs(nn.ReLU())


def test_unchanged_puts_everything_back() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    model.register_buffer("late", None)
    model.cached = torch.ones(2)
    model.shape, model.seen, model.by_size = None, [1], {}
    model[1].eval()
    norm, cached = model[0], model.cached
    before = Fingerprint.of(model)
    with unchanged(model):
        evaluate(model)
        assert not norm.training
        norm.running_mean.add_(7)
        norm.running_var = torch.zeros(5)
        norm.num_batches_tracked.data = torch.ones(4)
        model.late = torch.ones(1)
        model.cached = None
        model.shape, model.calls = (2, 3), 1
        model.seen.append(2)
        model.by_size[3] = torch.ones(3)
        torch.rand(3)
        del norm._buffers["running_mean"]
    assert before.changes(model) == ()
    assert model.late is None
    assert model.cached is cached
    assert (model.shape, model.seen, model.by_size) == (None, [1], {})
    assert not hasattr(model, "calls")
    with pytest.raises(RuntimeError), unchanged(model):
        norm.running_mean.add_(7).view(-1, 2)
    assert before.changes(model) == ()


def test_a_graph_that_does_not_take_inputs_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)))
    seen: list[nn.Module] = []
    model.register_forward_pre_hook(lambda module, _: seen.append(module))
    assert ExampleInputs.of(torch.zeros(2, 4)).call(model).shape == (2, 3)
    # Raised by a line of the graph itself, which torch would explain on stderr.
    graph = fx.symbolic_trace(lambda x: torch.reshape(x, (7, 11)))
    with pytest.raises(RuntimeError, match="shape"):
        ExampleInputs.of(torch.zeros(2, 4)).call(graph)
    assert capfd.readouterr() == ("", "")
    assert seen == [model]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_is_refused(layout: torch.layout) -> None:
    x = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=layout)
    for given in (x, (1, [x]), {"x": x}):
        with pytest.raises(UsageError, match="an example input is a nested tensor"):
            ExampleInputs.of(given)
