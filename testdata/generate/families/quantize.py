"""Quantization: codes, packing and decoded values to the bit; products against decode-then-multiply."""

import numpy as np

import mlx.core as mx
from arrays import HALVES, Arr, arr, from_mx, lcg
from case import COMPOSED, call

BITS = (1, 2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
DTYPES = ("float32", *HALVES)
MODES = ("mxfp4", "mxfp8", "nvfp4")


def decode(w, scales, biases=None, **kw):
    """The decoded weights in float64, from the wheel (f32 arithmetic, bit-exact)."""
    out = mx.dequantize(w.mx(), scales.mx(), biases.mx() if biases else None, dtype=mx.float32, **kw)
    return np.array(out).astype(np.float64)


def packed(w, **kw):
    return [from_mx(a) for a in mx.quantize(w.mx(), **kw)]


def weights(dtype, shape, seed=1):
    return lcg(dtype, shape, seed, -1.0, 1.0)


def build(f):
    affine(f)
    block_modes(f)
    codes(f)
    products(f)
    gathered(f)
    qq_errors(f)
    errors(f)


def affine(f):
    for bits in BITS:
        for group in GROUPS:
            for dtype in DTYPES if group == 64 else ("float32",):
                w = weights(dtype, [2, group], bits)
                f.wheel("quantize", w, group_size=group, bits=bits)
                q, s, b = packed(w, group_size=group, bits=bits)
                if group == 64:
                    f.wheel("dequantize", q, s, b, every=3, group_size=group, bits=bits)
    for kind in (np.full((1, 64), 0.37), np.zeros((1, 64)), np.abs(lcg("float32", [1, 64], 5, 0.1, 2.0).values), -np.abs(lcg("float32", [1, 64], 6, 0.1, 2.0).values),
                 np.arange(64).reshape(1, 64) % 49 * 0.25 - 6, np.eye(1, 64) * 3.0):
        for bits in (1, 4, 8):
            f.wheel("quantize", arr("float32", kind), group_size=64, bits=bits)
    f.wheel("quantize", weights("float32", [2, 2, 64], 9))
    w = arr("float32", weights("float32", [2, 64], 10).values, "transposed")
    f.wheel("quantize", w, bits=3)
    q, s, b = packed(w, bits=4)
    f.wheel("dequantize", q, s, b, bits=4, dtype="bfloat16", every=5)
    q, s, b = packed(weights("bfloat16", [2, 64], 11))
    f.wheel("dequantize", q, s, b, dtype="float32", every=5)


def block_modes(f):
    for mode in MODES:
        for dtype in DTYPES:
            w = weights(dtype, [2, 64], 3)
            f.wheel("quantize", w, mode=mode)
            q, s = packed(w, mode=mode)
            for out in (None, *DTYPES) if dtype == "float32" else (None,):
                f.wheel("dequantize", q, s, None, every=5, mode=mode, **({"dtype": out} if out else {}))
        scaled = arr("float32", weights("float32", [4, 32], 4).wide * np.array([[1e-6], [3.0], [448.0], [0.0]]))
        f.wheel("quantize", scaled, mode=mode)
    w, top = weights("float32", [2, 32], 7), arr("float32", 1.0)
    f.wheel("quantize", w, top, mode="nvfp4")
    q, s = [from_mx(a) for a in mx.quantize(w.mx(), mode="nvfp4", global_scale=top.mx())]
    f.wheel("dequantize", q, s, None, top, mode="nvfp4", dtype="float32")
    # A given dtype is always the result dtype, also for nvfp4 with a global scale.
    for dtype in HALVES:
        exact = np.array(mx.dequantize(q.mx(), s.mx(), mode="nvfp4", global_scale=top.mx(), dtype=mx.float32)).astype(np.float64)
        f.spec("dequantize", [q, s, None, top], [arr(dtype, exact)], mode="nvfp4", dtype=dtype, tol={"ulp": 1})
    # The exponent of the scale is clamped at -127 (byte 0): 1e-38 / 2^-127 is nearest to the code of 1.5.
    tiny = np.zeros((1, 32))
    tiny[0, 0], tiny[0, 9] = 1e-38, -1e-38
    f.spec("quantize", [arr("float32", tiny)], [arr("uint32", [[3, (8 + 3) << 4, 0, 0]]), arr("uint8", [[0]])], mode="mxfp4")


def codes(f):
    f.wheel("from_fp8", arr("uint8", np.arange(256)), dtype="float32")
    f.wheel("from_fp8", arr("uint8", np.arange(0, 256, 5)))
    f.wheel("from_fp8", arr("uint8", np.arange(0, 256, 7), "reversed"), dtype="float16")
    points = [0.0, -0.0, 1.0, -1.0, 0.5, 447.9, 448.0, 449.0, 464.0, 1e9, -1e9, np.inf, -np.inf, np.nan, 2.0**-9, 2.0**-10, 1.5 * 2.0**-9, 1.0625, 1.1875, 0.3, -27.3, 100.0]
    for dtype in DTYPES:
        f.wheel("to_fp8", arr(dtype, points))
    f.wheel("to_fp8", lcg("float32", [60], 1, -500.0, 500.0))


def error_bound(x, w):
    """|x|.|w| products: room for half-precision rounding and for activations quantized to 8 bits per group."""
    return 0.01 * float(np.max(np.linalg.norm(x, axis=-1))) * float(np.max(np.linalg.norm(w, axis=-1)))


def product_tol(dtype, x, w):
    bound = error_bound(x, w)
    return {"rtol": 1e-5, "atol": round(bound * 1e-4, 9)} if dtype == "float32" else {"rtol": 1e-2, "atol": round(bound, 6)}


def products(f):
    settings = [dict(bits=b, group_size=g) for b in BITS for g in GROUPS] + [dict(mode=m) for m in MODES]
    for k, kw in enumerate(settings):
        for dtype in DTYPES if k % 5 == 0 or "mode" in kw else ("float32",):
            w = weights(dtype, [8, 128], k)
            q = packed(w, **kw)
            b = q[2] if len(q) == 3 else None
            full = decode(q[0], q[1], b, **kw)
            for m in (1, 3):
                x = lcg(dtype, [m, 128], 50 + m, -1.0, 1.0)
                f.model("quantized_matmul", [x, q[0], q[1], b], lambda x, *_: x @ full.T, tol=product_tol(dtype, x.wide, full), loose=200, **kw)
    # x @ W, leading axes, strided x, larger sizes.
    w = weights("float32", [64, 64], 77)
    q = packed(w, bits=4, group_size=32)
    full = decode(*q, bits=4, group_size=32)
    x = lcg("float32", [2, 64], 78, -1.0, 1.0)
    f.model("quantized_matmul", [x, *q], lambda x, *_: x @ full, tol=product_tol("float32", x.wide, full.T), transpose=False, bits=4, group_size=32, every=3)
    x = arr("float32", lcg("float32", [2, 3, 64], 79, -1.0, 1.0).values, "transposed")
    f.model("quantized_matmul", [x, *q], lambda x, *_: x @ full.T, tol=product_tol("float32", x.wide, full), transpose=True, bits=4, group_size=32, every=7)
    x = arr("float32", lcg("float32", [64], 80, -1.0, 1.0).values, "offset")
    f.model("quantized_matmul", [x, *q], lambda x, *_: x @ full.T, tol=product_tol("float32", x.wide[None], full), bits=4, group_size=32, every=3)
    batch = packed(weights("float32", [2, 8, 64], 81))
    full3 = decode(*batch)
    x = lcg("float32", [2, 3, 64], 82, -1.0, 1.0)
    f.model("quantized_matmul", [x, *batch], lambda x, *_: x @ np.swapaxes(full3, -1, -2), tol=product_tol("float32", x.wide, full3))
    # lapis: any number of rows, w packed or not. The wheel's CPU takes one row and packed weights.
    for mode, rows in (("nvfp4", 1), ("mxfp8", 1), ("nvfp4", 3), ("mxfp8", 3)):
        (x, w), model = qq(mode, rows)
        tol = {"rtol": 1e-4, "atol": 1e-4}
        f.model("qqmm", [x, w], model, tol=tol, mode=mode, dtypes=["float32"])
        q, s = packed(w, mode=mode)
        f.model("qqmm", [x, q, s], lambda x, *_: model(x, w.wide), tol=tol, mode=mode, **({} if rows == 1 else {"dtypes": ["float32"]}))


def qq_errors(f):
    x, w = lcg("float32", [1, 64], 90, -1.0, 1.0), weights("float32", [32, 64], 91)
    f.error("Value", "qqmm", x, w, mode="affine")
    f.error("Value", "qqmm", x, w, mode="mxfp4")
    f.error("Shape", "qqmm", x, weights("float32", [32, 32], 91), wheel=False)
    f.error("Dtype", "qqmm", lcg("int32", [1, 64], 1, 0, 9), w)


def qq(mode, rows):
    """Both operands are quantized; the product of what they decode to."""
    x, w = lcg("float32", [rows, 64], 90, -1.0, 1.0), weights("float32", [32, 64], 91)
    both = lambda x, w: decode(*packed(Arr("float32", x), mode=mode), mode=mode) @ decode(*packed(Arr("float32", w), mode=mode), mode=mode).T
    return [x, w], both


def gathered(f):
    li, ri = arr("uint32", [0, 3, 1]), arr("uint32", [2, 2, 0])
    for kw in [dict(bits=b, group_size=64) for b in BITS] + [dict(mode=m) for m in MODES]:
        q = packed(weights("float32", [3, 8, 64], 20), **kw)
        b = q[2] if len(q) == 3 else None
        full = decode(q[0], q[1], b, **kw)
        x = lcg("float32", [4, 1, 64], 21, -1.0, 1.0)
        tol = product_tol("float32", x.wide, full)
        f.model("gather_qmm", [x, q[0], q[1], b, li, ri], lambda x, w, s, b, i, j: x[i] @ np.swapaxes(full[j], -1, -2), tol=tol, **kw)
        f.model("gather_qmm", [x, q[0], q[1], b, None, arr("uint32", [0, 1, 1, 2])], lambda x, w, s, b, i, j: x @ np.swapaxes(full[j], -1, -2),
                tol=tol, sorted_indices=True, **kw)
        if kw.get("bits") == 4:
            y = lcg("float32", [4, 1, 8], 23, -1.0, 1.0)
            f.model("gather_qmm", [y, q[0], q[1], b, li, ri], lambda x, w, s, b, i, j: x[i] @ full[j], tol=product_tol("float32", y.wide, full), transpose=False,
                    every=5, **kw)
        if kw.get("bits") == 4 or kw.get("mode") == "mxfp4":
            f.error("Index", "gather_qmm", x, q[0], q[1], b, arr("uint32", [0]), arr("uint32", [3]), wheel=False, **kw)
    # Both sides quantized; the wheel's CPU does not have it.
    for mode, rows in (("nvfp4", 1), ("mxfp8", 3)):
        x, w = lcg("float32", [4, rows, 64], 24, -1.0, 1.0), weights("float32", [3, 32, 64], 25)
        dx, dw = [decode(*packed(v, mode=mode), mode=mode) for v in (x, w)]
        q, s = packed(w, mode=mode)
        for weight, scales in ((w, None), (q, s)):
            f.model("gather_qqmm", [x, weight, scales, li, ri], lambda *_: dx[[0, 3, 1]] @ np.swapaxes(dw[[2, 2, 0]], -1, -2),
                    tol={"rtol": 1e-4, "atol": 1e-4}, mode=mode, dtypes=["float32"], every=3)


def errors(f):
    w = weights("float32", [2, 64])
    for bad in (dict(bits=7), dict(bits=0), dict(bits=16), dict(group_size=16), dict(group_size=0), dict(mode="int4"), dict(mode="mxfp4", bits=8), dict(mode="nvfp4", group_size=32)):
        # The wheel divides by a group size of 0.
        f.error("Value", "quantize", w, wheel=bad.get("group_size") != 0, **bad)
    f.error("Shape", "quantize", weights("float32", [64]))
    f.error("Shape", "quantize", weights("float32", [2, 48]))
    f.error("Dtype", "quantize", lcg("int32", [2, 64], 1, 0, 9))
    f.error("Value", "quantize", w, arr("float32", 1.0), mode="mxfp4")
    q, s, b = packed(w)
    f.error("Value", "dequantize", q, s, None)
    f.error("Shape", "dequantize", q, arr("float32", np.zeros((2, 3))), arr("float32", np.zeros((2, 3))))
    f.error("Dtype", "dequantize", arr("int32", np.zeros((2, 8))), s, b)
    x = weights("float32", [1, 64])
    f.error("Shape", "quantized_matmul", weights("float32", [1, 32]), q, s, b)
    f.error("Value", "quantized_matmul", x, q, s, None)
    f.error("Value", "quantized_matmul", x, q, s, b, bits=7)
    f.error("Shape", "quantized_matmul", x, q, s, b, bits=8)
