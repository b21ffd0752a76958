"""Elementwise ops of one input, and casts."""

import math

import numpy as np

import exact
from arrays import DTYPES, FLOATS, HALVES, INTS, Arr, arr, rounded
from case import ELEMENTARY

INF, NAN = math.inf, math.nan

ANY = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -3.7, 0.001, 12.25, -40.5, 88.0, -88.0, 1e-7, 3e4, -3e4, INF, -INF, NAN]
POSITIVE = [0.0, -0.0, 1.0, 0.5, 2.0, 3.7, 0.001, 12.25, 1e-7, 6e4, 0.9999, 1.0001, 10.0, 8.0, INF, -1.0, NAN]
UNIT = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 0.001, -0.999, 0.9, 0.25, -0.75, 1e-6, 1.5, -2.0, INF, NAN]
ANGLES = [0.0, -0.0, 0.5, -1.0, 1.5, 3.0, 3.140625, -3.1, 6.25, 22.0, 100.5, -1000.0, 31415.0, 1e-4, INF, NAN]

# Correctly rounded in f64 by mpmath; within the elementary tolerance of the dtype.
ELEMENTARY_OPS = {
    "exp": ANY, "expm1": ANY, "sigmoid": ANY, "tanh": ANY, "sinh": ANY, "cosh": ANY, "erf": ANY, "arctan": ANY,
    "arcsinh": ANY, "degrees": ANY, "radians": ANY,
    "log": POSITIVE, "log2": POSITIVE, "log10": POSITIVE, "rsqrt": POSITIVE,
    "log1p": [0.0, -0.0, 1.0, -0.5, 1e-6, -1e-6, 0.001, 10.0, 5e4, -0.999, -1.0, -2.0, INF, NAN],
    "sin": ANGLES, "cos": ANGLES, "tan": ANGLES,
    "arcsin": UNIT, "arccos": UNIT, "arctanh": UNIT, "erfinv": UNIT,
    "arccosh": [1.0, 1.00048828125, 1.0000001192092896, 1.0078125, 1.5, 2.0, 10.0, 3e4, 0.5, -1.0, INF, NAN],
}
# One IEEE operation: bit-exact.
ROUNDED_OPS = {"sqrt": POSITIVE, "reciprocal": ANY, "square": ANY}
COMPLEX_OPS = ["exp", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan",
               "arcsinh", "arccosh", "arctanh", "sqrt", "rsqrt", "reciprocal", "square", "abs", "sign"]
COMPLEX = [1 + 2j, -0.5 + 0.25j, 0.75 - 0.5j, -1.5 - 0.5j, 2 + 0.001j, 0.1 + 3j]

# No rounding at all: any dtype, straight from the wheel.
PLAIN_OPS = {
    "abs": [*INTS, *FLOATS, "bool"], "sign": [*INTS, *FLOATS, "bool"], "negative": [*INTS, *FLOATS, "complex64"],
    "floor": [*INTS, *FLOATS], "ceil": [*INTS, *FLOATS], "trunc": ["int32", *FLOATS], "round": ["int32", *FLOATS, "complex64"],
    "positive": ["uint8", "float32", "complex64"], "conjugate": ["int16", "float32", "complex64"],
    "real": ["float16", "complex64"], "imag": ["complex64"], "stop_gradient": ["float32"],
    "isnan": ["int32", *FLOATS, "complex64"], "isinf": ["uint8", *FLOATS, "complex64"],
    "isfinite": ["bool", *FLOATS, "complex64"], "isposinf": ["int32", *FLOATS], "isneginf": ["int32", *FLOATS],
    "logical_not": DTYPES, "bitwise_invert": [*INTS, "bool"],
}
PLAIN_FLOATS = [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, 3.7, -3.2, 1e-30, 4.5e3, -123.456, INF, -INF, NAN]


def integers(dtype):
    info = np.iinfo(dtype)
    return [0, 1, 2, 7, 100, info.max, info.max - 1, info.min] + ([-1, -7, -100] if info.min < 0 else [])


def values(dtype):
    if dtype == "bool":
        return [True, False, True]
    if dtype in INTS:
        return integers(dtype)
    if dtype == "complex64":
        return [0, 1 + 2j, -1.5 - 2.5j, complex(INF, 0), complex(0, NAN), complex(0.5, -INF), -3j]
    return PLAIN_FLOATS


def build(f):
    for op, dtypes in PLAIN_OPS.items():
        for dtype in dtypes:
            v = values(dtype)
            if dtype == "complex64" and op == "round":
                v = COMPLEX
            if op == "sign":
                v = [x for x in v if x == x]
            f.wheel(op, arr(dtype, v))
    elementary(f)
    complex_ops(f)
    layouts(f)
    round_and_nan(f)
    casts(f)
    views(f)
    for op in ("negative", "bitwise_invert", "floor", "expm1", "erf"):
        bad = {"negative": "bool", "bitwise_invert": "float32"}.get(op, "complex64")
        f.error("Dtype", op, arr(bad, [1]))


def elementary(f):
    for op, points in {**ELEMENTARY_OPS, **ROUNDED_OPS}.items():
        tol = None if op in ROUNDED_OPS else ELEMENTARY
        for dtype in ("float32", "float64", *HALVES):
            # MLX's f64 and half-precision functions are no yardstick, nor is sin of large arguments.
            x = arr(dtype, points)
            f.model(op, [x], lambda v, op=op: exact.apply(exact.UNARY, op, v), tol=tol, differs=True)
        f.model(op, [arr("int32", [0, 1, 2, -1, 5])], lambda v, op=op: exact.apply(exact.UNARY, op, v.astype(float)), tol=tol,
                differs=op == "square", dtypes=["int32"] if op == "square" else ["float32"])
        if op != "square":
            for dtype in ("bool", "uint8", "int64"):
                f.model(op, [arr(dtype, [0, 1])], lambda v, op=op: exact.apply(exact.UNARY, op, v.astype(float)), tol=tol)
    for dtype in INTS:
        f.wheel("square", arr(dtype, integers(dtype)))
    hard(f)
    # A finer grid in f32 for the functions that carry models.
    grid = np.linspace(-10, 10, 41).astype(np.float32) * np.float32(1.37)
    for op in ("exp", "tanh", "sigmoid", "erf", "sin", "cos", "expm1"):
        f.model(op, [arr("float32", grid)], lambda v, op=op: exact.apply(exact.UNARY, op, v), tol=ELEMENTARY, differs=op in ("erf",))


# Where formulas go wrong: near zeros, near overflow, large arguments, results that are subnormal.
HARD = {
    "exp": [88.72, -87.5, -103.0, 1e-20, 709.7, -745.0], "expm1": [1e-6, -1e-6, 1e-20, -40.0, 88.7, 0.4], "log": [0.9999999, 1.0000001, 1e-40, 3e38, 1.5],
    "log2": [0.9999999, 1.0000001, 1e-40, 1024.0], "log10": [0.9999999, 1.0000001, 1e-40, 1000.0], "log1p": [1e-10, -1e-10, -0.9999999, 1e30, 0.5],
    "sin": [1e6, 1e10, 3.1415927, 6.2831855, 1e-20, 355.0, 2.6e22], "cos": [1e6, 1e10, 1.5707964, 4.712389, 1e-20, 11.0],
    "tan": [1.5707964, 1e6, 1e-20, 3.1415927], "sinh": [1e-3, 1e-20, 88.9, -89.0], "cosh": [1e-3, 89.0, -88.9], "tanh": [1e-4, 1e-20, 0.55, 9.1, -0.3],
    "erf": [1e-5, 1e-20, 0.84, 1.25, 3.9, -2.9], "sigmoid": [-80.0, -100.0, 17.0, 1e-9], "arctan": [1e-20, 1e20, 0.4375, 2.4375],
    "arcsin": [0.9999999, -0.5000001, 1e-20], "arccos": [0.9999999, -0.9999999, 0.5000001, 1e-20], "arcsinh": [1e-10, 1e20, -1e-3, 2.0],
    "arccosh": [1e20, 1.5], "arctanh": [1e-10, 0.9999999, -0.5], "erfinv": [1e-20, 0.9999999, -0.97, 0.5], "rsqrt": [1e-40, 3e38], "degrees": [1e37], "radians": [1e-38],
}


def hard(f):
    for op, points in HARD.items():
        for dtype in ("float32", "float64"):
            f.model(op, [arr(dtype, points)], lambda v, op=op: exact.apply(exact.UNARY, op, v), tol=ELEMENTARY, differs=True)


def complex_ops(f):
    for op in COMPLEX_OPS:
        f.model(op, [arr("complex64", COMPLEX)], lambda v, op=op: exact.apply(exact.UNARY, op, v), tol=ELEMENTARY)
    f.wheel("sign", arr("complex64", [0, 3, -2j]))


def layouts(f):
    """The same op over each layout, rank 0 and empty."""
    grid = np.arange(1, 13, dtype=np.float64).reshape(3, 4) / 4
    for i, layout in enumerate(["transposed", "strided", "reversed", "offset"]):
        for op in ("negative", "abs", "floor"):
            for dtype in ("float32", "bfloat16", "int16", "uint8"):
                if (op, dtype) != ("negative", "uint8"):
                    f.wheel(op, arr(dtype, grid * 3 - 4 * (dtype != "uint8"), layout))
        for op in ("exp", "sqrt", "tanh", "log"):
            dtype = ("float32", "float16", "float64", "bfloat16")[(i + len(op)) % 4]
            f.model(op, [arr(dtype, grid, layout)], lambda v, op=op: exact.apply(exact.UNARY, op, v), tol=ELEMENTARY, loose=5)
    same = np.repeat(grid[:1], 3, axis=0)
    f.wheel("negative", arr("float32", same, "broadcast"))
    f.model("exp", [arr("float32", same, "broadcast")], lambda v: exact.apply(exact.UNARY, "exp", v), tol=ELEMENTARY)
    three = np.arange(24.0).reshape(2, 3, 4)
    for layout in ("transposed", "strided", "reversed"):
        f.wheel("negative", arr("float32", three, layout))
    for op in ("abs", "exp", "sqrt", "logical_not", "floor"):
        for dtype in ("float32", "bfloat16"):
            f.wheel(op, arr(dtype, 1.0))if op != "exp" else f.model(
                op, [arr(dtype, 1.0)], lambda v: exact.apply(exact.UNARY, "exp", v), tol=ELEMENTARY)
            f.wheel(op, arr(dtype, np.zeros((0,))))
            f.wheel(op, arr(dtype, np.zeros((2, 0, 3))))


def round_and_nan(f):
    for dtype in ("float32", "float64"):
        x = arr(dtype, [1.25, -1.35, 123.456, -0.05, 2.5, 1e4])
        for decimals in (1, 2, -1):
            # The wheel scales float64 by a float32 power of ten.
            f.model("round", [x], lambda v: np.rint(rounded(dtype, v * 10.0**decimals)) / 10.0**decimals, decimals=decimals, tol={"ulp": 2})
    f.wheel("round", arr("int32", [15, 25, -15, 149, 151, -151]), decimals=-1)
    f.wheel("round", arr("int32", [15, 25, -15]), decimals=2)
    for dtype in FLOATS:
        x = arr(dtype, [0.0, 1.5, NAN, INF, -INF])
        f.wheel("nan_to_num", x) if dtype != "float64" else f.spec(
            "nan_to_num", [x], [arr(dtype, [0.0, 1.5, 0.0, np.finfo(np.float64).max, np.finfo(np.float64).min])])
        f.wheel("nan_to_num", x, nan=2.0, posinf=10.0, neginf=-10.0)
    f.wheel("nan_to_num", arr("int32", [1, -2]))
    big = float(np.finfo(np.float32).max)
    f.spec("nan_to_num", [arr("complex64", [complex(NAN, 1), complex(INF, -INF), 2 - 3j])],
           [arr("complex64", [complex(0, 1), complex(big, -big), 2 - 3j])])


def casts(f):
    for source in DTYPES:
        for target in DTYPES:
            if source in FLOATS and target in INTS:
                lo, hi = (0, 100) if target.startswith("u") else (-100, 100)
                v = [x for x in [0.0, -0.0, 0.5, 0.999, 1.0, 2.5, 99.75, -0.9, -2.5, -99.75] if lo - 1 < x <= hi]
            elif source == "complex64" and target in INTS:
                v = [0, 1.5 + 2j, 99j]
            elif source in FLOATS:
                v = [0.0, -0.0, 0.1, 1 / 3, -2.7, 65504.0, 65519.0, 65520.0, 1e-8, 3.1e38, 1.0078125, 1.00390625, 1.01171875, INF, -INF, NAN]
            elif source == "complex64":
                v = [0, 0.1 + 2j, 2j, complex(-3.3, 0), 1e5]
            elif source == "bool":
                v = [True, False]
            else:
                v = [*integers(source), *([] if "8" in source else [257, 2049])]
                if source in ("int32", "uint32", "int64", "uint64") and target in HALVES:
                    v += [65519, 65520, 33554433]
            x = arr(source, v)
            # int -> float in one rounding, whatever MLX does on the way; NaN to integers is in out_of_range.
            if (source in INTS or source == "float64") and target in HALVES:
                f.spec("astype", [x], [Arr(target, exactly(x))], dtype=target)
            else:
                f.wheel("astype", x, dtype=target)
    out_of_range(f)


def exactly(x):
    return x.wide.astype(np.float64)


def out_of_range(f):
    """Outside the target's range: the truncated value modulo 2^bits; NaN, infinities and 2^63 and more give 0."""
    points = [300.0, -1.0, -129.0, 65537.5, -32769.0, 4294967295.0, 4294967296.0, 1e12, -1e12, 9.3e18, -9.3e18, 1e30, INF, -INF, NAN]
    for source in ("float32", "float64", "float16", "bfloat16"):
        x = arr(source, points)
        for target in INTS:
            bits = 8 * np.dtype(target).itemsize
            out = []
            for v in x.wide:
                inside = math.isfinite(v) and int(v) in range(np.iinfo(target).min, np.iinfo(target).max + 1)
                v = int(v) if inside or (math.isfinite(v) and abs(v) < 2.0**63) else 0
                v %= 2**bits
                out.append(v - 2**bits if target.startswith("i") and v >= 2 ** (bits - 1) else v)
            f.spec("astype", [x], [Arr(target, np.array(out, np.dtype(target)))], dtype=target)


def views(f):
    f.wheel("view", arr("float32", [1.0, -2.0, 0.5, 3.0]), dtype="uint32")
    f.wheel("view", arr("float32", [[1.0, -2.0], [0.5, 3.0]]), dtype="uint16")
    f.wheel("view", arr("uint8", np.arange(16).reshape(2, 8)), dtype="int32")
    f.wheel("view", arr("int64", [1, -1]), dtype="uint8")
    f.wheel("view", arr("float16", [1.0, 2.5]), dtype="bfloat16")
    f.wheel("view", arr("float32", 1.5), dtype="int32")
    f.wheel("view", arr("uint8", np.arange(16).reshape(2, 8), "transposed"), dtype="uint16")
    f.wheel("view", arr("int16", np.arange(8).reshape(2, 4), "strided"), dtype="int32")
    f.error("Shape", "view", arr("uint8", [1, 2, 3]), dtype="int16")
    f.error("Shape", "view", arr("float32", 1.5), dtype="uint8")
