"""A small ONNX graph for each row of the table of rules, in the spellings of several producers.

Channels are 12, as groups must divide them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.folding.onnx_graphs import CHANNELS, HEIGHT, WIDTH, OnnxRow, ints, permutation


def _simple(operator: str, **attributes: str) -> OnnxRow:
    given = ", ".join(f"{key}={value}" for key, value in attributes.items())
    return OnnxRow(f"b = {operator}{f'<{given}>' if given else ''}(a)", exact=False)


C = CHANNELS
NORM = {"s": (C,), "z": (C,), "m": (C,), "w": np.arange(1, 13, dtype=np.float32)}
HEADS = ints(0, 3, 4, HEIGHT * WIDTH)
BACK = ints(0, C, HEIGHT, WIDTH)


def rows() -> dict[str, OnnxRow]:
    """Name -> the row."""
    return {
        **_elementwise(),
        **_norms(),
        **_layers(),
        **_channels(),
        **_shapes(),
        **_quantized(),
        **_attention(),
        **_kept(),
    }


def _elementwise() -> dict[str, OnnxRow]:
    names = "Relu Sigmoid HardSwish Erf Identity Softplus Abs GlobalAveragePool GlobalMaxPool"
    return {
        **{name: _simple(name) for name in names.split()},
        "LeakyRelu": _simple("LeakyRelu", alpha="0.5"),
        "MaxPool": _simple("MaxPool", kernel_shape="[2,2]", strides="[2,2]"),
        "AveragePool": _simple("AveragePool", kernel_shape="[2,2]", strides="[2,2]"),
        "Clip": OnnxRow("b = Clip(a, lo, hi)", {"lo": np.float32(-2), "hi": np.float32(9)}),
        "Clip of opset 6": OnnxRow("b = Clip<max=9.0, min=-2.0>(a)", opset=9),
        "Pad": OnnxRow("b = Pad(a, p)", {"p": ints(0, 0, 1, 2, 0, 0, 0, 1)}),
        "Pad of named axes": OnnxRow(
            "b = Pad(a, p, , k)", {"p": ints(1, 2, 0, 1), "k": ints(2, -1)}, opset=18
        ),
        "Pad of opset 2": OnnxRow('b = Pad<pads=[0,0,1,2,0,0,0,1], mode="reflect">(a)', opset=9),
        "Resize": OnnxRow("b = Resize(a, , s)", {"s": np.array([1, 1, 2, 2], dtype=np.float32)}),
        "Upsample": OnnxRow(
            "b = Upsample(a, s)", {"s": np.array([1, 1, 2, 2], dtype=np.float32)}, opset=9
        ),
        "Cast": OnnxRow("c = Cast<to=11>(a) b = Cast<to=1>(c)"),
        "Dropout": OnnxRow("b = Dropout(a)"),
        "Add itself": OnnxRow("c = Neg(a) d = Relu(a) b = Add(c, d)"),
        "Mul [1,C,1,1]": OnnxRow("b = Mul(a, w)", {"w": (1, C, 1, 1)}),
        "Mul [C,1,1]": OnnxRow("b = Mul(w, a)", {"w": (C, 1, 1)}),
        "Mul scalar": OnnxRow("b = Mul(a, w)", {"w": np.float32(3)}),
        "Mul width": OnnxRow("b = Mul(a, w)", {"w": (WIDTH,)}),
        "Mul [N,1,H,W]": OnnxRow("c = ReduceSum<keepdims=1>(a, k) b = Mul(a, c)", {"k": ints(1)}),
        "ReduceMean over space": OnnxRow("b = ReduceMean<axes=[2,3]>(a)", opset=13, exact=False),
        "ReduceMax over C": OnnxRow(
            "c = ReduceMax<axes=[-3], keepdims=1>(a) b = Sub(a, c)", opset=13
        ),
        "Max of two": OnnxRow("c = Neg(a) b = Max(a, c)"),
        "Where": OnnxRow("c = Relu(a) d = Greater(c, a) b = Where(d, c, a)"),
        "Gate": OnnxRow(
            "c = GlobalAveragePool(a) d = Conv(c, v) e = Relu(d) f = Conv(e, w) g = Sigmoid(f)"
            " b = Mul(a, g)",
            {"v": (3, C, 1, 1), "w": (C, 3, 1, 1)},
            exact=False,
        ),
    }


def _norms() -> dict[str, OnnxRow]:
    g = {"s": (C,), "z": (C,)}
    return {
        "BatchNormalization": OnnxRow("b = BatchNormalization(a, s, z, m, w)", NORM, exact=False),
        "InstanceNormalization": OnnxRow("b = InstanceNormalization(a, s, z)", g, exact=False),
        "GroupNormalization": OnnxRow(
            "b = GroupNormalization<num_groups=3>(a, s, z)", g, carries="no", exact=False
        ),
        "GroupNormalization 18": OnnxRow(
            "b = GroupNormalization<num_groups=3>(a, s, z)",
            {"s": (3,), "z": (3,)},
            exact=False,
            opset=18,
            carries="no",
            old=True,
        ),
        "GroupNormalization 18 of single channels": OnnxRow(
            "b = GroupNormalization<num_groups=12>(a, s, z)", g, exact=False, opset=18, old=True
        ),
        "group norm by reshape": OnnxRow(
            "c = Reshape(a, h) d = InstanceNormalization(c, o, n) e = Reshape(d, k)"
            " f = Mul(e, w) b = Add(f, q)",
            {
                "h": ints(0, 3, -1),
                "k": BACK,
                "o": np.ones(3, np.float32),
                "n": np.zeros(3, np.float32),
                "w": (C, 1, 1),
                "q": (C, 1, 1),
            },
            exact=False,
            carries="no",
        ),
        "LayerNormalization": OnnxRow(
            "c = Transpose<perm=[0,2,3,1]>(a) d = LayerNormalization(c, s, z)"
            " b = Transpose<perm=[0,3,1,2]>(d)",
            g,
            exact=False,
        ),
        "layer norm by parts": OnnxRow(
            "c = ReduceMean<axes=[1]>(a) d = Sub(a, c) e = Mul(d, d) f = ReduceMean<axes=[1]>(e)"
            " g = Add(f, t) h = Sqrt(g) i = Div(d, h) b = Mul(i, w)",
            {"t": np.float32(1), "w": (C, 1, 1)},
            opset=13,
            exact=False,
        ),
        "PRelu": OnnxRow("b = PRelu(a, s)", {"s": (C, 1, 1)}),
        "PRelu one": OnnxRow("b = PRelu(a, s)", {"s": (1,)}),
        "Softmax": OnnxRow("b = Softmax<axis=1>(a)", exact=False),
        "Softmax of opset 11": OnnxRow("b = Softmax<axis=1>(a)", exact=False, opset=11),
        "LpNormalization": OnnxRow("b = LpNormalization<axis=1>(a)", exact=False),
        "MeanVarianceNormalization": OnnxRow(
            "b = MeanVarianceNormalization(a)", exact=False, opset=13, old=True
        ),
    }


def _layers() -> dict[str, OnnxRow]:
    back = "f = Reshape(e, k) b = Transpose<perm=[0,3,1,2]>(f)"
    return {
        "Conv": OnnxRow("b = Conv(a, w, z)", {"w": (C, C, 3, 3), "z": (C,)}),
        "Conv one-dimensional": OnnxRow(
            "c = Reshape(a, h) d = Conv(c, w) b = Reshape(d, k)",
            {"h": ints(0, C, -1), "w": (C, C, 1), "k": BACK},
        ),
        "depthwise": OnnxRow("b = Conv<group=12>(a, w)", {"w": (C, 1, 3, 3)}),
        "depthwise with multiplier": OnnxRow(
            "b = Conv<group=12>(a, w)", {"w": (2 * C, 1, 3, 3)}, out=2 * C, carries="down"
        ),
        "grouped": OnnxRow(
            "b = Conv<group=3>(a, w, z)", {"w": (C, 4, 1, 1), "z": (C,)}, carries="no"
        ),
        "ConvTranspose": OnnxRow("b = ConvTranspose(a, w, z)", {"w": (C, C, 2, 2), "z": (C,)}),
        "ConvTranspose depthwise": OnnxRow(
            "b = ConvTranspose<group=12>(a, w)", {"w": (C, 1, 2, 2)}
        ),
        "ConvTranspose grouped": OnnxRow(
            "b = ConvTranspose<group=3>(a, w)", {"w": (C, 8, 1, 1)}, out=2 * C, carries="no"
        ),
        "MatMul": OnnxRow(
            "c = Transpose<perm=[0,2,3,1]>(a) d = MatMul(c, w) e = Add(d, z)"
            " b = Transpose<perm=[0,3,1,2]>(e)",
            {"w": (C, C), "z": (C,)},
        ),
        "MatMul with a transpose of a constant": OnnxRow(
            "c = Transpose<perm=[0,2,3,1]>(a) t = Transpose(w) d = MatMul(c, t)"
            " b = Transpose<perm=[0,3,1,2]>(d)",
            {"w": (C, C)},
        ),
        "Gemm": OnnxRow(
            "c = Transpose<perm=[0,2,3,1]>(a) d = Reshape(c, h)"
            f" e = Gemm<transB=1>(d, w, z) {back}",
            {"h": ints(-1, C), "w": (C, C), "z": (C,), "k": ints(-1, HEIGHT, WIDTH, C)},
        ),
        "Gemm untransposed": OnnxRow(
            f"c = Transpose<perm=[0,2,3,1]>(a) d = Reshape(c, h) e = Gemm(d, w) {back}",
            {"h": ints(-1, C), "w": (C, C), "k": ints(-1, HEIGHT, WIDTH, C)},
        ),
        "Flatten and Gemm": OnnxRow(
            "c = Flatten(a) d = Gemm<transB=1>(c, w) b = Unsqueeze(d, q)",
            {"w": (C, C * HEIGHT * WIDTH), "q": ints(2, 3)},
        ),
        "Flatten channels last": OnnxRow(
            "t = Transpose<perm=[0,2,3,1]>(a) c = Reshape(t, h) d = Gemm<transB=1>(c, w)"
            " b = Unsqueeze<axes=[2,3]>(d)",
            {"h": ints(0, -1), "w": (C, C * HEIGHT * WIDTH)},
            opset=11,
        ),
    }


def _channels() -> dict[str, OnnxRow]:
    two = {"v": (5, C, 1, 1), "w": (7, C, 1, 1)}
    return {
        "Concat": OnnxRow(
            "c = Conv(a, v) d = Conv(a, w) b = Concat<axis=1>(c, d)", two, carries="down"
        ),
        "Concat axis=-3": OnnxRow(
            "c = Conv(a, v) d = Conv(a, w) b = Concat<axis=-3>(c, d)", two, carries="down"
        ),
        "Concat of width": OnnxRow("c = Neg(a) b = Concat<axis=3>(a, c)"),
        "Split": OnnxRow(
            "c, d = Split<axis=1>(a, k) b = Conv(d, w)",
            {"k": ints(5, 7), "w": (C, 7, 1, 1)},
            carries="up",
        ),
        "Split of opset 11": OnnxRow(
            "c, d = Split<axis=-3, split=[5,7]>(a) e = Conv(c, v) f = Conv(d, w) b = Add(e, f)",
            {"v": (C, 5, 1, 1), "w": (C, 7, 1, 1)},
            opset=11,
            carries="up",
        ),
        "Split and swap": OnnxRow(
            "c, d, e = Split<axis=1, split=[3,4,5]>(a) b = Concat<axis=1>(e, c, d)", opset=11
        ),
        "Slice": OnnxRow(
            "b = Slice(a, s, e, k)", {"s": ints(2), "e": ints(9), "k": ints(1)}, out=7, carries="up"
        ),
        "Slice backwards": OnnxRow(
            "b = Slice(a, s, e, k, t)",
            {"s": ints(-1), "e": ints(-(2**62)), "k": ints(-3), "t": ints(-1)},
        ),
        "Slice of opset 9": OnnxRow(
            "b = Slice<axes=[1], starts=[2], ends=[9999]>(a)", opset=9, out=10, carries="up"
        ),
        "Slice of height": OnnxRow("b = Slice<axes=[2], starts=[1], ends=[-1]>(a)", opset=9),
        "Gather negative": OnnxRow("b = Gather<axis=-3>(a, p)", {"p": permutation(C, 5) - C}),
        "Gather in int32": OnnxRow(
            "b = Gather<axis=1>(a, p)", {"p": permutation(C, 5).astype(np.int32)}
        ),
        "Gather with repeats": OnnxRow(
            "b = Gather<axis=1>(a, p)", {"p": ints(3, 3, 0, 11, 7)}, out=5, carries="never"
        ),
        "Gather of height": OnnxRow("b = Gather<axis=2>(a, p)", {"p": ints(3, 1, 1)}),
        "shuffle": OnnxRow(
            "c = Reshape(a, h) d = Transpose<perm=[0,2,1,3,4]>(c) b = Reshape(d, k)",
            {"h": ints(2, 3, 4, HEIGHT, WIDTH), "k": BACK},
        ),
        "shuffle of flat images": OnnxRow(
            "c = Reshape(a, h) d = Transpose<perm=[0,2,1,3]>(c) b = Reshape(d, k)",
            {"h": HEADS, "k": BACK},
        ),
        "shuffle that copies sizes": OnnxRow(
            "c = Reshape(a, h) d = Transpose<perm=[0,2,1,3,4]>(c) b = Reshape(d, k)",
            {"h": ints(0, 3, 4, HEIGHT, WIDTH), "k": ints(0, -1, HEIGHT, WIDTH)},
        ),
        "shuffle with the batch": OnnxRow(
            "c = Reshape(a, h) d = Transpose<perm=[1,0,2]>(c) e = Reshape(d, k)"
            " f = Gather<axis=0>(e, i) b = Conv(f, w)",
            {
                "h": ints(2 * 6, 2, -1),
                "k": ints(2, 2, 6, HEIGHT, WIDTH),
                "i": np.array(1),
                "w": (C, 6, 1, 1),
            },
            carries="up",
        ),
        "DepthToSpace CRD": OnnxRow(
            'b = DepthToSpace<blocksize=2, mode="CRD">(a)', out=3, carries="up"
        ),
        "DepthToSpace DCR": OnnxRow("b = DepthToSpace<blocksize=2>(a)", out=3, carries="up"),
        "SpaceToDepth": OnnxRow("b = SpaceToDepth<blocksize=2>(a)", out=4 * C, carries="down"),
        "SpaceToDepth and back": OnnxRow(
            "c = SpaceToDepth<blocksize=2>(a) d = Relu(c) b = DepthToSpace<blocksize=2>(d)"
        ),
    }


def _shapes() -> dict[str, OnnxRow]:
    return {
        "Transposes": OnnxRow(
            "c = Transpose<perm=[0,2,3,1]>(a) d = Transpose<perm=[3,0,1,2]>(c)"
            " e = Transpose<perm=[1,0,2,3]>(d) b = Relu(e)"
        ),
        "Squeeze": OnnxRow(
            "c = GlobalMaxPool(a) d = Squeeze<axes=[2,3]>(c) e = Relu(d)"
            " b = Unsqueeze<axes=[-2,-1]>(e)",
            opset=11,
        ),
        "Shape": OnnxRow("c = Shape(a) d = Relu(a) e = Reshape(d, c) b = Neg(e)"),
        "sizes that are computed": OnnxRow(
            "s = Shape(a) n = Gather<axis=0>(s, i) t = Unsqueeze<axes=[0]>(n)"
            " r = Concat<axis=0>(t, j) c = Reshape(a, r) d = Transpose<perm=[0,2,1,3,4]>(c)"
            " q = Concat<axis=0>(t, k) b = Reshape(d, q)",
            {"i": np.array(0), "j": ints(4, 3, HEIGHT, WIDTH), "k": ints(C, HEIGHT, WIDTH)},
            opset=11,
        ),
        "Expand": OnnxRow("c = GlobalMaxPool(a) b = Expand(c, s)", {"s": ints(2, C, 3, 2)}),
    }


def _quantized() -> dict[str, OnnxRow]:
    scale, zero = np.arange(1, 13, dtype=np.float32), np.arange(-6, 6, dtype=np.int8)
    w = np.random.default_rng(3).integers(-9, 10, (C, C, 1, 1)).astype(np.int8)
    one, none = np.float32(1), np.int8(0)
    return {
        "QDQ of a weight by row": OnnxRow(
            "q = DequantizeLinear<axis=0>(w, s, z) b = Conv(a, q)",
            {"w": w, "s": scale, "z": zero},
        ),
        "QDQ of weight and bias": OnnxRow(
            "q = DequantizeLinear<axis=0>(w, s) r = DequantizeLinear<axis=0>(v, t)"
            " b = Conv(a, q, r)",
            {"w": w, "s": scale, "v": np.arange(12, dtype=np.int32), "t": scale * 2},
        ),
        "QDQ of a transposed weight by column": OnnxRow(
            "q = DequantizeLinear<axis=1>(w, s, z) b = ConvTranspose(a, q)",
            {"w": w, "s": scale, "z": zero},
        ),
        "QDQ of a depthwise weight": OnnxRow(
            "q = DequantizeLinear<axis=0>(w, s) b = Conv<group=12>(a, q)",
            {"w": np.ascontiguousarray(w[:, :1]), "s": scale},
        ),
        "QDQ of a grouped weight": OnnxRow(
            "q = DequantizeLinear<axis=0>(w, s) b = Conv<group=3>(a, q)",
            {"w": np.ascontiguousarray(w[:, :4]), "s": scale},
            carries="no",
        ),
        "QDQ of a matrix by column": OnnxRow(
            "c = Transpose<perm=[0,2,3,1]>(a) q = DequantizeLinear<axis=1>(w, s) d = MatMul(c, q)"
            " b = Transpose<perm=[0,3,1,2]>(d)",
            {"w": np.ascontiguousarray(w[:, :, 0, 0]), "s": scale},
        ),
        "QDQ of values": OnnxRow(
            "q = QuantizeLinear(a, s, z) b = DequantizeLinear(q, s, z)", {"s": one, "z": none}
        ),
        "QDQ of values by channel": OnnxRow(
            "q = QuantizeLinear<axis=1>(a, s, z) b = DequantizeLinear<axis=1>(q, s, z)",
            {"s": scale, "z": zero},
        ),
        "QLinearConv": OnnxRow(
            "p = QuantizeLinear(a, e, n) q = QLinearConv(p, e, n, w, s, z, e, n)"
            " b = DequantizeLinear(q, e, n)",
            {"w": w, "s": scale, "z": np.zeros(12, np.int8), "e": one, "n": none},
        ),
        "ConvInteger": OnnxRow(
            "p, g, h = DynamicQuantizeLinear(a) q = ConvInteger(p, w, h) b = Cast<to=1>(q)",
            {"w": w},
        ),
        "MatMulInteger": OnnxRow(
            "c = Transpose<perm=[0,2,3,1]>(a) p = Cast<to=3>(c) q = MatMulInteger(p, w)"
            " d = Cast<to=1>(q) b = Transpose<perm=[0,3,1,2]>(d)",
            {"w": np.ascontiguousarray(w[:, :, 0, 0])},
        ),
    }


def _attention() -> dict[str, OnnxRow]:
    heads = "Reshape(%s, h) %s = Transpose<perm=[0,2,1,3]>(%s)"
    pq, pk, pv = ({f"p{k}": permutation(C, n)} for n, k in enumerate("qkv", 6))
    made = "".join(
        f" {k}0 = MatMul(t, w{k}) {k}1 = Gather<axis=2>({k}0, p{k})"
        f" {k}2 = {heads % (k + '1', k, k + '2')}"
        for k in "qkv"
    )
    end = (
        " kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) n = Softmax<axis=-1>(s)"
        " o = MatMul(n, v) o1 = Transpose<perm=[0,2,1,3]>(o) o2 = Reshape(o1, f)"
        " o3 = Gather<axis=2>(o2, po) o4 = MatMul(o3, wo)"
        " d = Transpose<perm=[0,2,1]>(o4) b = Reshape(d, g)"
    )
    start = "c = Reshape(a, e) t = Transpose<perm=[0,2,1]>(c)"
    sizes = {
        "e": ints(0, C, -1),
        "h": ints(0, -1, 3, 4),
        "f": ints(0, -1, C),
        "g": BACK,
        "po": permutation(C, 9),
        "wo": (C, C),
    }
    each = {**sizes, **pq, **pk, **pv, "wq": (C, C), "wk": (C, C), "wv": (C, C)}
    return {
        "attention": OnnxRow(start + made + end, each, exact=False),
        "attention of the tokens themselves": OnnxRow(
            f"{start} q0 = Relu(t) k0 = Neg(t) v0 = Sigmoid(t)"
            f" q1 = {heads % ('q0', 'q', 'q1')} k1 = {heads % ('k0', 'k', 'k1')}"
            f" v1 = {heads % ('v0', 'v', 'v1')}{end}",
            sizes,
            exact=False,
            carries="up",
        ),
        "attention of one product": OnnxRow(
            f"{start} x1 = MatMul(t, w) x2 = Gather<axis=-1>(x1, p) x3 = Reshape(x2, j)"
            " x4 = Transpose<perm=[2,0,3,1,4]>(x3) q = Gather<axis=0>(x4, i0)"
            f" k = Gather<axis=0>(x4, i1) v = Gather<axis=0>(x4, i2){end}",
            {
                **sizes,
                "w": (C, 3 * C),
                "p": permutation(3 * C, 8),
                "j": ints(0, -1, 3, 3, 4),
                "i0": np.array(0),
                "i1": np.array(1),
                "i2": np.array(2),
            },
            exact=False,
        ),
    }


def _kept() -> dict[str, OnnxRow]:
    kept: dict[str, OnnxRow] = {
        "LRN": OnnxRow("b = LRN<size=3>(a)", exact=False),
        "CumSum": OnnxRow("b = CumSum(a, k)", {"k": np.array(1)}),
        "CumSum of height": OnnxRow("b = CumSum(a, k)", {"k": np.array(-2)}),
        "TopK": OnnxRow("b, c = TopK<axis=1>(a, k)", {"k": ints(C)}),
        "ArgMax": OnnxRow("c = ArgMax<axis=1>(a) d = Cast<to=1>(c) b = Mul(a, d)"),
        "Hardmax": OnnxRow("b = Hardmax<axis=1>(a)"),
        "Pad of channels by name": OnnxRow(
            "b = Pad(a, p, , k)", {"p": ints(1, -1), "k": ints(-3)}, opset=18
        ),
        "Pad of channels": OnnxRow("b = Pad(a, p)", {"p": ints(0, 1, 0, 0, 0, -1, 0, 0)}),
        "heads": OnnxRow(
            "c = Reshape(a, h) d = Softmax<axis=1>(c) b = Reshape(d, k)",
            {"h": HEADS, "k": BACK},
            exact=False,
        ),
        "within heads": OnnxRow(
            "c = Reshape(a, h) d = Softmax<axis=2>(c) b = Reshape(d, k)",
            {"h": HEADS, "k": BACK},
            exact=False,
        ),
    }
    return {
        name: replace(r, carries="both" if "height" in name else "no") for name, r in kept.items()
    }
