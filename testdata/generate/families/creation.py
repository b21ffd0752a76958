"""Arrays from nothing: fills, ranges, triangles, grids, windows."""

import numpy as np

from arrays import DTYPES, Arr, Scalar, arr
from case import COMPOSED


def build(f):
    for dtype in DTYPES:
        f.wheel("zeros", shape=[2, 3], dtype=dtype)
        f.wheel("ones", shape=[3], dtype=dtype)
        # The wheel gives int32 for bool and for integer arrays.
        f.spec("full", [Scalar(1)], [arr(dtype, np.ones((2, 2)))], shape=[2, 2], dtype=dtype)
        f.wheel("eye", n=2, m=3, k=1, dtype=dtype)
        f.wheel("zeros_like", arr(dtype, [[1, 0]]))
        f.wheel("ones_like", arr(dtype, [[1, 0]]))
        if dtype not in ("bool", "complex64"):
            f.wheel("arange", start=0, stop=5, step=2, dtype=dtype)
    for shape in ([], [0], [2, 0, 3], [1]):
        f.wheel("zeros", shape=shape)
        f.wheel("ones", shape=shape)
        f.wheel("full", Scalar(2.5), shape=shape)
    f.wheel("full", arr("float32", [1.0, 2.0, 3.0]), shape=[2, 3])
    f.spec("full", [arr("int32", [[1], [2]])], [arr("float32", [[1] * 3, [2] * 3])], shape=[2, 3], dtype="float32")
    f.wheel("full", Scalar(True), shape=[2])
    f.wheel("full", Scalar(3), shape=[2])
    f.wheel("full_like", arr("float16", [1.0, 2.0]), Scalar(3.5))
    f.wheel("full_like", arr("int32", [[1, 2]]), Scalar(3), dtype="float32")
    f.wheel("zeros_like", arr("float32", [[1.0], [2.0]]), dtype="int32")
    ranges(f)
    f.wheel("eye", n=3)
    f.wheel("eye", n=3, m=2, k=-1)
    f.wheel("eye", n=2, k=5)
    f.wheel("identity", n=3)
    f.wheel("identity", n=2, dtype="int32")
    triangles(f)
    grids(f)
    for window in ("bartlett", "blackman", "hamming", "hanning"):
        for m in (0, 1, 2, 5, 8):
            f.wheel(window, M=m, tol={"rtol": 2e-6, "atol": 1e-7})


def ranges(f):
    f.wheel("arange", stop=5)
    f.wheel("arange", start=2, stop=9, step=3)
    f.wheel("arange", start=5, stop=0, step=-2)
    f.wheel("arange", start=5, stop=2, step=1)
    f.wheel("arange", start=0.0, stop=2.0, step=0.5)
    f.wheel("arange", start=0, stop=3, step=0.75)
    f.wheel("arange", start=1.5, stop=-2.0, step=-1.0)
    f.wheel("arange", start=2**40, stop=2**40 + 3, step=1)
    f.wheel("arange", start=0, stop=4, step=1, dtype="bfloat16")
    f.wheel("linspace", start=0.0, stop=1.0, num=5)
    f.wheel("linspace", start=-2.0, stop=3.0, num=7, tol={"ulp": 2, "atol": 1e-6})
    f.wheel("linspace", start=0.0, stop=1.0, num=4, endpoint=False, tol={"ulp": 2})
    f.wheel("linspace", start=0.0, stop=10.0, num=4, dtype="int32")
    f.wheel("linspace", start=3.0, stop=9.0, num=1)
    f.wheel("linspace", start=3.0, stop=9.0, num=0)
    f.error("Value", "arange", start=0, stop=3, step=0)
    f.error("Value", "linspace", start=0.0, stop=1.0, num=-1)
    f.error("Value", "arange", start=0.0, stop=float("inf"), step=1.0)
    f.error("Value", "arange", start=0.0, stop=float("nan"), step=1.0)
    f.error("Shape", "zeros", shape=[2, -1], wheel=False)
    f.error("Shape", "full", arr("float32", [1.0, 2.0]), shape=[2, 3])


def triangles(f):
    a = np.arange(1, 13).reshape(3, 4)
    for k in (-1, 0, 2):
        f.wheel("tri", n=3, m=4, k=k)
        for dtype in ("float32", "int32", "bool"):
            f.wheel("tril", arr(dtype, a), k=k)
            f.wheel("triu", arr(dtype, a), k=k)
    f.wheel("tri", n=2, dtype="int32")
    f.wheel("tril", arr("bfloat16", np.arange(12).reshape(2, 2, 3), "transposed"))
    f.wheel("triu", arr("float32", [[float("nan"), float("inf")], [float("nan"), 1.0]]))
    for k in (-1, 0, 1, 3):
        f.wheel("diag", arr("float32", [1.0, 2.0, 3.0]), k=k)
        f.wheel("diag", arr("int32", a), k=k)
        f.wheel("diagonal", arr("float32", a, "transposed"), offset=k)
    f.wheel("diagonal", arr("int32", np.arange(24).reshape(2, 3, 4)), offset=1, axis1=0, axis2=2)
    f.wheel("diagonal", arr("int32", np.arange(24).reshape(2, 3, 4)), offset=-1, axis1=-1, axis2=1)
    f.error("Shape", "diag", arr("float32", np.zeros((2, 2, 2))))
    f.error("Shape", "tril", arr("float32", [1.0, 2.0]))
    f.error("Axis", "diagonal", arr("float32", a), axis1=0, axis2=0)
    f.error("Axis", "diagonal", arr("float32", a), axis1=0, axis2=2)


def grids(f):
    x, y, z = arr("int32", [1, 2, 3]), arr("int32", [10, 20]), arr("int32", [5])
    for sparse in (False, True):
        for indexing in ("xy", "ij"):
            f.wheel("meshgrid", x, y, sparse=sparse, indexing=indexing)
            f.wheel("meshgrid", x, y, z, sparse=sparse, indexing=indexing)
    f.wheel("meshgrid", x)
    f.error("Value", "meshgrid", x, y, indexing="yx")
