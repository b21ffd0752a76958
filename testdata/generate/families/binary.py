"""Elementwise ops of two and three inputs."""

import math

import numpy as np

import exact
from arrays import DTYPES, FLOATS, HALVES, INTS, Arr, Scalar, arr, rounded
from case import ELEMENTARY

INF, NAN = math.inf, math.nan

ARITHMETIC = ["add", "subtract", "multiply"]
ORDER = ["maximum", "minimum"]
COMPARE = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]
LOGICAL = ["logical_and", "logical_or", "logical_xor"]
BITWISE = ["bitwise_and", "bitwise_or", "bitwise_xor"]

# Paired operands with the special values of IEEE arithmetic.
FLOAT_A = [1.5, -2.25, 0.0, -0.0, 3.0, 0.1, 1e4, -7.0, INF, -INF, INF, NAN, 1.0, 7.5, -7.5, 5.0]
FLOAT_B = [0.5, 4.0, 0.0, 0.0, 3.0, 0.7, 1e4, 2.0, 1.0, INF, -INF, 1.0, NAN, -2.0, 2.0, 0.0]


def int_pairs(dtype):
    info = np.iinfo(dtype)
    a = [0, 1, 7, 7, 100, info.max, info.max, info.min, 13, 3]
    b = [0, 1, 2, 3, 7, 1, info.max, 1, 13, 5]
    if info.min < 0:
        a, b = a + [-7, 7, -7, info.min, -1], b + [2, -2, -3, -1, 1]
    return arr(dtype, np.array(a, dtype)), arr(dtype, np.array(b, dtype))


def pairs(dtype):
    if dtype == "bool":
        return arr(dtype, [0, 0, 1, 1]), arr(dtype, [0, 1, 0, 1])
    if dtype in INTS:
        return int_pairs(dtype)
    if dtype == "complex64":
        return arr(dtype, [1 + 2j, -1.5j, 0.5, 2 - 1j, 1 + 1j]), arr(dtype, [0.5 - 1j, 2 + 1j, 1j, 2 - 1j, 1 - 1j])
    return arr(dtype, FLOAT_A), arr(dtype, FLOAT_B)


def build(f):
    for dtype in DTYPES:
        a, b = pairs(dtype)
        for op in ARITHMETIC:
            f.wheel(op, a, b, tol=ELEMENTARY if (dtype, op) == ("complex64", "multiply") else None)
        for op in [*ORDER, *COMPARE, *LOGICAL]:
            f.wheel(op, a, b)
        if dtype in INTS or dtype == "bool":
            for op in BITWISE:
                f.wheel(op, a, b)
    division(f)
    floats(f)
    shifts(f)
    powers(f)
    mixed(f)
    broadcasting(f)
    closeness(f)
    ternary(f)
    errors(f)


def division(f):
    for dtype in FLOATS:
        a, b = pairs(dtype)
        f.wheel("divide", a, b)
        # Away from zero divisors and infinities, where MLX's own definitions are settled.
        x = arr(dtype, [7.5, -7.5, 7.5, -7.5, 1.0, 0.3, -0.3, 8.0, 0.0])
        y = arr(dtype, [2.0, 2.0, -2.0, -2.0, 3.0, 0.1, 0.1, 4.0, 5.0])
        if dtype in HALVES:
            # One rounding at the end: MLX rounds the quotient before it takes the floor.
            q, r = Arr(dtype, np.floor(x.wide / y.wide)), Arr(dtype, np.remainder(x.wide, y.wide))
            f.spec("floor_divide", [x, y], [q])
            f.spec("remainder", [x, y], [r])
            f.spec("divmod", [x, y], [q, r])
            continue
        f.wheel("floor_divide", x, y)
        f.wheel("remainder", x, y)
        f.wheel("divmod", x, y)
    f.model("divide", list(pairs("complex64")), lambda a, b: a / b, tol=ELEMENTARY)
    for dtype in [*INTS, "bool"]:
        a, b = pairs(dtype)
        f.model("divide", [a, b], lambda a, b: np.float32(a) / np.float32(b), tol=None, dtypes=["float32"])
    for dtype in INTS:
        integer_division(f, dtype)


def integer_division(f, dtype):
    """x // 0 = 0, x % 0 = x; smallest // -1 = smallest, smallest % -1 = 0; divmod agrees."""
    a, b = int_pairs(dtype)
    info = np.iinfo(dtype)
    quotient, remainder = [], []
    for x, y in zip(a.values.tolist(), b.values.tolist()):
        q, r = (0, x) if y == 0 else divmod(x, y)
        quotient.append(info.min if q > info.max else q)
        remainder.append(r)
    q, r = (Arr(dtype, np.array(v, dtype)) for v in (quotient, remainder))
    f.spec("floor_divide", [a, b], [q])
    f.spec("remainder", [a, b], [r])
    f.spec("divmod", [a, b], [q, r])


def floats(f):
    y = [0.0, 1.0, -1.0, 1.0, -1.0, -0.0, 0.5, 3.0, INF, -INF, 1.0, NAN]
    x = [1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -2.0, 0.0, INF, 1.0, -INF, 1.0]
    # The pairs end with two large and two very different values.
    u = [0.0, 1.0, -1.0, 5.0, -INF, -INF, INF, INF, 50.0, -100.0, NAN, 0.5]
    v = [0.0, 2.0, -3.0, 5.0, -INF, 1.0, 1.0, -INF, -50.0, -100.5, 1.0, 0.25]
    for dtype in FLOATS:
        f.model("arctan2", [arr(dtype, y), arr(dtype, x)], lambda a, b: exact.apply(exact.BINARY, "arctan2", a, b),
                tol=ELEMENTARY, differs=True)
        f.model("logaddexp", [arr(dtype, u), arr(dtype, v)], lambda a, b: exact.apply(exact.BINARY, "logaddexp", a, b),
                tol=ELEMENTARY, differs=True)
    ints = [arr("int32", [0, 1, -1, 3]), arr("int32", [2, 1, 1, 3])]
    for op in ("arctan2", "logaddexp"):
        f.model(op, ints, lambda a, b, op=op: exact.apply(exact.BINARY, op, a.astype(float), b.astype(float)), tol=ELEMENTARY)


def shifts(f):
    """Counts outside [0, bits): left gives 0, right gives 0 or -1 by sign."""
    for dtype in INTS:
        bits, info = 8 * np.dtype(dtype).itemsize, np.iinfo(dtype)
        x = [1, 3, 100, info.max, info.min, 5, 5, 7, info.max] + ([-1, -5, -5, -100] if info.min < 0 else [])
        n = [0, 1, 2, 3, bits - 1, bits, bits + 3, bits - 1, 1] + ([1, bits, 2, bits + 1] if info.min < 0 else [])
        if info.min < 0:
            x, n = x + [4, -4], n + [-1, -1]
        left = [(v << s) % 2**bits if 0 <= s < bits else 0 for v, s in zip(x, n)]
        left = [v - 2**bits if info.min < 0 and v > info.max else v for v in left]
        right = [v >> s if 0 <= s < bits else (-1 if v < 0 else 0) for v, s in zip(x, n)]
        a, b = arr(dtype, np.array(x, dtype)), arr(dtype, np.array(n, dtype))
        f.spec("left_shift", [a, b], [arr(dtype, np.array(left, dtype))])
        f.spec("right_shift", [a, b], [arr(dtype, np.array(right, dtype))])
    f.wheel("left_shift", arr("bool", [0, 1, 1]), arr("bool", [1, 0, 1]))
    f.wheel("right_shift", arr("bool", [0, 1, 1]), arr("bool", [1, 0, 1]))


def powers(f):
    base = [2.0, 0.5, -2.0, -2.0, 0.0, 0.0, 10.0, 1.5, 9.0, -1.0, 1.0, INF, 0.3, NAN, 2.0]
    exponent = [3.0, 2.0, 3.0, 0.5, 0.0, 2.0, -2.0, 2.7, 0.5, 4.0, INF, 2.0, INF, 0.0, -INF]
    for dtype in FLOATS:
        f.model("power", [arr(dtype, base), arr(dtype, exponent)], lambda a, b: exact.apply(exact.BINARY, "power", a, b),
                tol=ELEMENTARY, differs=dtype == "float16")
    f.model("power", [arr("complex64", [1 + 2j, 2 - 1j, 0.5j]), arr("complex64", [2, 0.5 + 1j, -1])],
            lambda a, b: exact.apply(exact.BINARY, "power", a, b), tol={"rtol": 1e-5, "atol": 1e-6})
    for dtype in INTS:
        bits, signed = 8 * np.dtype(dtype).itemsize, dtype.startswith("i")
        x = [0, 0, 1, 2, 3, 2, 7, 5, 2] + ([-2, -3, 2, -1, 1] if signed else [])
        n = [0, 3, 9, 5, 4, bits - 1, 10, 1, bits] + ([3, 2, -1, -1, -2] if signed else [])
        out = []
        for v, e in zip(x, n):
            # A negative exponent gives 0; for a base of 1 or -1 MLX's result stands.
            p = (v**e if e >= 0 else 0) % 2**bits
            out.append(p - 2**bits if signed and p >= 2 ** (bits - 1) else p)
        f.spec("power", [arr(dtype, np.array(x, dtype)), arr(dtype, np.array(n, dtype))], [arr(dtype, np.array(out, dtype))])
    f.wheel("power", arr("bool", [0, 0, 1, 1]), arr("bool", [0, 1, 0, 1]))


def mixed(f):
    """Two different dtypes: promotion and then the operation in the promoted type."""
    for a in DTYPES:
        for b in DTYPES:
            if a < b:
                f.wheel("add", arr(a, [1, 0, 1]), arr(b, [1, 1, 0]))
    f.wheel("multiply", arr("uint8", [200, 3]), arr("int8", [-2, 100]))
    f.wheel("less", arr("uint8", [200, 3]), arr("int8", [-2, 100]))
    f.wheel("maximum", arr("int64", [2**40, -5]), arr("float16", [1.0, 2.0]))
    for scalar in (True, 2, 2.5, 1 + 2j):
        for dtype in ("bool", "uint8", "int32", "float16", "bfloat16", "float32", "float64", "complex64"):
            f.wheel("multiply", arr(dtype, [1, 0, 1]), Scalar(scalar))
    f.wheel("subtract", Scalar(1.0), arr("float16", [0.25, 4.0]))
    f.wheel("divide", Scalar(1), arr("int32", [2, 4]))
    f.wheel("add", arr("float64", [1.0]), Scalar(0.1))
    f.wheel("less", arr("int32", [1, 2, 3]), Scalar(2.5))


def broadcasting(f):
    a = np.arange(1.0, 7).reshape(2, 3)
    row, column = np.array([10.0, 20, 30]), np.array([[1.0], [2.0]])
    f.wheel("add", arr("float32", a), arr("float32", row))
    f.wheel("add", arr("float32", a), arr("float32", column))
    f.wheel("multiply", arr("float32", row), arr("float32", column))
    f.wheel("subtract", arr("float32", a), arr("float32", 0.5))
    f.wheel("subtract", arr("float32", 0.5), arr("float32", 2.0))
    f.wheel("add", arr("float32", np.zeros((0, 3))), arr("float32", row))
    f.wheel("add", arr("float32", np.zeros((2, 1, 0))), arr("float32", np.zeros((4, 1))))
    f.wheel("add", arr("int32", np.arange(12).reshape(2, 1, 3, 2)), arr("int32", np.arange(8).reshape(4, 1, 2)))
    for x in ("transposed", "strided", "reversed", "offset"):
        for y in (None, "transposed", "strided", "reversed"):
            dtype = ("float32", "int32", "bfloat16", "uint8")[(len(x) + len(y or "")) % 4]
            f.wheel("add", arr(dtype, np.arange(12).reshape(3, 4), x), arr(dtype, np.arange(12).reshape(3, 4) % 5, y))
        f.wheel("multiply", arr("float32", a, x), arr("float32", row))
        f.wheel("less", arr("float32", row), arr("float32", a * 7, x))
    f.wheel("add", arr("float32", np.ones((3, 1)) * row, "broadcast"), arr("float32", np.arange(9.0).reshape(3, 3), "transposed"))


def closeness(f):
    a = arr("float32", [1.0, 1.0, 1e-9, INF, INF, NAN, 100.0])
    b = arr("float32", [1.000001, 1.001, 0.0, INF, -INF, NAN, 100.0009])
    f.wheel("isclose", a, b)
    f.wheel("isclose", a, b, equal_nan=True)
    f.wheel("isclose", a, b, rtol=0.01, atol=0.0)
    f.wheel("isclose", arr("int32", [1, 5]), arr("int32", [1, 6]))
    f.wheel("allclose", a, b)
    f.wheel("allclose", arr("float32", [1.0, NAN]), arr("float32", [1.0, NAN]), equal_nan=True)
    f.wheel("allclose", arr("float32", [1.0, 2.0]), arr("float32", [[1.0, 2.0], [1.0, 2.00001]]))
    f.wheel("array_equal", arr("int32", [1, 2]), arr("float32", [1.0, 2.0]))
    f.wheel("array_equal", arr("int32", [1, 2]), arr("int32", [1, 3]))
    f.wheel("array_equal", arr("int32", [1, 2]), arr("int32", [[1, 2]]))
    f.wheel("array_equal", arr("float32", [1.0, NAN]), arr("float32", [1.0, NAN]))
    f.wheel("array_equal", arr("float32", [1.0, NAN]), arr("float32", [1.0, NAN]), equal_nan=True)


def ternary(f):
    c = arr("bool", [True, False, True, False])
    for dtype in DTYPES:
        f.wheel("where", c, arr(dtype, [1, 0, 1, 0]), arr(dtype, [0, 1, 0, 1]))
    f.wheel("where", arr("bool", [[True], [False]]), arr("float32", [1.0, 2, 3]), arr("int32", 7))
    f.wheel("where", arr("int32", [0, 2, -1]), arr("float16", [1, 2, 3]), arr("bfloat16", [4, 5, 6]))
    f.wheel("where", arr("bool", [[True, False, True], [False, True, False]], "transposed"),
            arr("float32", [[1, 2, 3], [4, 5, 6]], "reversed"), arr("float32", 0.0))
    f.wheel("where", arr("bool", True), arr("float32", 1.0), arr("float32", 2.0))
    f.wheel("where", c, Scalar(1.5), arr("int32", [1, 2, 3, 4]))
    x = arr("float32", [-2.0, -0.5, 0.0, 0.5, 3.0, NAN, INF, -INF])
    f.wheel("clip", x, Scalar(-1.0), Scalar(1.0))
    f.wheel("clip", x, None, Scalar(1.0))
    f.wheel("clip", x, Scalar(-1.0), None)
    f.wheel("clip", arr("int32", [-5, 0, 5]), Scalar(-1), Scalar(2))
    f.wheel("clip", arr("float32", [[1.0, 5], [2, 8]]), arr("float32", [2.0, 3.0]), arr("float32", [[4.0], [6.0]]))
    f.wheel("clip", arr("float16", [-2.0, 0.5]), Scalar(-1.0), Scalar(1.0))
    f.wheel("clip", arr("int32", [-5, 0, 5]), Scalar(-0.5), Scalar(0.5))


def errors(f):
    a, b = arr("float32", [1.0, 2.0, 3.0]), arr("float32", [1.0, 2.0])
    for op in ("add", "maximum", "less", "power", "logical_and", "logaddexp", "divmod"):
        f.error("Shape", op, a, b)
    f.error("Shape", "where", arr("bool", [True, False]), a, a)
    f.error("Shape", "add", arr("float32", np.zeros((2, 0))), arr("float32", np.zeros((2, 2))))
    for op in (*BITWISE, "left_shift", "right_shift"):
        f.error("Dtype", op, a, a)
        f.error("Dtype", op, arr("int32", [1, 2, 3]), a)
    for op in ("remainder", "divmod", "arctan2"):
        f.error("Dtype", op, arr("complex64", [1j]), arr("complex64", [1j]))
    f.error("Value", "clip", a, None, None)
    # An int that does not fit the array's dtype.
    f.error("Value", "add", arr("uint8", [1]), Scalar(300))
    f.error("Value", "add", arr("int8", [1]), Scalar(-129))
    f.error("Value", "multiply", arr("int64", [1]), Scalar(2**63), wheel=False)
