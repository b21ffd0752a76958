"""Decompositions, solves, norms."""

import math

import numpy as np

from arrays import FLOATS, HALVES, Arr, arr, lcg
from case import COMPOSED
from reduce import sample

INF, NAN = math.inf, math.nan
SOLVE = {**COMPOSED, "float32": {"rtol": 1e-4, "atol": 1e-5}, "float64": {"rtol": 1e-10, "atol": 1e-12},
         "float16": {"rtol": 2e-3, "atol": 1e-3}, "bfloat16": {"rtol": 1.6e-2, "atol": 1e-2}, "complex64": {"rtol": 1e-4, "atol": 1e-5}}
LAYOUTS = ["transposed", "strided", "reversed", "offset"]


def matrix(dtype, shape, seed=1, layout=None, ridge=True):
    """Well-conditioned square or plain rectangular matrices."""
    v = lcg("float32", shape, seed, -1.0, 1.0).wide
    if ridge and shape[-1] == shape[-2]:
        v = v + 2 * np.eye(shape[-1])
    if dtype == "complex64":
        v = v + 1j * lcg("float32", shape, seed + 100, -0.5, 0.5).wide
    return arr(dtype, np.round(v * 64) / 64, layout)


def definite(dtype, shape, seed=1, layout=None):
    a = matrix("float64", shape, seed).wide
    return arr(dtype, np.round((a @ np.swapaxes(a, -1, -2)) * 16) / 16, layout)


def build(f):
    solves(f)
    factors(f)
    spectra(f)
    norms(f)
    crosses(f)
    errors(f)


def solves(f):
    for dtype in ("float32", "float64", *HALVES, "complex64"):
        wheel = dtype in ("float32", "float64")
        kw = {} if wheel else {"dtypes": [dtype]}
        for shape in ([3, 3], [2, 4, 4], [1, 1]):
            f.model("linalg.inv", [matrix(dtype, shape)], np.linalg.inv, tol=SOLVE, **kw)
        f.model("linalg.solve", [matrix(dtype, [3, 3]), matrix(dtype, [3, 2], 5)], np.linalg.solve, tol=SOLVE, **kw)
        f.model("linalg.solve", [matrix(dtype, [3, 3]), arr(dtype, [1.0, -2.0, 0.5])], np.linalg.solve, tol=SOLVE, **kw)
        f.model("linalg.solve", [matrix(dtype, [2, 3, 3]), matrix(dtype, [2, 3, 4], 5)], np.linalg.solve, tol=SOLVE, **kw)
    for dtype in ("float32", "float64", *HALVES):
        kw = {} if dtype in ("float32", "float64") else {"dtypes": [dtype]}
        for upper in (False, True):
            cut = np.triu if upper else np.tril
            f.model("linalg.tri_inv", [arr(dtype, cut(matrix(dtype, [4, 4]).wide))], np.linalg.inv, tol=SOLVE, upper=upper, **kw)
            f.model("linalg.solve_triangular", [arr(dtype, cut(matrix(dtype, [3, 3]).wide)), matrix(dtype, [3, 2], 5)], np.linalg.solve,
                    tol=SOLVE, upper=upper, **kw)
            f.model("linalg.cholesky", [definite(dtype, [3, 3])],
                    lambda a: np.linalg.cholesky(a).T if upper else np.linalg.cholesky(a), tol=SOLVE, upper=upper, **kw)
            factor = np.linalg.cholesky(definite(dtype, [3, 3]).wide)
            factor = arr(dtype, factor.T if upper else factor)
            f.model("linalg.cholesky_inv", [factor], lambda l: np.linalg.inv(l.T @ l if upper else l @ l.T), tol=SOLVE, upper=upper, **kw)
        f.model("linalg.det", [matrix(dtype, [2, 3, 3])], np.linalg.det, tol=SOLVE, **kw)
        f.model("linalg.slogdet", [matrix(dtype, [2, 3, 3])], lambda a: list(np.linalg.slogdet(a)), tol=SOLVE, **({"dtypes": [dtype] * 2} if kw else {}))
    f.model("linalg.cholesky", [definite("float32", [2, 4, 4])], np.linalg.cholesky, tol=SOLVE)
    for layout in LAYOUTS:
        f.model("linalg.inv", [matrix("float32", [3, 3], 2, layout)], np.linalg.inv, tol=SOLVE)
        f.model("linalg.cholesky", [definite("float32", [3, 3], 2, layout)], np.linalg.cholesky, tol=SOLVE)
    f.model("linalg.det", [arr("int32", [[2, 1], [7, 4]])], lambda a: np.linalg.det(a.astype(float)), tol=SOLVE)
    f.model("linalg.det", [arr("float32", [[1.0, 2.0], [2.0, 4.0]])], lambda a: 0.0 * np.linalg.det(a), tol=SOLVE)
    f.model("linalg.slogdet", [arr("float32", [[0.0, 1.0], [1.0, 0.0]])], lambda a: list(np.linalg.slogdet(a)), tol=SOLVE)
    f.model("linalg.slogdet", [arr("float32", [[0.0, 0.0], [0.0, 0.0]])], lambda a: [np.float64(0), np.float64(-INF)], tol=SOLVE)
    f.model("linalg.inv", [lcg("float32", [20, 20], 9, -1.0, 1.0)], np.linalg.inv, tol={"rtol": 1e-3, "atol": 1e-3}, every=7)
    for shape in ([2, 3], [3, 2], [3, 3]):
        f.model("linalg.pinv", [matrix("float32", shape, 4)], np.linalg.pinv, tol=SOLVE)
    f.model("linalg.pinv", [arr("float32", [[1.0, 2.0], [2.0, 4.0], [0.0, 0.0]])], np.linalg.pinv, tol=SOLVE)


def lu(a):
    n = a.shape[-1]
    u, l, p = a.astype(float).copy(), np.eye(n), np.arange(n)
    for k in range(n):
        j = k + np.argmax(np.abs(u[k:, k]))
        u[[k, j]], p[[k, j]] = u[[j, k]], p[[j, k]]
        l[[k, j], :k] = l[[j, k], :k]
        for i in range(k + 1, n):
            l[i, k] = u[i, k] / u[k, k]
            u[i] -= l[i, k] * u[k]
    return [np.argsort(p), l, np.triu(u)]


def factors(f):
    for dtype in ("float32", "float64"):
        for shape in ([3, 3], [4, 2], [2, 4], [2, 3, 3]):
            f.model("linalg.qr", [matrix(dtype, shape, 3)], lambda a: list(np.linalg.qr(a)), tol=SOLVE)
        a = matrix(dtype, [4, 4], 3, ridge=False)
        f.model("linalg.lu", [a], lu, tol=SOLVE)
    f.model("linalg.qr", [matrix("float32", [3, 3], 3, "transposed")], lambda a: list(np.linalg.qr(a)), tol=SOLVE)
    f.model("linalg.lu", [matrix("float32", [3, 3], 8, "strided", ridge=False)], lu, tol=SOLVE)
    f.wheel("linalg.lu_factor", matrix("float32", [4, 4], 3, ridge=False), tol={"rtol": 1e-4, "atol": 1e-5})


def spectra(f):
    for dtype in ("float32", "float64", "complex64"):
        for shape in ([3, 3], [2, 4], [4, 3], [2, 3, 3]):
            a = matrix(dtype, shape, 6, ridge=False)
            if shape != [2, 4]:  # two free null vectors
                f.model("linalg.svd", [a], lambda v: list(np.linalg.svd(v)), tol=SOLVE, free=["columns", None, "rows"])
            f.model("linalg.svd", [a], lambda v: np.linalg.svd(v, compute_uv=False), tol=SOLVE, compute_uv=False)
    for dtype in ("float32", "float64", "complex64"):
        a = matrix(dtype, [2, 4, 4], 7).wide
        h = arr(dtype, (a + np.conj(np.swapaxes(a, -1, -2))) / 2)
        for uplo in ("L", "U"):
            f.model("linalg.eigh", [h], lambda v: list(np.linalg.eigh(v)), tol=SOLVE, free=[None, "columns"], UPLO=uplo)
            # Only the named triangle is read.
            half = arr(dtype, np.tril(h.wide) if uplo == "L" else np.triu(h.wide))
            f.model("linalg.eigvalsh", [half], lambda v: np.linalg.eigvalsh(v, UPLO=uplo), tol=SOLVE, UPLO=uplo)
    for dtype in ("float32", "complex64"):
        f.model("linalg.eigvals", [matrix(dtype, [4, 4], 11)], lambda v: np.linalg.eigvals(v).astype(complex), tol=SOLVE, free=["order"])
    f.model("linalg.eigvals", [arr("float32", [[0.0, -1.0], [1.0, 0.0]])], lambda v: np.linalg.eigvals(v).astype(complex), tol=SOLVE, free=["order"])
    for dtype in ("float32", "float64", "complex64"):
        for shape in ([1, 1], [4, 4], [2, 3, 3]):
            f.model("linalg.eig", [matrix(dtype, shape, 11)], lambda v: [w.astype(complex) for w in np.linalg.eig(v)], tol=SOLVE,
                    free=["order", "vectors"], **({"dtypes": ["complex64"] * 2} if dtype == "float64" else {}))
    f.model("linalg.eig", [arr("float32", [[0.0, -1.0], [1.0, 0.0]], "transposed")], lambda v: list(np.linalg.eig(v)), tol=SOLVE, free=["order", "vectors"])


def norms(f):
    vectors = [None, 0, 1, 2, 3, 0.5, -1, INF, -INF]
    matrices = [None, 1, -1, 2, -2, INF, -INF, "fro", "nuc"]
    x, a = arr("float32", [3.0, -4.0, 0.0, 1.5]), matrix("float32", [3, 4], 2, ridge=False)
    for order in vectors:
        f.model("linalg.norm", [x], lambda v: np.linalg.norm(v, order), tol=SOLVE, **({"ord": order} if order is not None else {}))
        f.model("linalg.norm", [a], lambda v: np.linalg.norm(v, order, axis=1), tol=SOLVE, axis=1, **({"ord": order} if order is not None else {}))
    for order in matrices:
        kw = {"ord": order} if order is not None else {}
        f.model("linalg.norm", [a], lambda v: np.linalg.norm(v, order), tol=SOLVE, **kw)
        f.model("linalg.norm", [matrix("float32", [2, 3, 3], 3, "transposed")], lambda v: np.linalg.norm(v, order, axis=(0, 2), keepdims=True),
                tol=SOLVE, axis=[0, 2], keepdims=True, **kw)
    f.model("linalg.norm", [sample("float32", [2, 3, 2])], lambda v: np.linalg.norm(v.ravel()), tol=SOLVE)
    f.model("linalg.norm", [arr("complex64", [3 + 4j, 1j])], lambda v: np.linalg.norm(v), tol=SOLVE)
    f.model("linalg.norm", [sample("int32", [4])], lambda v: np.linalg.norm(v), tol=SOLVE)
    for dtype in ("float64", *HALVES):
        f.model("linalg.norm", [sample(dtype, [3, 4])], lambda v: np.linalg.norm(v, axis=0), tol=SOLVE, axis=0, loose=10)


def crosses(f):
    a, b = sample("float32", [2, 3]), sample("float32", [2, 3], "reversed")
    f.wheel("linalg.cross", a, b)
    f.wheel("linalg.cross", sample("int32", [3, 2]), sample("int32", [3, 2], "transposed"), axis=0)
    f.wheel("linalg.cross", arr("float32", [1.0, 2.0]), arr("float32", [3.0, 4.0, 5.0]))
    f.wheel("linalg.cross", a, arr("float32", [1.0, 0.0, 2.0]))
    f.wheel("linalg.cross", arr("float32", [1.0, 2.0]), arr("float32", [3.0, 4.0]))
    f.error("Shape", "linalg.cross", sample("float32", [4]), sample("float32", [4]))
    f.error("Axis", "linalg.cross", a, b, axis=2)


def errors(f):
    rectangle, vector = sample("float32", [2, 3]), sample("float32", [3])
    for op in ("inv", "cholesky", "det", "slogdet", "eigh", "eig", "eigvals", "lu", "tri_inv", "cholesky_inv"):
        if op not in ("lu",):
            f.error("Shape", f"linalg.{op}", rectangle)
        f.error("Shape", f"linalg.{op}", vector)
    for op in ("qr", "svd", "pinv"):
        f.error("Shape", f"linalg.{op}", vector)
    for op in ("inv", "cholesky", "qr", "svd", "eigh", "eig"):
        f.error("Dtype", f"linalg.{op}", arr("int32", np.eye(2)))
    f.error("Shape", "linalg.solve", matrix("float32", [3, 3]), sample("float32", [4, 2]))
    f.error("Shape", "linalg.solve", rectangle, sample("float32", [2]))
    singular = arr("float32", [[1.0, 2.0], [2.0, 4.0]])
    f.error("Eval", "linalg.inv", arr("float32", np.zeros((2, 2))))
    f.error("Eval", "linalg.cholesky", arr("float32", [[1.0, 2.0], [2.0, 1.0]]), wheel=False)
    f.error("Eval", "linalg.solve", singular, sample("float32", [2]), wheel=False)
    f.error("Value", "linalg.eigh", arr("float32", np.eye(2)), UPLO="X", wheel=False)
    f.error("Value", "linalg.norm", sample("float32", [2, 2, 2]), ord=1)
    f.error("Value", "linalg.norm", sample("float32", [2, 2]), ord="max")
    f.error("Value", "linalg.norm", vector, ord="fro")
    f.error("Axis", "linalg.norm", vector, axis=1)
