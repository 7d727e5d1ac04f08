"""Traits of models that come from elsewhere: scripted, exported, compiled, wrapped."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from tests.traits.outputs import GivesNamedTuple
from tests.traits.trait import One, grouped, image, quiet, trait


@trait("modules")
def scripted_activation() -> nn.Module:
    return nn.Sequential(grouped(), quiet(torch.jit.script, nn.ReLU()), nn.Conv2d(6, 4, 1))


@trait("modules")
def scripted_function() -> nn.Module:
    @torch.jit.script
    def swish(x: Tensor) -> Tensor:
        return x * x.sigmoid()

    class Scripted(One):
        def forward(self, x: Tensor) -> Tensor:
            return swish(self.conv(x))

    return Scripted()


@trait(
    "modules",
    left={
        "0": "convolution with 3 groups runs here in TorchScript: give the model as it was before torch.jit"
    },
)
def scripted_conv() -> nn.Module:
    return nn.Sequential(quiet(torch.jit.script, grouped()), nn.ReLU())


@trait(
    "modules",
    left={
        "convolution": "convolution with 3 groups runs here in TorchScript: give the model as it was before torch.jit"
    },
)
def scripted_model() -> nn.Module:
    return quiet(torch.jit.script, nn.Sequential(grouped(), nn.ReLU()))


@trait(
    "modules",
    left={
        "convolution": "convolution with 3 groups runs here in TorchScript: give the model as it was before torch.jit"
    },
)
def scripted_frozen() -> nn.Module:
    return quiet(torch.jit.freeze, quiet(torch.jit.script, nn.Sequential(grouped()).eval()))


def for_inference(model: nn.Module) -> nn.Module:
    scripted = quiet(torch.jit.script, model.eval())
    return quiet(torch.jit.optimize_for_inference, scripted)


@trait(
    "modules",
    counted=0,
    left={
        "mkldnn_convolution": "mkldnn_convolution with 3 groups runs here in TorchScript: give the model as it was before torch.jit"
    },
)
def scripted_for_inference() -> nn.Module:
    return for_inference(nn.Sequential(grouped(), nn.ReLU()))


@trait(
    "modules",
    calls=2,
    counted=1,
    left={
        "0": "mkldnn_convolution with 3 groups runs here in TorchScript: give the model as it was before torch.jit"
    },
)
def scripted_block_for_inference() -> nn.Module:
    return nn.Sequential(for_inference(nn.Sequential(grouped(), nn.ReLU())), grouped())


@trait(
    "modules",
    counted=0,
    left={
        "_convolution": "_convolution with 3 groups runs here in TorchScript: give the model as it was before torch.jit"
    },
)
def traced_model() -> nn.Module:
    return quiet(torch.jit.trace, One().eval(), image())


@trait(
    "modules",
    calls=2,
    counted=1,
    left={
        "1": "_convolution with 3 groups runs here in TorchScript: give the model as it was before torch.jit"
    },
)
def traced_block() -> nn.Module:
    block = nn.Sequential(grouped(), nn.ReLU()).eval()
    return nn.Sequential(nn.Conv2d(6, 6, 1), quiet(torch.jit.trace, block, image()), grouped())


@trait("export", counted=None, fixed=True)
def exported_program() -> Any:
    return torch.export.export(One().eval(), (image(),))


@trait("export", fixed=True)
def exported_module() -> nn.Module:
    return torch.export.export(One().eval(), (image(),)).module()


@trait("export", counted=None, fixed=True)
def exported_open() -> Any:
    batch = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    return torch.export.export(One().eval(), (image(),), dynamic_shapes=(batch,))


class CountsInBuffer(One):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("scale", torch.rand(6, 1, 1), persistent=False)
        self.shift = torch.randn(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return self.conv(x) * self.count * self.scale + self.shift


@trait("export", counted=None, fixed=True)
def exported_that_writes_buffers() -> Any:
    """With a buffer that no checkpoint holds, and a constant beside it."""
    return torch.export.export(CountsInBuffer().eval(), (image(),))


@trait("export", counted=None, fixed=True)
def exported_that_writes_its_input() -> Any:
    class Writes(One):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.add_(1))

    return torch.export.export(Writes().eval(), (image(),))


@trait("export", counted=None, fixed=True)
def exported_in_train_mode() -> Any:
    model = nn.Sequential(grouped(), nn.BatchNorm2d(6))
    return torch.export.export(model.train(), (image(),)).run_decompositions()


@trait("export", counted=None, fixed=True)
def exported_named_tuple() -> Any:
    return torch.export.export(GivesNamedTuple().eval(), (image(),))


@trait("export", counted=None, fixed=True)
def exported_with_bounds() -> Any:
    batch, height = torch.export.Dim("batch", max=64), torch.export.Dim("height", min=4, max=512)
    sizes = ({0: batch, 2: height},)
    return torch.export.export(One().eval(), (image(),), dynamic_shapes=sizes)


@trait("export", counted=None, fixed=True)
def exported_core_aten() -> Any:
    return torch.export.export(One().eval(), (image(),)).run_decompositions()


@trait()
def graph_module() -> nn.Module:
    return fx.symbolic_trace(One())


@trait(calls=2)
def graph_module_inside() -> nn.Module:
    return nn.Sequential(fx.symbolic_trace(One()), nn.ReLU(), grouped())


@trait()
def nested_graph_modules() -> nn.Module:
    inner = fx.symbolic_trace(One())
    return fx.symbolic_trace(nn.Sequential(inner, nn.ReLU()))


class TwoModes(fx.GraphModule):
    """As torchvision's feature extractor: a graph for each mode."""

    def __init__(self, root: nn.Module, train_graph: fx.Graph, eval_graph: fx.Graph) -> None:
        super().__init__(root, train_graph)
        self.train_graph, self.eval_graph = train_graph, eval_graph

    def train(self, mode: bool = True) -> "TwoModes":
        if mode != self.training:
            self.graph = self.train_graph if mode else self.eval_graph
        super().train(mode)
        return self


@trait("modules")
def graph_by_mode() -> nn.Module:
    class Modes(One):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y * 2 if self.training else y

    model = Modes()
    train = fx.Tracer().trace(model.train())
    evaluated = fx.Tracer().trace(model.eval())
    return TwoModes(model, train, evaluated)


@trait("modules")
def torchvision_features() -> nn.Module:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop, self.head = grouped(), nn.Dropout(), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = nn.functional.dropout(x, 0.5, self.training)
            return self.head(x)

    class DualGraph(fx.GraphModule):
        def __init__(self, root: nn.Module, train: fx.Graph, evaluated: fx.Graph) -> None:
            super().__init__(root, train)
            self._train_graph, self._eval_graph = train, evaluated
            if self.training:
                self.graph = train
            else:
                self.graph = evaluated

        def train(self, mode: bool = True) -> Any:
            self.graph = self._train_graph if mode else self._eval_graph
            return super().train(mode)

    body = Body()
    return DualGraph(body, fx.Tracer().trace(body.train()), fx.Tracer().trace(body.eval()))


@trait()
def compiled_model() -> nn.Module:
    return torch.compile(One(), backend="eager")


@trait("modules")
def compiled_block() -> nn.Module:
    return nn.Sequential(torch.compile(One(), backend="eager"), nn.ReLU())


@trait()
def compiled_in_place() -> nn.Module:
    model = One()
    model.compile(backend="eager")
    return model


@trait()
def compiler_disabled() -> nn.Module:
    class Disabled(One):
        @torch.compiler.disable
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    return Disabled()


@trait("modules")
def data_parallel() -> nn.Module:
    return nn.DataParallel(One())


@trait("modules")
def averaged_model() -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(One())


@trait("modules")
def wrapper() -> nn.Module:
    class Wrapper(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.module = model

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    return Wrapper(One())


@trait()
def pickled_twin() -> nn.Module:
    import copy

    return copy.deepcopy(copy.deepcopy(One()))


@trait(
    refused="One cannot be copied, because of its conv.weight (RuntimeError: The default implementation of "
)
def tensor_subclass() -> nn.Module:
    class Tagged(Tensor):
        pass

    model = One()
    weight = model.conv.weight.detach().as_subclass(Tagged)
    model.conv.weight = nn.Parameter(weight)
    return model


@trait()
def inference_tensors() -> nn.Module:
    with torch.inference_mode():
        return One()


@trait()
def shared_memory() -> nn.Module:
    return One().share_memory()


@trait(
    left={
        "conv": "its weight or bias is a plain tensor, neither a parameter nor a buffer of the layer: register it, or compute it in forward"
    }
)
def on_autograd_history() -> nn.Module:
    """A weight that is a plain tensor with a history."""
    model = One()
    weight = model.conv.weight
    del model.conv.weight
    model.raw = weight
    model.conv.weight = weight * 2
    return model


@trait("modules")
def nas_supernet() -> nn.Module:
    class Choice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.options = nn.ModuleList([grouped(), nn.Conv2d(6, 6, 1), nn.Identity()])
            self.alpha = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            share = self.alpha.softmax(0)
            return sum(s * option(x) for s, option in zip(share, self.options, strict=True))

    return Choice()
