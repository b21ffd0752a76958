"""Products: matmul and its family, einsum, Hadamard, masked, gathered and segmented matmul."""

import math

import numpy as np

from arrays import DTYPES, FLOATS, HALVES, INTS, Arr, arr, lcg
from case import COMPOSED
from reduce import sample

LAYOUTS = [None, "transposed", "strided", "reversed", "offset"]
# f32 error bound of a product of length K with |entries| <= 1, in atol.
DOT = {"float64": {"rtol": 1e-12, "atol": 1e-12}, "float32": {"rtol": 1e-5, "atol": 1e-5},
       "float16": {"ulp": 1, "atol": 1e-4}, "bfloat16": {"ulp": 1, "atol": 1e-4}, "complex64": {"rtol": 1e-5, "atol": 1e-5}}
SHAPES = [([3], [3]), ([2, 3], [3]), ([3], [3, 4]), ([2, 3], [3, 4]), ([1, 5], [5, 1]), ([2, 2, 3], [3, 4]), ([2, 3], [5, 3, 4]),
          ([2, 1, 2, 3], [4, 3, 2]), ([4, 3], [2, 1, 3, 2]), ([2, 0], [0, 3]), ([0, 2], [2, 3]), ([2, 3], [3, 0]), ([3, 1], [1, 3])]


def build(f):
    matmul(f)
    medium(f)
    relatives(f)
    einsum(f)
    hadamard(f)
    special_mm(f)
    errors(f)


def matmul(f):
    for dtype in (*FLOATS, "complex64"):
        for a, b in SHAPES:
            f.model("matmul", [sample(dtype, a), sample(dtype, b)], np.matmul, tol=DOT, loose=5)
    for x in LAYOUTS:
        for y in LAYOUTS:
            f.model("matmul", [sample("float32", [2, 3], x), sample("float32", [3, 4], y)], np.matmul, tol=DOT)
            f.model("matmul", [sample("bfloat16", [2, 2, 3], x), sample("bfloat16", [2, 3, 2], y)], np.matmul, tol=DOT, loose=5)
    same = np.ones((3, 1)) * [1.0, 2.0, 3.0]
    f.model("matmul", [arr("float32", same, "broadcast"), sample("float32", [3, 3])], np.matmul, tol=DOT)
    f.model("matmul", [sample("float16", [2, 3]), sample("bfloat16", [3, 2])], np.matmul, tol=DOT)
    f.model("matmul", [sample("float32", [2, 3]), sample("float16", [3, 2])], np.matmul, tol=DOT)
    f.model("matmul", [sample("float32", [2, 3]), sample("int32", [3, 2])], np.matmul, tol=DOT)
    f.model("matmul", [arr("float32", [[math.inf, 0.0], [math.nan, 1.0]]), arr("float32", [[1.0, 0.0], [2.0, 3.0]])],
            lambda a, b: np.matmul(a, b), tol=DOT)


def medium(f):
    """Sizes that reach every tile edge; every 97th (a prime) element of the product is stored."""
    for i, (m, k, n) in enumerate(((1, 300, 200), (5, 64, 33), (17, 129, 65), (64, 64, 64), (100, 70, 130), (130, 257, 48), (3, 1000, 7))):
        for dtype in ("float32", *HALVES, "float64"):
            a, b = lcg(dtype, [m, k], 2 * i, -1.0, 1.0), lcg(dtype, [k, n], 2 * i + 1, -1.0, 1.0)
            f.model("matmul", [a, b], np.matmul, tol=DOT, loose=30, every=97 if m * n > 100 else 1)
        t = lcg("float32", [n, k], 2 * i + 1, -1.0, 1.0)
        f.model("inner", [lcg("float32", [m, k], 2 * i, -1.0, 1.0), t], lambda a, b: a @ b.T, tol=DOT, every=97 if m * n > 100 else 1)
    f.model("matmul", [lcg("float32", [3, 20, 31], 40, -1.0, 1.0), lcg("float32", [3, 31, 18], 41, -1.0, 1.0)], np.matmul, tol=DOT, every=97)
    # Half precision accumulates in f32.
    for dtype in HALVES:
        f.spec("matmul", [lcg(dtype, [1, 4096], 0, 1.0, 1.0), lcg(dtype, [4096, 1], 0, 1.0, 1.0)], [arr(dtype, [[4096.0]])])


def relatives(f):
    a, b, c = sample("float32", [2, 3]), sample("float32", [3, 4]), sample("float32", [2, 4])
    for dtype in ("float32", "bfloat16", "float64"):
        x, y, z = sample(dtype, [2, 3]), sample(dtype, [3, 4]), sample(dtype, [2, 4])
        f.model("addmm", [z, x, y], lambda c, a, b: c + a @ b, tol=DOT, loose=5)
        f.model("addmm", [z, x, y], lambda c, a, b: 0.5 * (a @ b) - 2 * c, alpha=0.5, beta=-2.0, tol=DOT, loose=10)
    f.model("addmm", [arr("float32", [1.0, 2, 3, 4]), a, b], lambda c, a, b: c + a @ b, tol=DOT)
    f.model("addmm", [arr("float32", 1.0), sample("float32", [2, 2, 3]), b], lambda c, a, b: c + a @ b, tol=DOT)
    f.model("addmm", [c, sample("float32", [2, 3], "transposed"), sample("float32", [3, 4], "transposed")], lambda c, a, b: c + a @ b, tol=DOT)
    f.model("inner", [a, sample("float32", [4, 3])], np.inner, tol=DOT)
    f.model("inner", [sample("float32", [3]), sample("float32", [3])], np.inner, tol=DOT)
    f.model("inner", [arr("float32", 2.0), a], lambda x, y: x * y, tol=DOT)
    for dtype in ("int32", "float32", "uint8", "complex64", "bfloat16"):
        f.model("outer", [sample(dtype, [3]), sample(dtype, [2, 2])], lambda x, y: np.outer(x, y), tol=None)
        f.model("kron", [sample(dtype, [2, 2]), sample(dtype, [2, 3])], lambda x, y: np.kron(x, y), tol=None)
        f.model("vecdot", [sample(dtype, [2, 3]), sample(dtype, [2, 3])], lambda x, y: (np.conj(x) * y).sum(-1), tol=DOT, loose=5)
    f.wheel("kron", sample("float32", [2]), sample("float32", [2, 1, 3]))
    f.wheel("kron", sample("int32", [2, 3], "transposed"), sample("int32", [2, 2], "reversed"))
    f.model("vecdot", [sample("float32", [3, 2]), sample("float32", [3, 2])], lambda x, y: (x * y).sum(0), axis=0, tol=DOT)
    x, y = sample("float32", [2, 3, 4]), sample("float32", [4, 3, 2])
    f.model("tensordot", [x, y], lambda a, b: np.tensordot(a, b, 1), axes=1, tol=DOT)
    f.model("tensordot", [x, sample("float32", [3, 4, 5])], lambda a, b: np.tensordot(a, b, 2), tol=DOT)
    f.model("tensordot", [x, y], lambda a, b: np.tensordot(a, b, [[1, 2], [1, 0]]), axes=[[1, 2], [1, 0]], tol=DOT)
    f.model("tensordot", [x, y], lambda a, b: np.tensordot(a, b, 0), axes=0, tol=DOT, every=7)
    f.model("tensordot", [x, y], lambda a, b: np.tensordot(a, b, [[-1], [0]]), axes=[[-1], [0]], tol=DOT)


def einsum(f):
    cases = [
        ("ij,jk->ik", [2, 3], [3, 4]), ("ij,jk", [2, 3], [3, 4]), ("ij->ji", [2, 3]), ("ij->", [2, 3]), ("ij->j", [2, 3]), ("ii->i", [3, 3]),
        ("ii", [3, 3]), ("ii->", [3, 3]), ("i,i->", [3], [3]), ("i,j->ij", [2], [3]), ("bij,bjk->bik", [2, 2, 3], [2, 3, 2]),
        ("...ij,...jk->...ik", [2, 2, 3], [3, 2]), ("ij,kj->ik", [2, 3], [4, 3]), ("ij,ij->ij", [2, 3], [2, 3]), ("ijk->kij", [2, 3, 4]),
        ("ij,jk,kl->il", [2, 3], [3, 4], [4, 2]), ("iij->ij", [2, 2, 3]), ("abc,cd,be->ade", [2, 3, 2], [2, 2], [3, 2]), ("ba", [2, 3]),
        ("...->...", [2, 3]), ("i...->...", [2, 3]), ("ij,ij->", [2, 3], [2, 3]), ("bhqd,bhkd->bhqk", [1, 2, 2, 3], [1, 2, 4, 3]),
    ]
    for subscripts, *shapes in cases:
        inputs = [sample("float32", s) for s in shapes]
        f.model("einsum", inputs, lambda *v: np.einsum(subscripts, *v), tol=DOT, loose=3, subscripts=subscripts)
    f.wheel("einsum", sample("int32", [2, 3]), subscripts="ij->ji")
    f.wheel("einsum", sample("int32", [2]), sample("int32", [3]), subscripts="i,j->ij")
    f.model("einsum", [sample("bfloat16", [2, 3], "transposed"), sample("bfloat16", [3, 4], "strided")], lambda a, b: a @ b,
            tol=DOT, subscripts="ij,jk->ik")
    a = sample("float32", [2, 3])
    f.error("Value", "einsum", a, a, subscripts="ij")
    f.error("Value", "einsum", a, subscripts="ij->ii")
    f.error("Value", "einsum", a, subscripts="ij->ijk")
    f.error("Shape", "einsum", a, subscripts="ijk->i")
    f.error("Shape", "einsum", a, a, subscripts="ij,jk->ik")
    # Chains whose cheapest order is unique.
    for subscripts, *shapes in (("ij,jk->ik", [3, 4], [4, 5]), ("ii->i", [3, 3]), ("ij,jk,kl->il", [2, 9], [9, 3], [3, 8]), ("ij,jk,kl->il", [9, 2], [2, 8], [8, 2]),
                                ("ij,jk,kl,lm->im", [2, 9], [9, 3], [3, 8], [8, 2]), ("...ij,...jk->...ik", [2, 3, 4], [4, 5])):
        f.wheel("einsum_path", *[sample("float32", s) for s in shapes], subscripts=subscripts)
    f.error("Value", "einsum_path", a, a, subscripts="ij")


def hadamard(f):
    for n in (1, 2, 8, 12, 20, 28, 24, 40):
        x = lcg("float32", [2, n], n, -1.0, 1.0)
        f.wheel("hadamard_transform", x, tol={"rtol": 2e-6, "atol": 2e-6})
    x = sample("float32", [3, 8])
    f.wheel("hadamard_transform", x, scale=1.0, tol={"rtol": 2e-6, "atol": 2e-6})
    f.model("hadamard_transform", [sample("bfloat16", [2, 4])],
            lambda v: v @ np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2, differs=True)
    f.wheel("hadamard_transform", sample("float32", [4, 8], "transposed"), tol={"rtol": 2e-6, "atol": 2e-6})
    f.error("Shape", "hadamard_transform", sample("float32", [2, 7]))
    f.error("Shape", "hadamard_transform", sample("float32", [2, 36]), wheel=False)


def special_mm(f):
    # Masks in blocks of 32.
    a, b = lcg("float32", [40, 48], 1, -1.0, 1.0), lcg("float32", [48, 36], 2, -1.0, 1.0)
    expand = lambda m, r, c: np.repeat(np.repeat(m, 32, 0), 32, 1)[:r, :c]
    out = arr("bool", [[True, False], [True, True]])
    lhs, rhs = arr("bool", [[True, True], [False, True]]), arr("bool", [[True, False], [True, True]])
    weights = arr("float32", [[0.5, 2.0], [1.0, 0.0]])
    model = lambda a, b, o, l, r: ((a * (1 if l is None else expand(l, 40, 48))) @ (b * (1 if r is None else expand(r, 48, 36)))) * (
        1 if o is None else expand(o, 40, 36))
    for masks in ((None, None, None), (out, None, None), (out, lhs, rhs), (None, lhs, rhs), (weights, weights, weights)):
        f.model("block_masked_mm", [a, b, *masks], model, tol=DOT, every=37, block_size=32)
    # Gathered matrices.
    a, b = sample("float32", [4, 2, 3]), sample("float32", [3, 3, 2])
    li, ri = arr("uint32", [0, 3, 1]), arr("uint32", [2, 2, 0])
    f.model("gather_mm", [a, b, li, ri], lambda a, b, i, j: a[i] @ b[j], tol=DOT)
    f.model("gather_mm", [a, b, None, arr("uint32", [0, 0, 1, 2])], lambda a, b, i, j: a @ b[j], tol=DOT, sorted_indices=True)
    f.model("gather_mm", [a, b, arr("uint32", [[0], [3]]), arr("uint32", [1, 2])],
            lambda a, b, i, j: a[np.broadcast_to(i, (2, 2))] @ b[np.broadcast_to(j, (2, 2))], tol=DOT)
    f.model("gather_mm", [sample("float32", [2, 2, 2, 3]), b, arr("uint32", [3, 0]), arr("uint32", [1, 1])],
            lambda a, b, i, j: a.reshape(4, 2, 3)[i] @ b[j], tol=DOT)
    for dtype in (*HALVES, "float64"):
        f.model("gather_mm", [sample(dtype, [4, 2, 3]), sample(dtype, [3, 3, 2]), li, ri], lambda a, b, i, j: a[i] @ b[j],
                tol=DOT, dtypes=[dtype])
    f.error("Index", "gather_mm", a, b, arr("uint32", [4]), arr("uint32", [0]), wheel=False)
    f.error("Index", "gather_mm", a, b, arr("uint32", [0]), arr("uint32", [3]), wheel=False)
    f.error("Shape", "gather_mm", a, sample("float32", [3, 4, 2]), li, ri)
    # Segments of K.
    a, b, s = sample("float32", [2, 6]), sample("float32", [6, 3]), arr("uint32", [[0, 2], [2, 2], [1, 6]])
    f.model("segmented_mm", [a, b, s], lambda a, b, s: np.stack([a[:, i:j] @ b[i:j] for i, j in s]), tol=DOT)
    f.model("segmented_mm", [sample("float32", [2, 6], "transposed"), b, arr("uint32", [[[0, 6]], [[3, 4]]])],
            lambda a, b, s: np.stack([[a[:, i:j] @ b[i:j] for i, j in r] for r in s]), tol=DOT)


def errors(f):
    a = sample("float32", [2, 3])
    f.error("Shape", "matmul", a, a)
    f.error("Shape", "matmul", a, arr("float32", 1.0))
    f.error("Shape", "matmul", sample("float32", [2, 2, 3]), sample("float32", [3, 3, 2]))
    f.error("Shape", "addmm", sample("float32", [3, 3]), a, sample("float32", [3, 4]))
    f.error("Shape", "inner", a, sample("float32", [2, 2]))
    f.error("Shape", "tensordot", a, a, axes=1)
    f.error("Shape", "vecdot", a, sample("float32", [2, 2]))
    for dtype in ("int32", "bool", "uint8"):
        f.error("Dtype", "matmul", sample(dtype, [2, 2]), sample(dtype, [2, 2]))
    f.error("Dtype", "inner", sample("int32", [2]), sample("int32", [2]))
    f.error("Dtype", "tensordot", sample("int32", [2, 2]), sample("int32", [2, 2]), axes=1)
    f.error("Dtype", "einsum", sample("int32", [2, 2]), sample("int32", [2, 2]), subscripts="ij,jk->ik")
    f.error("Dtype", "addmm", sample("int32", [2, 2]), sample("int32", [2, 2]), sample("int32", [2, 2]))
