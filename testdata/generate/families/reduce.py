"""Reductions: over all axes, one, several; every dtype; empty, 0-d and strided inputs."""

import math

import numpy as np

from arrays import DTYPES, FLOATS, HALVES, INTS, Arr, arr, lcg
from case import COMPOSED

INF, NAN = math.inf, math.nan
SUMS = {**COMPOSED, "float32": {"rtol": 1e-6, "atol": 2e-6}}
REAL = [*INTS, *FLOATS]


def axes_of(axis):
    return tuple(axis) if isinstance(axis, list) else axis


def logsumexp(x, axis, keepdims):
    m = np.max(x, axis=axis, keepdims=True)
    m = np.where(np.isfinite(m), m, 0)
    r = np.log(np.sum(np.exp(x - m), axis=axis, keepdims=True)) + m
    return r if keepdims else np.squeeze(r, axis=axis if axis is not None else tuple(range(x.ndim)))


def median(x, axis, keepdims):
    return np.median(x, axis=axis, keepdims=keepdims)


# Ops with a floating result, in float64.
MODELS = {
    "mean": lambda x, axis, keepdims: np.mean(x, axis=axis, keepdims=keepdims),
    "var": lambda x, axis, keepdims: np.var(x, axis=axis, keepdims=keepdims),
    "std": lambda x, axis, keepdims: np.std(x, axis=axis, keepdims=keepdims),
    "logsumexp": logsumexp,
    "median": median,
}


def sample(dtype, shape, layout=None):
    n = math.prod(shape)
    v = (np.arange(n) * 7 % 11 - (0 if dtype.startswith("u") or dtype == "bool" else 4)).astype(np.float64)
    if dtype in FLOATS:
        v = v / 2 + 0.25
    if dtype == "complex64":
        v = v + 1j * (np.arange(n) % 3)
    if dtype == "bool":
        v = v > 2
    return arr(dtype, v.reshape(shape), layout)


def build(f):
    by_dtype(f)
    by_axis(f)
    special(f)
    medium(f)
    softmax(f)
    traces(f)
    errors(f)


def by_dtype(f):
    for dtype in DTYPES:
        x = sample(dtype, [3, 5])
        for op in ("all", "any", "count_nonzero"):
            f.wheel(op, x)
            f.wheel(op, x, axis=0)
        for op in ("max", "min", "argmax", "argmin"):
            f.wheel(op, x)
            f.wheel(op, x, axis=1)
        f.wheel("minmax", x, axis=0)
        if dtype in ("bool", *INTS):
            f.wheel("sum", x)
            f.wheel("sum", x, axis=-1)
            f.wheel("prod", x, axis=0)
        else:
            f.model("sum", [x], lambda v: np.sum(v), tol=SUMS)
            f.model("sum", [x], lambda v: np.sum(v, axis=-1), axis=-1, tol=SUMS)
            f.model("prod", [x], lambda v: np.prod(v, axis=0), axis=0, tol=SUMS, loose=100)
        for op in ("mean", "var", "std", "logsumexp", "median"):
            if dtype == "complex64" and op in ("logsumexp", "median"):
                continue
            f.model(op, [x], lambda v, op=op: MODELS[op](np.asarray(v).astype(complex if dtype == "complex64" else float), 1, False),
                    axis=1, loose=10)
    # Wraps in the accumulator type; int8 is summed in int32.
    f.wheel("sum", arr("int8", [127, 127, 127]))
    f.wheel("sum", arr("uint32", [2**32 - 1, 5]))
    f.wheel("prod", arr("int32", [2**20, 2**20]))
    # Means of integers do not overflow.
    f.spec("mean", [arr("int32", [2**31 - 1, 2**31 - 1])], [arr("float32", 2.0**31)])
    f.spec("mean", [arr("uint8", [255] * 4)], [arr("float32", 255.0)])
    f.spec("mean", [arr("int64", [2**62, 2**62, 2**62])], [arr("float32", 2.0**62)])


def by_axis(f):
    for layout in (None, "transposed", "strided", "reversed", "offset"):
        for axis in (None, 0, 1, -1, [0, 2], [1, 2], [-1, 0], [0, 1, 2]):
            keepdims = layout in ("transposed", "offset")
            kw = {"axis": axis, "keepdims": keepdims}
            x = sample("float32", [2, 3, 4], layout)
            f.model("sum", [x], lambda v: np.sum(v, axis=axes_of(axis), keepdims=keepdims), tol=SUMS, **kw)
            f.wheel("max", x, **kw)
            f.wheel("sum", sample("int16", [2, 3, 4], layout), **kw)
            if layout in (None, "reversed"):
                f.wheel("any", sample("bool", [2, 3, 4], layout), **kw)
                f.model("mean", [sample("bfloat16", [2, 3, 4], layout)],
                        lambda v: np.mean(v, axis=axes_of(axis), keepdims=keepdims), **kw)
                f.model("logsumexp", [x], lambda v: logsumexp(v, axes_of(axis), keepdims), **kw)
        for axis in (0, 1, -1):
            f.wheel("argmax", sample("float32", [2, 3, 4], layout), axis=axis, keepdims=keepdims)
            f.wheel("argmin", sample("int32", [2, 3, 4], layout), axis=axis)
    f.model("sum", [arr("float32", np.ones((4, 1)) * [1.0, 2, 3], "broadcast")], lambda v: v.sum(0), axis=0, tol=None)
    f.model("var", [sample("float32", [3, 4])], lambda v: np.var(v, ddof=1), ddof=1)
    f.model("std", [sample("float32", [3, 4])], lambda v: np.std(v, axis=0, ddof=1), axis=0, ddof=1)
    f.model("median", [sample("float32", [3, 4])], lambda v: np.median(v))
    f.model("median", [sample("float32", [3, 4])], lambda v: np.median(v, axis=(0, 1), keepdims=True), axis=[0, 1], keepdims=True)
    for op in ("sum", "max", "mean", "argmax", "all", "logsumexp"):
        f.wheel(op, arr("float32", 2.5), tol={"ulp": 2} if op == "logsumexp" else None)


def special(f):
    x = arr("float32", [[1.0, NAN, 3.0], [-INF, 2.0, INF], [NAN, NAN, 1.0], [-INF, -INF, -INF]])
    for op in ("max", "min", "argmax", "argmin"):
        f.wheel(op, x, axis=1)
        f.wheel(op, x)
    f.wheel("median", x, axis=1)
    for dtype in HALVES:
        f.wheel("max", arr(dtype, [1.0, NAN, 3.0]))
        f.wheel("argmin", arr(dtype, [1.0, NAN, -3.0, NAN]))
    f.model("logsumexp", [arr("float32", [[-INF, -INF], [INF, 1.0], [1000.0, 1000.0], [-1000.0, -1001.0]])],
            lambda v: np.array([-INF, INF, 1000 + math.log(2), -1000 + math.log1p(math.exp(-1))]), axis=1)
    f.wheel("argmax", arr("float32", [3.0, 5.0, 5.0, 1.0]))
    f.wheel("argmin", arr("int8", [[3, 1, 1], [0, 0, 7]]), axis=1)
    f.wheel("argmax", arr("bool", [False, True, True]))
    f.wheel("max", arr("complex64", [1 + 2j, 1 + 3j, 0.5 + 9j]))
    f.wheel("min", arr("complex64", [1 + 2j, 1 - 3j, 2 - 9j]))
    for shape, axis in (([0], None), ([2, 0], 1), ([0, 3], 0), ([2, 0], 0)):
        e = arr("float32", np.zeros(shape))
        out = np.sum(np.zeros(shape), axis=axis).shape
        # Not run on the wheel, which does not return from some empty reductions.
        for op, dtype, start in (("sum", "float32", 0), ("prod", "float32", 1), ("all", "bool", True), ("any", "bool", False)):
            f.spec(op, [e], [arr(dtype, np.full(out, start))], axis=axis)
        for op in ("mean", "var"):
            f.spec(op, [e], [arr("float32", np.full(out, NAN))], axis=axis)
    f.spec("max", [arr("float32", np.zeros((2, 0)))], [arr("float32", np.zeros(0))], axis=0)
    f.spec("sum", [arr("int32", np.zeros((0, 3)))], [arr("int32", [0, 0, 0])], axis=0)
    # Divisor max(N - ddof, 0).
    f.spec("var", [arr("float32", [1.0])], [arr("float32", NAN)], ddof=1)
    # Half precision accumulates in f32: no stagnation at 2048 / 256, no overflow at 65504.
    ones = lcg("float16", [4096], 0, 1.0, 1.0)
    f.spec("sum", [ones], [arr("float16", 4096.0)])
    f.spec("sum", [lcg("bfloat16", [4096], 0, 1.0, 1.0)], [arr("bfloat16", 4096.0)])
    f.spec("mean", [lcg("float16", [4096], 0, 100.0, 100.0)], [arr("float16", 100.0)])
    f.spec("var", [lcg("float16", [4096], 0, 100.0, 100.0)], [arr("float16", 0.0)])
    f.spec("sum", [lcg("float16", [1000], 0, 100.0, 100.0)], [arr("float16", INF)])


def medium(f):
    """Sizes that reach the blocked paths; f64 sums of the stated inputs."""
    for i, (shape, axis) in enumerate((([5000], None), ([40, 130], 0), ([40, 130], 1), ([7, 33, 20], [0, 2]), ([3, 1000], -1), ([1000, 3], 0))):
        for dtype in ("float32", "bfloat16", "float16", "float64"):
            x = lcg(dtype, shape, 10 + i, -1.0, 1.0)
            atol = 1e-6 * float(np.max(np.sum(np.abs(x.wide), axis=axes_of(axis))))
            tol = {"float32": {"rtol": 1e-6, "atol": round(atol, 9)}, "float64": {"rtol": 1e-13, "atol": 1e-12},
                   "float16": {"ulp": 1, "atol": round(atol, 9)}, "bfloat16": {"ulp": 1, "atol": round(atol, 9)}}
            every = 7 if axis is not None and math.prod(shape) == 5200 and axis == 0 else 1
            f.model("sum", [x], lambda v: np.sum(v, axis=axes_of(axis)), axis=axis, tol=tol, loose=10, every=every)
            f.model("var", [x], lambda v: np.var(v, axis=axes_of(axis)), axis=axis, tol=tol, loose=10, every=every)
            if dtype == "float32":
                f.wheel("max", x, axis=axis, every=every)
                f.wheel("argmin", lcg("float32", shape, 50 + i, -1.0, 1.0), axis=0 if isinstance(axis, list) else axis, every=every)
        f.wheel("sum", lcg("int32", shape, 30 + i, -1000, 1000), axis=axis, every=7 if axis == 0 else 1)
        f.wheel("sum", lcg("uint8", shape, 30 + i, 0, 256), axis=axis, every=7 if axis == 0 else 1)
    f.model("logsumexp", [lcg("float32", [6, 1000], 3, -20.0, 20.0)], lambda v: logsumexp(v, -1, False), axis=-1)


def softmax(f):
    def model(v, axis):
        e = np.exp(v - np.max(v, axis=axis, keepdims=True))
        return e / np.sum(e, axis=axis, keepdims=True)

    for dtype in ("float32", "float64", "float16", "bfloat16", "int32"):
        x = sample(dtype, [3, 5])
        for axis in (-1, 0, None, [0, 1]):
            f.model("softmax", [x], lambda v: model(v.astype(float), axes_of(axis)), axis=axis, loose=20, **({"dtypes": ["float32"]} if dtype == "int32" else {}))
    for layout in ("transposed", "strided", "reversed", "offset"):
        for axis in (0, 1, -1, [0, 2]):
            f.model("softmax", [sample("float32", [2, 3, 4], layout)], lambda v: model(v, axes_of(axis)), axis=axis)
    f.model("softmax", [arr("float32", [[-INF, -INF], [-INF, 1.0], [1000.0, 999.0], [NAN, 1.0], [INF, 1.0]])],
            lambda v: np.array([[NAN, NAN], [0, 1], [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))], [NAN, NAN], [NAN, NAN]]), axis=-1)
    f.model("softmax", [sample("bfloat16", [2, 9])], lambda v: model(v, -1), axis=-1, precise=True, loose=20)
    # The accumulator is wide: zeros give exactly 1/n.
    for dtype in HALVES:
        even = arr(dtype, np.full(4096, 1 / 4096))
        f.add("softmax", [lcg(dtype, [4096], 0, 0.0, 0.0)], {"axis": -1}, "spec", [even], every=1000)
    f.model("softmax", [lcg("float32", [4, 777], 5, -10.0, 10.0)], lambda v: model(v, -1), axis=-1, every=101)
    f.spec("softmax", [arr("float32", np.zeros((0, 3)))], [arr("float32", np.zeros((0, 3)))], axis=-1)
    f.wheel("softmax", arr("float32", 3.0), axis=None)


def traces(f):
    x = np.arange(12).reshape(3, 4)
    f.wheel("trace", arr("int32", x))
    f.wheel("trace", arr("float32", x, "transposed"), offset=1)
    f.wheel("trace", arr("uint8", x), dtype="float32")
    f.wheel("trace", arr("float32", np.arange(24).reshape(2, 3, 4)), offset=-1, axis1=1, axis2=2)
    d = arr("float32", [[1.0, 4.0, 9.0, 16.5], [2.0, 2.0, -1.0, 0.0]])
    f.wheel("diff", d)
    f.wheel("diff", d, n=2)
    f.wheel("diff", d, axis=0)
    f.wheel("diff", d, n=0)
    f.wheel("diff", arr("int32", [5, 3, 10]), n=5)
    f.wheel("diff", arr("bool", [True, False, False]))
    f.error("Value", "diff", d, n=-1)
    f.error("Axis", "diff", d, axis=2)


def errors(f):
    x = sample("float32", [2, 3])
    for op in ("sum", "max", "mean", "all", "logsumexp", "softmax", "median", "var", "count_nonzero"):
        f.error("Axis", op, x, axis=2)
        f.error("Axis", op, x, axis=-3)
        f.error("Axis", op, x, axis=[0, 0] if op != "median" else [1, -1])
    f.error("Axis", "argmax", x, axis=2)
    for op in ("max", "min", "argmax", "argmin"):
        f.error("Value", op, arr("float32", np.zeros((0,))), wheel=False)
        f.error("Value", op, arr("float32", np.zeros((2, 0))), axis=1, wheel=False)
    f.error("Axis", "sum", arr("float32", 1.0), axis=1)
    f.error("Axis", "trace", x, axis1=0, axis2=0)
