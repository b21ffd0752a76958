"""Sort and search."""

import math

import numpy as np

from arrays import DTYPES, FLOATS, HALVES, INTS, Arr, Scalar, arr, lcg
from reduce import sample

INF, NAN = math.inf, math.nan
LAYOUTS = [None, "transposed", "strided", "reversed", "offset"]


def build(f):
    sorts(f)
    partitions(f)
    searches(f)
    uniques(f)
    nonzero(f)
    errors(f)


def sorts(f):
    for dtype in DTYPES:
        if dtype == "complex64":
            continue
        x = sample(dtype, [2, 7])
        for op in ("sort", "argsort"):
            for axis in (-1, 0, None):
                f.wheel(op, x, axis=axis)
    for layout in LAYOUTS:
        for axis in (0, 1, 2):
            f.wheel("sort", sample("int32", [2, 3, 4], layout), axis=axis)
            f.wheel("argsort", sample("float32", [2, 3, 4], layout), axis=axis)
    # NaN goes last, equal keys keep their order.
    special = [3.0, NAN, -INF, 0.0, -0.0, INF, NAN, 3.0, -1.0]
    for dtype in FLOATS:
        x = arr(dtype, special)
        order = np.array(sorted(range(len(special)), key=lambda i: (math.isnan(special[i]), 0 if math.isnan(special[i]) else special[i], i)))
        f.spec("sort", [x], [Arr(dtype, np.array(special)[order])])
        f.spec("argsort", [x], [arr("uint32", order)])
    ties = lcg("int32", [200], 3, 0, 10)
    f.spec("argsort", [ties], [arr("uint32", np.argsort(ties.values, kind="stable"))])
    f.wheel("sort", lcg("float32", [300], 4, -1.0, 1.0), every=3)
    f.wheel("sort", lcg("uint8", [1000], 5, 0, 256), every=7)
    f.wheel("sort", arr("float32", 2.0), axis=None)
    f.error("Axis", "sort", arr("float32", 2.0))
    f.wheel("sort", arr("float32", np.zeros((2, 0))))
    f.wheel("argsort", arr("float32", np.zeros((0,))))
    f.wheel("sort", arr("float32", [[1.0]]), axis=0)


def partitions(f):
    """Only position kth is promised, and topk's order is free: inputs where the answer is forced."""
    x = arr("int32", [3, 1, 2])
    for kth in (0, -1):
        two = arr("int32", [[9, 4], [5, 7]])
        f.wheel("partition", two, kth=kth)
        f.wheel("argpartition", two, kth=kth)
    f.wheel("partition", arr("float32", [[3.0, 1.0], [2.0, 5.0]], "transposed"), kth=0, axis=0)
    f.wheel("argpartition", arr("float32", [[3.0, 1.0], [2.0, 5.0]], "transposed"), kth=0, axis=0)
    f.wheel("topk", x, k=1)
    f.wheel("topk", arr("float32", [[3.0, 1.0, 7.0], [9.0, 5.0, -1.0]]), k=1, axis=1)
    f.wheel("topk", arr("float32", [[3.0, 1.0, 7.0], [9.0, 5.0, -1.0]]), k=1, axis=0)
    f.wheel("topk", arr("bfloat16", [3.0, 3.0, 3.0]), k=2)
    f.wheel("topk", arr("int8", [[1, 5], [7, 3]]), k=1, axis=None)


def searches(f):
    s = [1.0, 2.0, 2.0, 5.0]
    v = [0.0, 1.0, 2.0, 3.0, 5.0, 9.0]
    for dtype in ("float32", "int32", "uint8", "bfloat16", "float64"):
        for side in ("left", "right"):
            f.wheel("searchsorted", arr(dtype, s), arr(dtype, v), side=side)
    f.wheel("searchsorted", arr("float32", s), arr("float32", [[2.0, 3.0], [0.0, 9.0]], "transposed"))
    f.wheel("searchsorted", arr("float32", s, "strided"), arr("float32", 2.5))
    f.wheel("searchsorted", arr("float32", np.zeros(0)), arr("float32", [1.0]))


def uniques(f):
    x = arr("int32", [[3, 1, 3], [2, 1, 1]])
    f.wheel("unique", x, size=3)
    f.wheel("unique", x, size=5)
    f.wheel("unique", x, size=2)
    f.wheel("unique", x, Scalar(-7), size=5)
    f.wheel("unique", x, size=4, return_index=True, return_inverse=True, return_counts=True)
    f.wheel("unique", x, size=3, return_counts=True)
    f.wheel("unique", arr("float32", [1.5, -2.0, 1.5, 0.0]), size=3, return_inverse=True)
    f.wheel("unique", arr("float32", [NAN, 1.0, NAN]), size=3)
    f.spec("unique", [x], [arr("int32", [1, 2, 3])])
    f.spec("unique", [arr("float32", [2.0, 1.0, 2.0])],
           [arr("float32", [1.0, 2.0]), arr("uint32", [1, 0]), arr("uint32", [1, 0, 1]), arr("int32", [1, 2])],
           return_index=True, return_inverse=True, return_counts=True)


def nonzero(f):
    """lapis: a tuple of int64 index arrays in row-major order; where(cond) alone is the same."""
    for x in (sample("bool", [3, 4]), arr("float32", [[0.0, 1.5], [NAN, -0.0]]), arr("int32", [0, 3, 0, 5], "reversed"),
              sample("bool", [2, 3, 2], "transposed"), arr("bool", [False, False]), arr("float32", np.zeros((0, 2)))):
        where = [arr("int64", i) for i in np.nonzero(x.values)]
        f.spec("nonzero", [x], where)
        f.spec("where", [x], where)


def errors(f):
    x = sample("float32", [2, 3])
    for op in ("sort", "argsort"):
        f.error("Axis", op, x, axis=2)
    for op in ("partition", "argpartition"):
        f.error("Value", op, x, kth=3)
        f.error("Axis", op, x, kth=0, axis=2)
    f.error("Value", "topk", x, k=4)
    f.error("Value", "topk", x, k=-1)
    f.error("Axis", "topk", x, k=1, axis=2)
    f.error("Shape", "searchsorted", x, x)
    f.error("Value", "searchsorted", arr("float32", [1.0]), x, side="middle")
