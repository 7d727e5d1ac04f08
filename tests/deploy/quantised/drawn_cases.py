"""Random quantised convolutions of every kind that is split and merged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.deploy.quantised.quantised_files import QuantisedCase


def drawn_case(seed: int) -> QuantisedCase:
    """The case of a number."""
    generator = np.random.default_rng([seed, 20261128])

    def pick(*options: object) -> object:
        return options[generator.integers(len(options))]

    def chance(share: float) -> bool:
        return bool(generator.random() < share)

    layout = str(
        pick("qdq", "qdq", "qdq", "qdq", "QLinearConv", "QLinearConv", "ConvInteger", "weight only")
    )
    dims = int(generator.choice([1, 2, 2, 2, 3]))
    kernel = tuple(int(n) for n in generator.integers(1, 4, dims))
    transposed = layout in ("qdq", "weight only") and chance(0.3)
    fields = [("strides", _each(generator, dims, 2)), ("dilations", _each(generator, dims, 2))]
    if chance(0.6):
        pads = tuple(int(n) for side in range(2) for n in generator.integers(0, kernel))
        fields.append(("pads", pads if not transposed else (0,) * 2 * dims))
    case = QuantisedCase(
        layout=layout,
        groups=int(generator.integers(2, 7)),
        inputs=int(generator.integers(1, 5)),
        outputs=int(generator.integers(1, 5)),
        kernel=kernel,
        transposed=transposed,
        per_channel=chance(0.7),
        symmetric=chance(0.6),
        data=str(pick("uint8", "uint8", "int8")),
        weight=str(pick("int8", "int8", "uint8")),
        bias=[None, "int32", "int32", "float"][generator.integers(4)],
        activation=[None, None, "Relu", "Clip"][generator.integers(4)],
        axis=int(generator.integers(2)) if transposed and chance(0.3) else None,
        opset=int(generator.integers(13, 22)),
        size=int(generator.integers(7, 11)) if dims < 3 else 7,
        seed=seed,
        constants=chance(0.2),
        fields=tuple(fields),
    )
    return _possible(case, small=chance(0.5))


def _each(generator: np.random.Generator, dims: int, most: int) -> tuple[int, ...]:
    return tuple(int(n) for n in generator.integers(1, most + 1, dims))


def _possible(case: QuantisedCase, *, small: bool) -> QuantisedCase:
    """The case without what its layout cannot say."""
    if case.layout == "ConvInteger":
        # ONNX Runtime's kernel takes one zero point of the weight.
        return replace(case, bias=None, activation=None, per_channel=False, data="uint8")
    if case.layout == "QLinearConv":
        bias = None if case.bias is None else "int32"
        return replace(case, bias=bias, activation=None, weight=_fitting(case))
    if case.layout == "weight only" or (case.transposed and case.axis == 0):
        case = replace(case, bias=case.bias and "float")
    if small and case.opset >= 21:
        return replace(case, weight={"int8": "int4", "uint8": "uint4"}[case.weight])
    return case


def _fitting(case: QuantisedCase) -> str:
    """Whole numbers of a weight that ONNX Runtime multiplies with those of the input."""
    return "int8" if case.data == "int8" else case.weight
