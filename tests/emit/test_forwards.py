"""Files for PLiNIO that change the user's own model, though other operations changed as well."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import groupfx
from groupfx.emit import emit_python
from groupfx.emit.checked import require_form
from groupfx.errors import RewriteError
from tests.emit.emitted import changed, complaints, differences, executed, loaded, made_from
from tests.passes.norm_activations import BatchNormAct2d


class Gate(nn.Module):
    """Squeeze and excitation, as it is written for nobody's grammar."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv2d(8, 8, 1)

    def forward(self, values: Tensor) -> Tensor:
        return values * self.line(values.mean((2, 3), keepdim=True)).sigmoid()


class GatedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.gate = Gate()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.gate(self.norm(self.conv(x))), inplace=True)

    def channels(self) -> int:
        """Something else than a forward, which has to stay."""
        return self.gate.line.out_channels


class Gated(nn.Module):
    """Blocks whose forward changes, in one that changes too."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(GatedBlock(), GatedBlock())
        self.line = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.blocks(x), 1)
        return self.line(x.view(x.size(0), -1))


class GatedTwice(nn.Module):
    """One block called twice, of which the second call makes its own layers in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.block = GatedBlock()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


class FusedNorms(nn.Module):
    """Norms that activate: one goes into branches, one stays, one is followed by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(8, 8, 1), BatchNormAct2d(8))
        self.conv = nn.Conv2d(8, 8, 3, groups=4)
        self.norm = BatchNormAct2d(8)
        self.last = nn.Conv2d(8, 8, 1, groups=2)
        self.plain = BatchNormAct2d(8, nn.Identity)
        self.head = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(self.stem(x)))
        return self.head(self.plain(self.last(x)))


class Joins(nn.Module):
    """Takes two values, so that its forward is written into the one around it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = GatedBlock()

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        x = self.block(x)
        return x * other, x.sigmoid()


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 8, 1)
        self.join = Joins()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        product, other = self.join(x, other=self.stem(x))
        return {"product": product, "other": other}


class OwnSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean((2, 3))


def own_sequential() -> nn.Module:
    return OwnSequential(nn.Conv2d(8, 8, 1), GatedBlock())


class AddedSites(nn.Module):
    """Two sites that are added, branch by branch (as RepVGG's), and a layer that becomes a call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(8, 8, 1, groups=2, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(8)
        self.shuffle = nn.ChannelShuffle(2)
        self.line = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(x + self.line(F.relu(self.norm(self.a(x)) + self.b(x))))


def kept_output() -> nn.Module:
    """Ends with a concat that must not be pruned, and says so by its axis."""
    return nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 3, groups=2))


def no_groups() -> nn.Module:
    """Nothing to split, and tensors that change their place."""
    return nn.Sequential(nn.Conv2d(8, 8, 1), BatchNormAct2d(8), nn.Conv2d(8, 8, 1))


def plain() -> nn.Module:
    """Nothing but the convolution changes."""
    layers = nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    return nn.Sequential(*layers)


# A model, and the classes of its file that are a forward.
MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "blocks": (Gated, ["Gate", "GatedBlock", "Gated"]),
    "called twice": (GatedTwice, ["Gate", "GatedBlock"]),
    "fused norms": (FusedNorms, []),
    "several values": (Joined, ["Gate", "GatedBlock", "Joined"]),
    "a sequential": (own_sequential, ["Gate", "GatedBlock", "OwnSequential"]),
    "added branches": (AddedSites, ["AddedSites", "ChannelShuffle"]),
    "an output that is kept": (kept_output, ["Sequential"]),
    "no other operation": (plain, []),
    "no groups": (no_groups, []),
}
X = (torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)


@pytest.mark.parametrize(("make", "classes"), MODELS.values(), ids=MODELS)
def test_the_users_own_model_is_changed(
    make: Callable[[], nn.Module], classes: list[str], tmp_path: Any
) -> None:
    original = make().double().eval()
    result = groupfx.rewrite(original, X, target="plinio", verify=False)
    assert result.report.way == "trace"
    source = emit_python(result)
    kinds = [line.split("(")[0][6:] for line in source.splitlines() if line.startswith("class ")]
    assert sorted({*kinds} - {"Branches"}) == sorted(classes)
    made = changed(source, original)
    assert isinstance(made, make if isinstance(make, type) else nn.Sequential)
    assert differences(made, result, X) == []
    assert complaints(source, tmp_path) == ""
    # As a toolchain traces it, all operations are those of the result.
    calls = {n.target for n in fx.symbolic_trace(made).graph.nodes if n.op != "call_module"}
    assert calls == {n.target for n in result.model.graph.nodes if n.op != "call_module"}


def test_what_a_block_can_do_besides_stays() -> None:
    model = Gated().eval()
    source = emit_python(groupfx.rewrite(model, X[0].float(), target="plinio", verify=False))
    made = copy.deepcopy(executed(source)["rewrite"](model))
    assert isinstance(made.blocks[0], GatedBlock)
    assert made.blocks[0].channels() == 8


class Averaged(nn.Module):
    """All of it can be brought into the form."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.line = nn.Conv2d(8, 8, 3, groups=2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self.conv(x).mean((2, 3)))


def test_a_model_that_is_not_in_the_form_is_no_change_of_it() -> None:
    model = Averaged().eval()
    result = groupfx.rewrite(model, X[0].float(), target="plinio", verify=False)
    assert result.report.obstacles == ()
    with pytest.raises(RewriteError, match="cannot be brought into the form"):
        require_form(model, result)


class AddsAConstant(Averaged):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.ones(3, dtype=x.dtype)


def test_a_constant_of_a_graph_is_written_into_a_graph() -> None:
    original = AddsAConstant().double().eval()
    result = groupfx.rewrite(original, X, target="plinio", verify=False)
    made = made_from(emit_python(result), result, original)
    assert differences(made, result, X) == []


class Anchored(nn.Module):
    """Reads a tensor that a child without any other holds as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.anchors = nn.Conv2d(8, 8, 1, groups=2), nn.Module()
        self.anchors.cells = torch.arange(5.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.anchors.cells.to(x.dtype)


def test_a_child_that_holds_a_plain_tensor_alone_is_there_in_a_graph() -> None:
    result = groupfx.rewrite(Anchored().eval(), X[0].float(), way="export", verify=False)
    made = loaded(emit_python(result), result)
    assert torch.equal(made(X[0].float()), result.model(X[0].float()))


def test_a_graph_says_why_it_is_one() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.channel_shuffle(self.a(x), 2))

    result = groupfx.rewrite(Shuffled().double().eval(), X, target="plinio", verify=False)
    source = emit_python(result)
    assert "def rewrite(" not in source
    told = " ".join(source.split())
    line = inspect.getsourcelines(Shuffled.forward)[1] + 1
    assert "Note: your model itself is not changed, as channels changed their order" in told
    assert f"{__file__}:{line}" in told.replace("- ", "-")


@pytest.mark.long  # for the import of the library
def test_an_output_of_a_librarys_own_class_is_a_dict_in_a_file_with_a_graph() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, groups=2)

        def forward(self, x: Tensor, **_: Tensor) -> Any:
            return outputs.BaseModelOutput(last_hidden_state=self.conv(x).relu())

    result = groupfx.rewrite(Named().eval(), X[0].float(), way="export", verify=False)
    source = emit_python(result)
    assert "Note: forward returns a dict, and no BaseModelOutput." in source
    made = loaded(source, result)(X[0].float())
    assert type(made) is dict
    assert torch.equal(made["last_hidden_state"], result.model(X[0].float())[0])


# Convolutions that a class of the user's calls itself


class SamePaddedCall(nn.Conv2d):
    """Pads by its input's size, as the ports of TensorFlow's models."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)


class StandardisedCall(SamePaddedCall):
    """Its weight is computed as well."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        x = F.pad(x, (0, 1)) if x.shape[-1] % 2 else x
        return F.conv2d(x, weight, bias=self.bias, groups=self.groups)


class Centred(nn.Conv2d):
    """Its weight is computed, in a way that a trace can follow."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, groups=self.groups)


class NormedBehind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = Centred(8, 8, 3, groups=4), nn.BatchNorm2d(8)
        self.line = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self.norm(self.conv(x))).mean((2, 3))


def test_a_norm_behind_a_call_stays_in_a_forward_that_changes() -> None:
    original = NormedBehind().double().eval()
    result = groupfx.rewrite(original, X, target="plinio", verify=False)
    source = emit_python(result)
    assert "self.norm(" in source
    assert "weight" not in source[source.index("class NormedBehind") : source.index("# Modules")]
    assert differences(changed(source, original), result, X) == []


class MaxNormed(nn.Conv2d):
    """Puts its own weight right in every forward (as EEGNet's)."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.5)
        return super().forward(x)


class SeveralCalls(nn.Module):
    """Two calls with other numbers, and one that has no groups."""

    def __init__(self, *args: int, **options: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 2, 3, 3))
        self.line = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1)) if x.shape[-1] % 2 else x
        x = F.conv2d(x, self.weight, padding=1, groups=4)
        return self.line(x) + F.conv2d(x, self.weight, padding=2, dilation=2, groups=4)


class TransposedCall(nn.Module):
    """A transposed convolution that is a function."""

    def __init__(self, *args: int, **options: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 2, 3, 3))
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1)) if x.shape[-1] % 2 else x
        return F.conv_transpose2d(x, self.weight, self.bias, 2, 1, 1, 4)


@pytest.mark.parametrize(
    "kind", [SamePaddedCall, StandardisedCall, MaxNormed, SeveralCalls, TransposedCall]
)
def test_a_class_that_calls_its_convolution_is_kept(kind: type[nn.Module], tmp_path: Any) -> None:
    original = nn.Sequential(kind(8, 8, 3, groups=4), nn.BatchNorm2d(8)).double()
    result = groupfx.rewrite(original, X, verify=False)
    assert result.report.way == "modules"
    source = emit_python(result)
    made = changed(source, original)
    assert type(made[0]).__mro__[2] is kind
    assert differences(made, result, X) == []
    assert complaints(source, tmp_path) == ""
    with torch.profiler.profile() as profile:
        made(X[0])
    ran = [event for event in profile.events() if event.name == "aten::convolution"]
    calls = len(result.report.sites)
    assert len(ran) == 4 * calls + (kind is SeveralCalls)
