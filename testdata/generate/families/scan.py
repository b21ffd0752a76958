"""Cumulative sums, products, extremes and log-sum-exps."""

import math

import numpy as np

from arrays import DTYPES, FLOATS, HALVES, INTS, arr, lcg
from case import COMPOSED
from reduce import sample

INF, NAN = math.inf, math.nan


def scan(function, start):
    """The float64 model of a scan: flattening, direction, inclusive or shifted by `start`."""
    def run(v, axis, reverse, inclusive):
        v = np.asarray(v)
        v = v.astype(complex if np.iscomplexobj(v) else float)
        if axis is None:
            v, axis = v.reshape(-1), 0
        v = np.moveaxis(v, axis, 0)
        v = v[::-1] if reverse else v
        out = function(v)
        if not inclusive:
            out = np.concatenate([np.full_like(out[:1], start), out[:-1]])
        out = out[::-1] if reverse else out
        return np.moveaxis(out, 0, axis)
    return run


MODELS = {
    "cumsum": scan(lambda v: np.cumsum(v, 0), 0),
    "cumprod": scan(lambda v: np.cumprod(v, 0), 1),
    "logcumsumexp": scan(lambda v: np.logaddexp.accumulate(v, 0), -INF),
}


def build(f):
    for dtype in DTYPES:
        x = sample(dtype, [2, 5])
        inexact = dtype in FLOATS or dtype == "complex64"
        for op in ("cumsum", "cumprod"):
            for kw in ({}, {"axis": 1}, {"axis": 0, "reverse": True}, {"axis": -1, "inclusive": False}):
                if inexact:
                    full = {"axis": None, "reverse": False, "inclusive": True, **kw}
                    f.model(op, [x], lambda v, op=op: MODELS[op](v, **full), loose=100, differs=op == "cumprod" and dtype in HALVES, **kw)
                else:
                    f.wheel(op, x, **kw)
        for op in ("cummax", "cummin"):
            for kw in ({"axis": 1}, {"axis": 0, "reverse": True}, {"axis": -1, "inclusive": False}):
                f.wheel(op, x, **kw)
    for dtype in ("float32", "float64", "bfloat16", "float16", "int32"):
        for kw in ({}, {"axis": 1}, {"axis": 0, "reverse": True}, {"axis": -1, "inclusive": False}, {"axis": 1, "reverse": True, "inclusive": False}):
            full = {"axis": None, "reverse": False, "inclusive": True, **kw}
            f.model("logcumsumexp", [sample(dtype, [2, 5])], lambda v: MODELS["logcumsumexp"](v, **full), loose=30, **kw)
    for layout in ("transposed", "strided", "reversed", "offset"):
        for axis in (0, 1, 2):
            f.wheel("cumsum", sample("int32", [2, 3, 4], layout), axis=axis)
            f.wheel("cummax", sample("float32", [2, 3, 4], layout), axis=axis, reverse=True)
    f.wheel("cumsum", sample("int8", [2, 4]), axis=1, dtype="int32")
    f.wheel("cumsum", arr("int8", [100, 100, 100]))
    f.wheel("cumprod", sample("bool", [6]), dtype="float32")
    f.wheel("cumsum", arr("float32", 3.0))
    f.spec("cumsum", [arr("float32", np.zeros(0))], [arr("float32", np.zeros(0))])
    f.spec("cumsum", [arr("float32", np.zeros((2, 0)))], [arr("float32", np.zeros((2, 0)))], axis=1)
    f.wheel("cummax", arr("float32", [1.0, NAN, 3.0, 2.0]))
    f.wheel("cummin", arr("float32", [1.0, -INF, NAN, 3.0]))
    f.model("logcumsumexp", [arr("float32", [-INF, -INF, 0.0, 1000.0, -1000.0])],
            lambda v: np.logaddexp.accumulate(v))
    # Half precision accumulates in f32.
    for dtype in HALVES:
        x = lcg(dtype, [4096], 0, 1.0, 1.0)
        f.add("cumsum", [x], {}, "spec", [arr(dtype, np.arange(1.0, 4097))], every=273)
        f.add("logcumsumexp", [lcg(dtype, [4096], 0, 0.0, 0.0)], {}, "spec", [arr(dtype, np.log(np.arange(1.0, 4097)))],
              every=273, tol={"ulp": 1})
    x = lcg("float32", [3, 1000], 4, -1.0, 1.0)
    f.model("cumsum", [x], lambda v: np.cumsum(v, 1), axis=1, every=97, tol={"rtol": 1e-6, "atol": 1e-5})
    f.model("cumsum", [x], lambda v: np.cumsum(v, 0), axis=0, every=97, tol={"rtol": 1e-6, "atol": 1e-6})
    for op in ("cumsum", "cummax", "logcumsumexp"):
        f.error("Axis", op, sample("float32", [2, 3]), axis=2)
        f.error("Axis", op, sample("float32", [2, 3]), axis=-3)
