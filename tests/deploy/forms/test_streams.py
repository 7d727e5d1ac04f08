"""What lies between convolutions is taken to stay in the blocked layout where the runtime's own
optimiser keeps it there, and to be taken along by a convolution where that does so.
"""

from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from groupfx.deploy.forms.static_shapes import static_shapes
from groupfx.deploy.forms.streams import streams_of
from groupfx.deploy.graph.conv_nodes import conv_nodes
from groupfx.deploy.running.blocked_layout import this_machine
from groupfx.plan.cost import OnnxRuntime, Work
from groupfx.plan.machine import Machine
from groupfx.plan.together import site_options
from tests.plan.test_cost import structure_of

TEXT = """<ir_version: 10, opset_import: ["": 20]>
g (float[2, 32, 4, 4] x) => (float[2, 32, h, w] z)
<float[32, 32, 1, 1] w = {weight}, float[32] v = {ones}, float[32, 1, 1] slope = {ones},
 float[4] scales = {{1, 1, 2, 2}}, float root = {{1.4142135}}, float one = {{1}},
 float half = {{0.5}}>
{{ a = Conv(x, w)
   {between}
   y = Conv(b, w)
   z = Tanh(y) }}
"""
BETWEEN = {
    "activation": "b = Relu(a)",
    "hard swish": "b = HardSwish(a)",
    "silu": "s = Sigmoid(a) b = Mul(a, s)",
    "gelu": "b = Gelu(a)",
    "gelu by erf": "d = Div(a, root) e = Erf(d) f = Add(e, one) g = Mul(a, f) b = Mul(g, half)",
    "norm": "r = Relu(a) n = BatchNormalization(r, v, v, v, v) b = Relu(n)",
    "product": "r = Relu(a) b = Mul(a, r)",
    "sum": "r = Relu(a) b = Add(a, r)",
    "interpolated": 'b = Resize <mode = "linear"> (a, , scales)',
    "parametric": "b = PRelu(a, slope)",
    "elu": "b = Elu(a)",
    "difference": "r = Relu(a) b = Sub(a, r)",
    "mish": "s = Softplus(a) t = Tanh(s) b = Mul(a, t)",
    "gate": "p = GlobalAveragePool(a) s = Sigmoid(p) b = Mul(a, s)",
}
DEAR = 1e6


def between(nodes: str) -> onnx.ModelProto:
    ones, weight = ("{" + ", ".join(["1"] * number) + "}" for number in (32, 1024))
    return onnx.parser.parse_model(TEXT.format(weight=weight, ones=ones, between=nodes))


def expected(proto: onnx.ModelProto, machine: Machine) -> float:
    """Microseconds between the convolutions, the first of which is a dense site."""
    model = ir.from_proto(proto)
    shapes = static_shapes(model)
    convs, _ = conv_nodes(model, shapes)
    work = Work(1, 16, batch=2)
    (dense, *_) = site_options(structure_of(32, 32, 2, equal=False), [work], machine, learned=True)
    streams = streams_of(model, convs, [convs[0].name], shapes, machine)
    behind = [s for s in streams if any(end.site == convs[0].name for end in s.writers)]
    price = OnnxRuntime(work, machine)
    return sum(stream.cost(price, {convs[0].name: dense}) for stream in behind)


def ran(proto: onnx.ModelProto, folder: Path) -> list[onnx.NodeProto]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize("nodes", BETWEEN.values(), ids=BETWEEN)
def test_the_layout_is_left_where_the_runtime_leaves_it(nodes: str, tmp_path: Path) -> None:
    proto = between(nodes)
    kinds = [node.op_type for node in ran(proto, tmp_path)]
    machine = this_machine()
    assert machine.block, "the runtime of the tests has a blocked layout"
    leaves = kinds.count("ReorderOutput") > 1
    dear = Machine(block=machine.block, reorder=DEAR, reorder_aliased=DEAR)
    assert (expected(proto, dear) > DEAR / 1e3) == leaves


@pytest.mark.parametrize("kind", ["activation", "hard swish"])
def test_nothing_is_paid_for_what_a_convolution_takes_along(kind: str, tmp_path: Path) -> None:
    proto = between(BETWEEN[kind])
    kinds = {node.op_type for node in ran(proto, tmp_path)}
    assert kinds == {"Conv", "ReorderInput", "ReorderOutput"}
    assert expected(proto, Machine()) == 0
