"""Every kind of file that holds a model: what is read without trust, and what a refusal says."""

import importlib
import json
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune

from groupfx.errors import FileError, GroupfxError, UsageError
from groupfx.files.archive import Archive, write
from groupfx.files.models import read_model
from groupfx.files.models.factories import searched
from groupfx.nn import ChannelGather


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Sequential(nn.BatchNorm2d(5), nn.ReLU()))


def containers() -> nn.Module:
    return nn.Sequential(
        nn.ModuleDict({"a": nn.Linear(2, 3), "b-c": nn.ModuleList([nn.Linear(1, 1)])}),
        nn.ParameterList([nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(2))]),
        nn.ParameterDict({"x": nn.Parameter(torch.full((1,), 3.0))}),
    )


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Dropout(0.1)).eval()
    model[0].requires_grad_(False)
    return model.to(memory_format=torch.channels_last)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "sequential": plain,
    "containers": containers,
    "attention": lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4),
    "encoder_layer": lambda: nn.TransformerEncoderLayer(8, 2, 11, activation="gelu"),
    "decoder": lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 11), 2),
    "recurrent": lambda: nn.LSTM(3, 5, num_layers=2, bidirectional=True),
    "half": lambda: plain().half(),
    "bfloat16": lambda: plain().bfloat16(),
    "meta": lambda: nn.Conv2d(3, 5, 3, device="meta"),
    "tied": tied,
    "frozen": frozen,
    "transposed": lambda: nn.ConvTranspose1d(4, 6, 3, groups=2, padding_mode="zeros"),
    "loss": lambda: nn.CrossEntropyLoss(weight=torch.ones(3)),
    "fields": lambda: nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Unflatten(1, (3, 2))),
    "groupfx": lambda: nn.Sequential(ChannelGather([2, 0, 1])),
    "weight_norm": lambda: torch.nn.utils.weight_norm(nn.Conv2d(3, 5, 1)),
    "spectral_norm": lambda: torch.nn.utils.spectral_norm(nn.Conv2d(3, 5, 1)),
    "pruned": lambda: prune.l1_unstructured(nn.Conv2d(3, 5, 1), "weight", 0.5),
}


def described(model: nn.Module) -> list[object]:
    """All that a pickle of torch.nn modules says, tensors as their bits."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    groups: dict[int, list[str]] = {}
    for name, tensor in tensors:
        groups.setdefault(id(tensor), []).append(name)
    return [
        repr(model),
        [(name, type(m), m.training) for name, m in model.named_modules()],
        [(name, bits(tensor), tensor.requires_grad) for name, tensor in tensors],
        list(model.state_dict()),
        sorted(groups.values()),
    ]


def bits(tensor: Tensor) -> object:
    if tensor.is_meta:
        return (tensor.shape, tensor.dtype)
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.double().tolist())


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_a_module_of_torch_nn_needs_no_trust(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model, path = make(), tmp_path / "model.pt"
    torch.save(model, path)
    found = read_model(path)
    assert found.source == "module"
    assert found.report is None
    assert described(found.model) == described(model)
    assert type(found.model) is type(model)


def test_the_description_sees_a_difference() -> None:
    model = plain()
    for change in (
        lambda m: m.eval(),
        lambda m: m.half(),
        lambda m: m[0].weight.data.view(-1)[3].add_(1),
        lambda m: m[0].bias.requires_grad_(False),
    ):
        before = described(model)
        change(model)
        assert described(model) != before


@pytest.mark.parametrize("compute", ["weight_norm", "spectral_norm", "pruned", "encoder_layer"])
def test_a_module_that_was_read_computes_the_same(compute: str, tmp_path: Path) -> None:
    model = MODULES[compute]().eval()
    x = torch.randn(2, 8, 8) if compute == "encoder_layer" else torch.randn(2, 3, 5, 4)
    torch.save(model, tmp_path / "model.pt")
    assert torch.equal(read_model(tmp_path / "model.pt").model(x), model(x))


IN_A_DICT: dict[str, tuple[Callable[[nn.Module], object], str | None]] = {
    "net": (lambda m: {"net": m, "epoch": 3, "loss": [0.5]}, None),
    "model": (
        lambda m: {"model": m, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        None,
    ),
    "chosen": (lambda m: {"ema": m, "raw": nn.ReLU()}, "ema"),
}


@pytest.mark.parametrize(("wrap", "key"), IN_A_DICT.values(), ids=IN_A_DICT.keys())
def test_a_module_in_a_dict(
    wrap: Callable[[nn.Module], object], key: str | None, tmp_path: Path
) -> None:
    model = plain()
    torch.save(wrap(model), tmp_path / "model.pt")
    found = read_model(tmp_path / "model.pt", key=key)
    assert described(found.model) == described(model)


# ---- weights and --arch ------------------------------------------------------------------------

FACTORY = """
from torch import nn
from parts import block

def build(channels=5, fail=False):
    if fail:
        raise ValueError("no such width")
    return nn.Sequential(nn.Conv2d(3, channels, 3), block(channels))

class Family:
    @staticmethod
    def small():
        return build()

model = build()
def number():
    return 7
value = 7
"""
PARTS = """
from torch import nn

def block(channels):
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "nets.py").write_text(FACTORY)
    (folder / "parts.py").write_text(PARTS)
    (folder / "broken.py").write_text("import a_module_that_is_not_there")
    yield folder
    for name in ("nets", "parts", "broken", "groupfx_arch_nets", "groupfx_arch_broken"):
        sys.modules.pop(name, None)


WEIGHTS: dict[str, Callable[[Mapping[str, Tensor]], object]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {"state": {}}},
    "model": lambda state: {"model": state, "ema": {k: v + 1 for k, v in state.items()}},
    "one_of_another_name": lambda state: {"generator": state, "step": 7},
    "data_parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("wrap", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_go_into_the_model_of_the_factory(
    wrap: Callable[[Mapping[str, Tensor]], object], zipped: bool, code: Path
) -> None:
    model, path = plain(), code.parent / "weights.pt"
    torch.save(wrap(model.state_dict()), path, _use_new_zipfile_serialization=zipped)
    found = read_model(path, arch=f"{code / 'nets.py'}:build")
    assert found.source == "state_dict"
    assert described(found.model) == described(model)


def test_safetensors_go_into_the_model_of_the_factory(code: Path) -> None:
    model, path = plain(), code.parent / "weights.safetensors"
    save_file(model.state_dict(), path)
    found = read_model(path, arch="nets:Family.small", python_path=[code])
    assert found.source == "safetensors"
    assert described(found.model) == described(model)


def test_arguments_of_the_factory(code: Path) -> None:
    path = code.parent / "weights.pt"
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Sequential(nn.BatchNorm2d(7), nn.ReLU()))
    torch.save(model.state_dict(), path)
    before = list(sys.path)
    found = read_model(path, arch="nets:build", arch_args={"channels": 7}, python_path=[code])
    assert described(found.model) == described(model)
    assert sys.path == before


def test_the_dtype_of_the_factory_stays(code: Path) -> None:
    path = code.parent / "weights.pt"
    torch.save(plain().half().state_dict(), path)
    found = read_model(path, arch="nets:model", python_path=[code])
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.float32}


# ---- our own file ------------------------------------------------------------------------------


def test_our_own_file_comes_with_its_report(tmp_path: Path) -> None:
    graph, path = fx.symbolic_trace(plain()), tmp_path / "model.pt"
    inputs = [{"name": None, "dtype": "float32", "shape": [2, 3, 8, 8]}]
    write(path, Archive.of_graph(graph, "trace", inputs=inputs, report={"sites": []}))
    found = read_model(path)
    assert (found.source, found.inputs, found.report) == ("archive", inputs, {"sites": []})
    assert torch.equal(found.model(torch.ones(2, 3, 8, 8)), graph(torch.ones(2, 3, 8, 8)))


def test_our_own_file_of_swapped_modules_needs_its_factory(code: Path) -> None:
    model, path = plain(), code.parent / "model.pt"
    root = nn.Module()
    root.add_module("0", nn.Conv2d(3, 5, 3))
    graph = fx.Graph()
    graph.output(graph.call_module("0", (graph.placeholder("x"),)))
    model[0] = fx.GraphModule(root, graph)
    write(path, Archive.of_modules({"0": model[0]}, model.state_dict()))
    with pytest.raises(FileError, match="without their model: say how to build it with --arch"):
        read_model(path)
    found = read_model(path, arch="nets:build", python_path=[code])
    x = torch.randn(2, 3, 6, 6)
    assert isinstance(found.model[0], fx.GraphModule)
    assert torch.equal(found.model(x), model(x))


# ---- trust -------------------------------------------------------------------------------------


def save_with_class(code: Path, path: Path, save: Callable[[object, Path], object]) -> nn.Module:
    """Save a model of a class that afterwards only a file in `code` defines."""
    (code / "owned.py").write_text(
        "from torch import nn\nclass Sized(nn.Sequential):\n    def size(self):\n        return 3\n"
    )
    with searched([code]):
        model = importlib.import_module("owned").Sized(nn.Conv2d(3, 5, 1))
        save(model, path)
    del sys.modules["owned"]
    return model


def plain_pickle(model: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(model))


SAVERS: dict[str, Callable[[object, Path], object]] = {
    "zip": torch.save,
    "old": lambda model, path: torch.save(model, path, _use_new_zipfile_serialization=False),
    "pickle": plain_pickle,
}


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS.keys())
def test_a_class_of_the_users_needs_trust(
    save: Callable[[object, Path], object], code: Path
) -> None:
    path = code.parent / "model.pt"
    model = save_with_class(code, path, save)
    with pytest.raises(FileError) as caught:
        read_model(path)
    for said in ("owned.Sized", "--trust-pickle", "--python-path", "--arch"):
        assert said in str(caught.value)
    with pytest.raises(FileError, match=r"class that is not found .*owned.*--python-path"):
        read_model(path, trust_pickle=True)
    found = read_model(path, trust_pickle=True, python_path=[code])
    assert found.model.size() == 3
    assert torch.equal(found.model[0].weight, model[0].weight)


def test_a_graph_module_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(fx.symbolic_trace(plain()), path)
    with pytest.raises(FileError, match=r"torch\.fx\.graph_module\.reduce_graph_module"):
        read_model(path)
    assert isinstance(read_model(path, trust_pickle=True).model, fx.GraphModule)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt2"
    program = torch.export.export(plain().eval(), (torch.randn(2, 3, 8, 8),))
    torch.export.save(program, path)
    return path


def test_a_pt2_needs_trust(exported: Path) -> None:
    with pytest.raises(FileError, match=r"is a \.pt2 file: .*evaluates Python.*--trust-pickle"):
        read_model(exported)
    found = read_model(exported, trust_pickle=True)
    assert found.source == "exported"
    assert found.inputs == [{"name": None, "dtype": "float32", "shape": [2, 3, 8, 8]}]
    assert found.model(torch.ones(2, 3, 8, 8)).shape == (2, 5, 6, 6)


def test_parametrised_modules_are_no_pickle_of_torchs(tmp_path: Path) -> None:
    # torch refuses to pickle them; the remedy is ours to know, the error is torch's.
    with pytest.raises(RuntimeError, match="parametrized modules"):
        torch.save(parametrizations.weight_norm(nn.Linear(2, 3)), tmp_path / "model.pt")


# ---- bad input ---------------------------------------------------------------------------------


def weights(folder: Path) -> Path:
    path = folder / "weights.pt"
    torch.save(plain().state_dict(), path)
    return path


def saved(found: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.save(found, folder / "model.pt")
        return folder / "model.pt"

    return make


def written(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "model.pt").write_bytes(content)
        return folder / "model.pt"

    return make


def misspelt(folder: Path) -> Path:
    weights(folder)
    return folder / "weigths.pt"


def cut(make: Callable[[Path], Path], part: float) -> Callable[[Path], Path]:
    def shortened(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
        return path

    return shortened


def torchscript(folder: Path) -> Path:
    path = folder / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(nn.ReLU()), path)
    return path


def old_module(folder: Path) -> Path:
    path = folder / "model.pt"
    torch.save(plain(), path, _use_new_zipfile_serialization=False)
    return path


FILES: dict[str, tuple[Callable[[Path], Path], dict[str, Any], type[GroupfxError], str]] = {
    "missing": (lambda f: f / "no.pt", {}, FileError, r"there is no file .*no\.pt$"),
    "misspelt": (misspelt, {}, FileError, r"did you mean .*weights\.pt\?"),
    "folder": (lambda f: f, {}, FileError, "is a folder: name the file"),
    "empty": (written(b""), {}, FileError, "is empty"),
    "text": (written(b"import torch\n"), {}, FileError, "text file .*'import torch.n'"),
    "bytes": (written(bytes(range(200))), {}, FileError, "of an unknown kind"),
    "gzip": (written(b"\x1f\x8b\x08" + bytes(50)), {}, FileError, "tar or gzip"),
    "zip": (written(b"PK\x03\x04" + bytes(50)), {}, FileError, "truncated or damaged"),
    "truncated_module": (cut(saved(plain()), 0.6), {}, FileError, "truncated or damaged"),
    "truncated_old": (cut(old_module, 0.4), {}, FileError, "truncated or damaged"),
    "old_module": (old_module, {}, FileError, "modules in the format of torch before 1.6"),
    "torchscript": (torchscript, {}, FileError, "TorchScript"),
    "no_arch": (weights, {}, FileError, "say how to build it with --arch"),
    "arch_of_a_module": (saved(nn.ReLU()), {"arch": "a:b"}, UsageError, "leave --arch out"),
    "malformed": (weights, {"arch": "nets"}, UsageError, "package.module:factory or file.py"),
    "malformed_name": (weights, {"arch": "nets:a b"}, UsageError, "is not understood"),
    "no_module": (weights, {"arch": "netz:build"}, UsageError, "no module netz.*--python-path"),
    "no_file": (weights, {"arch": "netz.py:build"}, UsageError, r"there is no file netz\.py"),
    "no_folder": (
        weights,
        {"arch": "nets:build", "python_path": ["nowhere"]},
        UsageError,
        "--python-path nowhere is not a folder",
    ),
    "no_factory": (weights, {"arch": "nets:biuld"}, UsageError, "has no biuld; did you mean build"),
    "not_callable": (weights, {"arch": "nets:value"}, UsageError, "value is a int, not a function"),
    "not_a_module": (weights, {"arch": "nets:number"}, UsageError, "returned a int, not a torch"),
    "raises": (
        weights,
        {"arch": "nets:build", "arch_args": {"fail": True}},
        UsageError,
        r"build\(fail=True\) raised ValueError: no such width",
    ),
    "unknown_argument": (
        weights,
        {"arch": "nets:build", "arch_args": {"depth": 3}},
        UsageError,
        r"build\(depth=3\) raised TypeError.*'depth'",
    ),
    "broken_import": (
        weights,
        {"arch": "broken:build"},
        UsageError,
        "importing broken raised ModuleNotFoundError: .*a_module_that_is_not_there",
    ),
    "missing_keys": (
        saved({k: v for k, v in plain().state_dict().items() if k.startswith("0.")}),
        {"arch": "nets:build"},
        FileError,
        r"4 missing: 1\.0\.weight, 1\.0\.bias",
    ),
    "unexpected_keys": (
        saved(plain().state_dict() | {f"x{i}": torch.ones(1) for i in range(9)}),
        {"arch": "nets:build"},
        FileError,
        r"9 unexpected: x0, x1, x2, x3, x4, \.\.\.",
    ),
    "wrong_shapes": (
        weights,
        {"arch": "nets:build", "arch_args": {"channels": 4}},
        FileError,
        r"6 of another shape: 0\.weight \[5, 3, 3, 3\] for \[4, 3, 3, 3\]",
    ),
}


@pytest.mark.parametrize(("make", "options", "kind", "message"), FILES.values(), ids=FILES.keys())
def test_bad_input_is_named_with_its_remedy(
    make: Callable[[Path], Path],
    options: dict[str, Any],
    kind: type[GroupfxError],
    message: str,
    code: Path,
) -> None:
    if "arch" in options:
        options = {"python_path": [code]} | options
    with pytest.raises(kind, match=message) as caught:
        read_model(make(code.parent), **options)
    assert caught.value.exit_code == 2


def test_what_a_factory_raised_is_chained(code: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_model(
            weights(code.parent), arch="nets:build", arch_args={"fail": True}, python_path=[code]
        )
    assert isinstance(caught.value.__cause__, ValueError)


def test_json_arguments_become_keywords(code: Path) -> None:
    arguments = json.loads('{"channels": 5}')
    found = read_model(
        weights(code.parent), arch="nets:build", arch_args=arguments, python_path=[code]
    )
    assert len(found.model) == 2
