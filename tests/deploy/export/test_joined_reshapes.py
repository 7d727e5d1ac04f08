"""Two Reshapes are one where that says the same, and a Transpose between two stands alone."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from groupfx.deploy.export.joined_reshapes import join_reshapes

HEAD = '<ir_version: 8, opset_import: ["": 18]> g (float[batch, 2, 4, 3] x) => (float{result} y)'
INTO, OUT = "r = Reshape(x, first)", "y = Reshape({read}, second)"
SWAP = "t = Transpose <perm = [0, 2, 1]> (r)"
CASES = {
    "one": ("[batch, 8, 3]", "[batch, 24]", (0, 8, -1), (0, -1), "", ["Reshape"]),
    "back": ("[batch, 24]", "[batch, 4, 6]", (0, 24), (-1, 4, 6), "", ["Reshape"]),
    "swapped": (
        "[joined, 4, 3]", "[batch, 2, 3, 4]", (-1, 4, 3), (-1, 2, 3, 4), SWAP, ["Transpose"],
    ),
    "one in front": ("[batch, 8, 3]", "[batch, 3, 8]", (0, 8, 3), (0, 3, 8), "", ["Reshape"]),
    "other axes": (
        "[batch, 8, 3]", "[batch, 3, 2, 4]", (0, 8, 3), (0, 3, 2, 4), SWAP,
        ["Reshape", "Transpose", "Reshape"],
    ),
    "other sizes": (
        "[joined, 3, 4]", "[batch, 2, 4, 3]", (-1, 3, 4), (-1, 2, 4, 3), SWAP,
        ["Reshape", "Transpose", "Reshape"],
    ),
    "other order": (
        "[joined, 4, 3]", "[batch, 2, 3, 4]", (-1, 4, 3), (-1, 2, 3, 4),
        SWAP.replace("0, 2, 1", "0, 1, 2"),
        ["Reshape", "Transpose", "Reshape"],
    ),
    "two open": ("[8, n, m]", "[n, k]", (8, -1, 3), (-1, 24), "", ["Reshape", "Reshape"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("between", "result", "first", "second", "moved", "left"), CASES.values(), ids=CASES
)
def test_what_is_left_means_the_same(
    between: str, result: str, first: tuple[int], second: tuple[int], moved: str, left: list[str]
) -> None:
    targets = (
        f"int64[{len(numbers)}] {name} = {{{', '.join(map(str, numbers))}}}"
        for name, numbers in (("first", first), ("second", second))
    )
    nodes = "\n".join((INTO, moved, OUT.format(read="t" if moved else "r")))
    text = f"{HEAD.format(result=result)} <{', '.join(targets)}, float{between} r> {{ {nodes} }}"
    proto = onnx.parser.parse_model(text)
    model = ir.from_proto(proto)
    join_reshapes(model)
    assert [node.op_type for node in model.graph] == left
    for batch in (1, 2, 8):
        x = np.random.default_rng(0).standard_normal((batch, 2, 4, 3)).astype(np.float32)
        before, after = (
            ort.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0]
            for m in (proto, ir.to_proto(model))
        )
        assert np.array_equal(before, after)
