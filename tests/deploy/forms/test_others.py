"""What no form changes counts in what is expected of a model."""

import onnx
import onnx_ir as ir
import pytest

from groupfx.deploy.forms.others import others
from groupfx.plan.cost import OnnxRuntime, Work
from groupfx.plan.machine import Machine

MACHINE = Machine()
COPY = OnnxRuntime(Work(1, 1), MACHINE).copy


@pytest.mark.parametrize(
    ("node", "result", "expected"),
    [
        ("y = MatMul(x, x)", "[batch, 8, 8]", 8**3 / MACHINE.plain_pointwise / 1e3),
        ("y = Transpose(x)", "[batch, 8, 8]", 4 * COPY(64)),
        ("y = ReduceMean <axes = [2]> (x)", "[batch, 8, 1]", COPY(64)),
        ("y = Identity(x)", "[batch, 8, 8]", 0),
        ("y = Relu(x)", "[batch, 8, 8]", 0),
    ],
)
def test_passes_and_products_count_by_their_sizes(node: str, result: str, expected: float) -> None:
    text = f"g (float[batch, 8, 8] x) => (float{result} y) {{ {node} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 13]> {text}')
    model = ir.from_proto(proto)
    assert others(model, {}, 1, MACHINE) == pytest.approx(expected)
    assert (others(model, {}, 16, MACHINE) > expected) == (expected > 0)


def test_what_has_no_known_size_counts_only_as_a_node() -> None:
    text = "g (float[batch, n, 8] x) => (float[batch, 8, n] y) { y = Transpose(x) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 13]> {text}')
    assert others(ir.from_proto(proto), {}, 16, MACHINE) == 4 * COPY(0)
