"""Test models with grouped convolutions, what is known of each, and a ground truth to check it by.

`CASES` is the table: id -> `Case`. The models are in `zoo_models.py`, `examples/`, and, at small
widths and with random weights, in transformers and monai (their cases skip where those are not
installed).

`grouped_modules` and `count_grouped_calls` are the ground truth. They use nothing of groupfx: the
first reads the `groups` of modules, the second watches what PyTorch executes.
"""

import contextlib
import functools
import importlib.util
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import zoo_libraries as libraries
from tests.models import zoo_models as zm
from tests.models import zoo_traps as traps

Way = Literal["trace", "modules", "export"]
Inputs = tuple[Any, ...] | dict[str, Any]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@dataclass(frozen=True)
class Case:
    """One model of the zoo, and what has to be found in it.

    `sites` counts the places where a grouped convolution is called, by kind. `left` is how many
    of them a split with default options leaves alone: depthwise in 1-d and 2-d, user hooks, inputs
    without a batch axis. `calls` is how many are executed with these inputs in eval mode, where
    that is not the number of sites. `leaves` are modules that a symbolic trace must not look into.
    `asserts`: a Python assert is all that stops `torch.fx.symbolic_trace`; a tracer that drops
    asserts takes the model. `blind`: no grouped convolution can be observed at the outputs.
    """

    id: str
    make: Callable[[], nn.Module]
    example: Callable[[], Inputs]
    way: Way
    sites: Mapping[str, int]
    left: int = 0
    calls: int | None = None
    leaves: tuple[str, ...] = ()
    asserts: bool = False
    blind: bool = False

    def build(self) -> nn.Module:
        """A new model in eval mode: the same weights and statistics each time."""
        with _seeded(self.id):
            model = self.make()
            give_statistics(model)
        return model.eval()

    def inputs(self) -> Inputs:
        """New example inputs, the same each time: a tuple of arguments or a dict of keywords."""
        with _seeded(self.id + " inputs"):
            return self.example()


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Call `model` with inputs of either kind."""
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


# Ground truth


class GroupedCalls(TorchDispatchMode):
    """Counts the grouped convolutions that are executed inside `with`, whoever calls them.

    `kinds` counts by kind. With `negate`, each of them gives the negative of its result: what can
    be seen of that at a model's outputs is what can be seen of its grouped convolutions at all.
    """

    def __init__(self, negate: bool = False) -> None:
        super().__init__()
        self.kinds: Counter[str] = Counter()
        self.negate = negate

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.ops.aten.convolution.default:
            return result
        # (input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
        x, transposed, groups = args[0], args[6], args[8]
        if groups == 1:
            return result
        self.kinds[_kind(x.shape[1], result.shape[1], groups, transposed)] += 1
        return -result if self.negate else result


def _kind(in_channels: int, out_channels: int, groups: int, transposed: bool) -> str:
    if transposed:
        return "transposed"
    if groups != in_channels:
        return "grouped"
    return "depthwise" if out_channels == in_channels else "depthwise-multiplier"


def count_grouped_calls(model: nn.Module, inputs: Inputs) -> Counter[str]:
    """Grouped convolutions that one forward executes, by kind; `.total()` is their number."""
    with GroupedCalls() as seen, torch.no_grad():
        run(model, inputs)
    return seen.kinds


def grouped_modules(model: nn.Module) -> dict[str, int]:
    """Name -> groups of every convolution module with more than one group.

    A module with two names is there under both.
    """
    named = model.named_modules(remove_duplicate=False)
    return {name: m.groups for name, m in named if isinstance(m, _ConvNd) and m.groups > 1}


# Making models and inputs


def load_example(name: str) -> ModuleType:
    """The module `examples/<name>.py`, which is not installed."""
    key = f"groupfx_example_{name}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    spec.loader.exec_module(module)
    return module


def give_statistics(model: nn.Module) -> None:
    """Give every BatchNorm statistics and affine values that are not 0 and 1.

    One that multiplies by 0 stays as it is: its model is blind on purpose.
    """
    for module in model.modules():
        if not isinstance(module, _BatchNorm):
            continue
        if module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        if module.affine and bool(module.weight.any()):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)


@contextlib.contextmanager
def _seeded(text: str) -> Iterator[None]:
    """PyTorch's generator, seeded with a text; the state outside is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(text.encode()))
        yield


def _shapes(*shapes: tuple[int, ...], **named: tuple[int, ...]) -> Callable[[], Inputs]:
    """Random inputs of these shapes: neither symmetric nor of mean 0."""

    def example() -> Inputs:
        if named:
            return {name: torch.randn(shape) + 0.3 for name, shape in named.items()}
        return tuple(torch.randn(shape) + 0.3 for shape in shapes)

    return example


def _computed(change: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    """A net with one grouped conv whose weight `change` turns into a computed one."""
    return lambda: nn.Sequential(
        nn.Conv1d(5, 6, 1), change(nn.Conv1d(6, 9, 3, groups=3)), nn.BatchNorm1d(9), nn.ReLU()
    )


def _hooked(name: str, method: str, hook: Callable[..., Any]) -> Callable[[], nn.Module]:
    """`zm.HookedConv` with `hook` registered on its module `name`."""

    def make() -> nn.Module:
        model = zm.HookedConv()
        getattr(model.get_submodule(name), method)(hook)
        return model

    return make


def _normed(**options: Any) -> Callable[[], nn.Module]:
    """A net with one BatchNorm of these options, directly behind a grouped conv."""
    return lambda: nn.Sequential(
        nn.Conv2d(6, 9, 3, groups=3), nn.BatchNorm2d(9, **options), nn.ReLU()
    )


# The table

_IMAGE = _shapes((5, 6, 11, 7))
_SOUND = _shapes((5, 6, 13))

_SHUFFLE = load_example("shufflenet_v1")
_PLINIO = load_example("plinio_convs")

_CASES = (
    # sources
    *(
        Case(
            f"shufflenet-g{groups}",
            functools.partial(_SHUFFLE.shufflenet_v1, groups),
            _shapes((batch, 3, 32, 32)),
            "trace",
            {"grouped": 31, "depthwise": 16},
            left=16,
            asserts=True,
        )
        for groups, batch in ((2, 3), (3, 2))
    ),
    Case("plinio-chain", _PLINIO.chain1d, _shapes((3, 16, 2)), "trace", {"grouped": 1}),
    Case("plinio-groups", _PLINIO.chain1d_groups, _shapes((3, 16, 2)), "trace", {"grouped": 1}),
    Case("plinio-pair", _PLINIO.pair2d, _shapes((3, 16, 8, 8)), "trace", {"grouped": 1}),
    # libraries
    *(
        Case(
            f"regnet-{layer}",
            functools.partial(libraries.regnet, layer),
            _shapes(pixel_values=(2, 3, 37, 41)),
            "modules",
            {"grouped": 5},
        )
        for layer in "xy"
    ),
    Case(
        "squeezebert",
        libraries.squeezebert,
        lambda: {
            "input_ids": torch.randint(0, 53, (3, 11)),
            "attention_mask": torch.arange(11).expand(3, 11) < torch.tensor([[11], [7], [5]]),
        },
        "modules",
        {"grouped": 10},
    ),
    Case("wav2vec2", libraries.wav2vec2, _shapes(input_values=(2, 631)), "modules", {"grouped": 1}),
    *(
        Case(
            f"se-resnext50-{len(size)}d",
            functools.partial(libraries.se_resnext50, len(size)),
            _shapes((2, 3, *size)),
            "trace",
            {"grouped": 16},
        )
        for size in ((37, 41), (17, 19, 23))
    ),
    # whole small nets
    Case("resnext", zm.ResNeXtNet, _shapes((2, 3, 17, 19)), "trace", {"grouped": 2}),
    Case(
        "resnext-blind", zm.BlindNet, _shapes((2, 3, 17, 19)), "trace", {"grouped": 2}, blind=True
    ),
    Case(
        "no-groups",
        lambda: nn.Sequential(nn.Conv2d(6, 9, 3), nn.BatchNorm2d(9), nn.ConvTranspose2d(9, 5, 2)),
        _IMAGE,
        "trace",
        {},
    ),
    # kinds
    Case(
        "grouped-1d",
        lambda: nn.Sequential(
            nn.Conv1d(6, 9, 5, stride=2, padding=2, groups=3, padding_mode="reflect"), nn.ReLU()
        ),
        _SOUND,
        "trace",
        {"grouped": 1},
    ),
    Case(
        "grouped-2d",
        lambda: nn.Sequential(
            nn.Conv2d(6, 10, (3, 2), padding="same", dilation=(1, 2), groups=2, bias=False),
            nn.BatchNorm2d(10),
            nn.ReLU(inplace=True),
            nn.Conv2d(10, 15, (1, 3), stride=(1, 2), groups=5),
        ),
        _IMAGE,
        "trace",
        {"grouped": 2},
    ),
    Case(
        "grouped-3d",
        lambda: nn.Sequential(
            nn.Conv3d(6, 9, (1, 3, 2), stride=(2, 1, 1), groups=3), nn.BatchNorm3d(9), nn.ReLU()
        ),
        _shapes((2, 6, 5, 7, 11)),
        "trace",
        {"grouped": 1},
    ),
    Case(
        "depthwise-1d",
        lambda: nn.Sequential(nn.Conv1d(7, 7, 3, groups=7), nn.BatchNorm1d(7), nn.Conv1d(7, 5, 1)),
        _shapes((2, 7, 13)),
        "trace",
        {"depthwise": 1},
        left=1,
    ),
    Case(
        "depthwise-2d",
        lambda: nn.Sequential(nn.Conv2d(7, 7, (3, 2), groups=7), nn.ReLU6(), nn.Conv2d(7, 5, 1)),
        _shapes((2, 7, 13, 11)),
        "trace",
        {"depthwise": 1},
        left=1,
    ),
    Case(
        "depthwise-3d",
        lambda: nn.Sequential(nn.Conv3d(5, 5, (1, 3, 2), groups=5), nn.BatchNorm3d(5), nn.ReLU()),
        _shapes((2, 5, 3, 7, 11)),
        "trace",
        {"depthwise": 1},
    ),
    Case(
        "multiplier-1d",
        lambda: nn.Sequential(nn.Conv1d(5, 15, 3, groups=5), nn.ReLU()),
        _shapes((2, 5, 13)),
        "trace",
        {"depthwise-multiplier": 1},
    ),
    Case(
        "multiplier-2d",
        lambda: nn.Sequential(nn.Conv2d(5, 10, (3, 2), groups=5), nn.BatchNorm2d(10), nn.ReLU()),
        _shapes((3, 5, 13, 11)),
        "trace",
        {"depthwise-multiplier": 1},
    ),
    Case(
        "transposed-1d",
        lambda: nn.Sequential(
            nn.ConvTranspose1d(6, 9, 4, stride=2, padding=1, groups=3), nn.ReLU()
        ),
        _SOUND,
        "trace",
        {"transposed": 1},
    ),
    Case(
        "transposed-2d",
        lambda: nn.Sequential(
            nn.ConvTranspose2d(6, 10, (3, 2), stride=(2, 3), output_padding=(1, 2), groups=2),
            nn.BatchNorm2d(10),
            nn.ReLU(),
        ),
        _IMAGE,
        "trace",
        {"transposed": 1},
    ),
    Case(
        "transposed-3d",
        lambda: nn.Sequential(
            nn.ConvTranspose3d(6, 9, (1, 2, 3), dilation=(1, 2, 1), groups=3, bias=False), nn.ReLU()
        ),
        _shapes((2, 6, 3, 5, 7)),
        "trace",
        {"transposed": 1},
    ),
    Case(
        "transposed-output-size",
        zm.Upsampler,
        _shapes((5, 6, 12, 7)),
        "trace",
        {"grouped": 1, "transposed": 1},
    ),
    Case("bare", lambda: nn.Conv2d(6, 9, (3, 2), groups=3), _IMAGE, "trace", {"grouped": 1}),
    Case(
        "unbatched",
        lambda: nn.Sequential(nn.Conv1d(6, 9, 3, groups=3), nn.ReLU()),
        _shapes((6, 13)),
        "trace",
        {"grouped": 1},
        left=1,
    ),
    # sharing
    Case("called-twice", zm.CalledTwice, _IMAGE, "trace", {"grouped": 2}),
    Case("called-twice-two-norms", zm.CalledTwiceTwoNorms, _IMAGE, "trace", {"grouped": 2}),
    Case("two-names", zm.TwoNames, _SOUND, "trace", {"grouped": 2}),
    Case("tied-weights", zm.TiedWeights, _SOUND, "trace", {"grouped": 2}),
    Case("weight-read-elsewhere", zm.WeightReadElsewhere, _SOUND, "trace", {"grouped": 1}),
    Case("weight-borrowed", zm.WeightBorrowed, _SOUND, "trace", {"grouped": 2}),
    # functional
    Case("positional", zm.Positional, _IMAGE, "trace", {"grouped": 1}),
    Case("keyword", zm.Keyword, _SOUND, "trace", {"grouped": 1}),
    Case("positional-transposed", zm.PositionalTransposed, _IMAGE, "trace", {"transposed": 1}),
    Case("torch-functions", zm.TorchFunctions, _IMAGE, "trace", {"grouped": 2}),
    Case("blur-pool", lambda: zm.BlurPool(6), _IMAGE, "trace", {"depthwise": 1}, left=1),
    # computed weights
    Case(
        "standardised",
        lambda: nn.Sequential(zm.StandardisedConv2d(6, 9, 3, groups=3), nn.BatchNorm2d(9)),
        _IMAGE,
        "trace",
        {"grouped": 1},
    ),
    Case(
        "scaled-subclass",
        lambda: nn.Sequential(zm.ScaledConv2d(6, 9, 3, groups=3), nn.BatchNorm2d(9)),
        _IMAGE,
        "trace",
        {"grouped": 1},
    ),
    Case("masked", zm.MaskedConv, _SOUND, "trace", {"grouped": 1}),
    *(
        Case(name, _computed(change), _shapes((2, 5, 13)), "trace", {"grouped": 1})
        for name, change in {
            "weight-norm": parametrizations.weight_norm,
            "weight-norm-dim-2": lambda conv: parametrizations.weight_norm(conv, dim=2),
            "weight-norm-old": nn.utils.weight_norm,
            "spectral-norm": parametrizations.spectral_norm,
            "spectral-norm-old": nn.utils.spectral_norm,
            "pruned": lambda conv: prune.l1_unstructured(conv, "weight", amount=0.4),
        }.items()
    ),
    # BatchNorm behind the conv
    *(
        Case(name, _normed(**options), _IMAGE, "trace", {"grouped": 1})
        for name, options in {
            "conv-bn": {"eps": 0.1},
            "bn-no-affine": {"affine": False},
            "bn-no-statistics": {"track_running_stats": False},
            "bn-cumulative": {"momentum": None},
        }.items()
    ),
    Case("bn-and-skip", zm.NormAndSkip, _IMAGE, "trace", {"grouped": 1}),
    Case("bn-called-twice", zm.NormCalledTwice, _IMAGE, "trace", {"grouped": 2}),
    Case("bn-reshaped", zm.NormReshaped, _SOUND, "trace", {"grouped": 1}),
    Case("bn-unbatched", zm.NormUnbatched, _shapes((6, 13)), "trace", {"grouped": 1}, left=1),
    # hooks
    *(
        Case(name, _hooked(*hook), _shapes((2, 5, 13)), "trace", {"grouped": 1}, left=left)
        for name, hook, left in (
            ("forward-hook", ("conv", "register_forward_hook", zm.scale_output), 1),
            ("forward-pre-hook", ("conv", "register_forward_pre_hook", zm.scale_input), 1),
            ("backward-hook", ("conv", "register_full_backward_hook", zm.scale_gradient), 1),
            ("bn-hook", ("bn", "register_forward_hook", zm.scale_output), 0),
        )
    ),
    # forwards that a symbolic trace refuses or changes
    Case("reads-training", traps.ReadsTraining, _IMAGE, "modules", {"grouped": 2}, calls=1),
    Case("functional-dropout", traps.FunctionalDropout, _SOUND, "modules", {"grouped": 1}),
    Case("draws-random", traps.DrawsRandom, _SOUND, "modules", {"grouped": 1}),
    Case("reads-grad-mode", traps.ReadsGradMode, _SOUND, "modules", {"grouped": 1}),
    Case(
        "custom-backward", traps.RoundedNet, _SOUND, "trace", {"grouped": 2}, leaves=("rounding",)
    ),
    Case("custom-backward-root", traps.RoundedRoot, _SOUND, "modules", {"grouped": 1}),
    Case("mask-omitted", traps.OptionalMask, _SOUND, "modules", {"grouped": 1}),
    Case(
        "mask-given",
        traps.OptionalMask,
        _shapes(x=(5, 6, 13), mask=(5, 1, 13)),
        "modules",
        {"grouped": 1},
    ),
    Case("branches-on-data", traps.BranchesOnData, _IMAGE, "modules", {"grouped": 2}, calls=1),
    Case("branches-on-shape", traps.BranchesOnShape, _IMAGE, "modules", {"grouped": 2}),
    Case("reads-fields", traps.ReadsFields, _SOUND, "modules", {"grouped": 1}),
    Case("frozen-part", traps.FrozenPart, _SOUND, "modules", {"grouped": 2}),
    Case("low-precision-part", traps.LowPrecisionPart, _SOUND, "modules", {"grouped": 1}),
    Case("checkpointed", traps.Checkpointed, _SOUND, "trace", {"grouped": 1}),
    Case("counts-calls", traps.CountsCalls, _SOUND, "modules", {"grouped": 1}),
    Case("counts-calls-in-place", traps.CountsCallsInPlace, _SOUND, "trace", {"grouped": 1}),
    # inputs and outputs
    Case("dict-output", zm.DictOutput, _IMAGE, "trace", {"grouped": 1}),
    Case("tuple-output", zm.TupleOutput, _SOUND, "trace", {"grouped": 2}),
    Case("two-inputs", zm.TwoInputs, _shapes((2, 6, 11, 7), (2, 9, 17)), "trace", {"grouped": 2}),
    Case(
        "keyword-inputs",
        zm.TwoInputs,
        _shapes(sound=(2, 9, 17), image=(2, 6, 11, 7)),
        "trace",
        {"grouped": 2},
    ),
)

CASES: dict[str, Case] = {case.id: case for case in _CASES}
assert len(CASES) == len(_CASES), "two cases with one id"
