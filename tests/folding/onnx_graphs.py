"""ONNX graphs around one row of the table of rules, and a fold that must keep what they compute."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from groupfx.deploy.forms.rewrite_onnx import OnnxRewrite, rewrite_graph
from groupfx.passes import FoldPermutations

Array = npt.NDArray[Any]
CHANNELS, HEIGHT, WIDTH = 12, 6, 10


@dataclass(frozen=True)
class OnnxRow:
    """`body` makes `b` of `a`; the constants that it reads are given as shapes or arrays.

    `carries` says which way any permutation goes through it: "down" from its input to what is
    behind it, "up" from its output to what is in front, "both" or "no"; "never" says that not even
    two convolutions around it take all of it. `out` is how many channels
    `b` has. `old` is an operator that the checker of onnx refuses, and ONNX Runtime takes.
    """

    body: str
    constants: dict[str, tuple[int, ...] | Array] = field(default_factory=dict)
    carries: str = "both"
    out: int = CHANNELS
    opset: int = 21
    exact: bool = True
    old: bool = False


def ints(*numbers: int) -> Array:
    """Sizes, axes and the like."""
    return np.array(numbers, dtype=np.int64)


def whole(name: str, *shape: int) -> Array:
    """Small whole numbers, none of them 0, the same for the same name."""
    rng = np.random.default_rng(sum(map(ord, name)) + sum(shape))
    return (rng.integers(1, 5, shape) * rng.choice([-1, 1], shape)).astype(np.float32)


def permutation(channels: int, seed: int) -> Array:
    """One that is not the identity."""
    return np.random.default_rng(seed).permutation(channels).astype(np.int64)


AROUND = {
    "between": (
        3,
        "U = Conv(x, UW) a = Gather<axis=1>(U, UP)",
        "V = Gather<axis=-3>(b, VP) y = Conv(V, VW)",
    ),
    "down": (CHANNELS, "a = Gather<axis=1>(x, UP)", "y = Conv(b, VW)"),
    "up": (3, "a = Conv(x, UW)", "y = Gather<axis=1>(b, VP)"),
    "kept": (CHANNELS, "a = Gather<axis=1>(x, UP)", "y = Gather<axis=1>(b, VP)"),
}
"""What is around a row: convolutions that take any order, or inputs and outputs that take none."""


def model(row: OnnxRow, around: str = "between", batch: int | str = 2, seed: int = 1) -> ir.Model:
    """A row with random permutations in front, behind, or both."""
    channels, front, behind = AROUND[around]
    text = (
        f'<ir_version: 8, opset_import: ["" : {row.opset}]>'
        f" m (float[{batch},{channels},{HEIGHT},{WIDTH}] x) => (float[{batch},D,H,W] y)"
        f" {{ {front} {row.body} {behind} }}"
    )
    graph = onnx.parser.parse_model(text)
    constants = {
        "UW": (CHANNELS, 3, 1, 1),
        "UP": permutation(CHANNELS, seed),
        "VW": (5, row.out, 1, 1),
        "VP": permutation(row.out, seed + 1) - row.out,
        **row.constants,
    }
    for name, held in constants.items():
        array = whole(name, *held) if isinstance(held, tuple) else np.asarray(held)
        if name.isupper() and not re.search(rf"\b{name}\b", front + behind):
            continue
        graph.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(graph)


def outputs(
    made: ir.Model, feeds: dict[str, Array], *, reference: bool = False, check: bool = True
) -> list[Array]:
    """What ONNX Runtime makes of it as it stands, or the reference evaluator of onnx."""
    proto = ir.to_proto(made)
    if check:
        onnx.checker.check_model(proto, full_check=True)
    if reference:
        return ReferenceEvaluator(proto).run(None, feeds)  # type: ignore[return-value]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options)
    return session.run(None, feeds)  # type: ignore[no-any-return]


def folded(
    made: ir.Model, *, exact: bool = True, batch: int = 2, check: bool = True
) -> OnnxRewrite:
    """A model folded, and equal to what it was on whole numbers."""
    found = rewrite_graph(made, [FoldPermutations()])
    rng = np.random.default_rng(7)
    feeds = {
        value.name: rng.integers(
            -4, 5, [n if isinstance(n, int) else batch for n in value.shape]
        ).astype(np.float32)
        for value in made.graph.inputs
    }
    sides = zip(*(outputs(m, feeds, check=check) for m in (made, found.model)), strict=True)
    for before, after in sides:
        assert before.shape == after.shape
        assert np.isfinite(before).all()
        if exact:
            assert np.array_equal(before, after)
        else:
            assert np.abs(before - after).max() <= 1e-5 * max(1.0, float(np.abs(before).max()))
    return found
