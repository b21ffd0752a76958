"""Random numbers: the same key gives the same bits."""

import numpy as np

import mlx.core as mx
from arrays import HALVES, INTS, Arr, Scalar, arr, from_mx, lcg


def key(seed=42):
    return from_mx(mx.random.key(seed))


def build(f):
    keys(f)
    uniform(f)
    normal(f)
    discrete(f)
    others(f)
    errors(f)


def keys(f):
    for seed in (0, 1, 42, 2**33 + 5, 2**64 - 1):
        f.wheel("random.key", seed=seed)
    for n in (1, 2, 3, 4, 7):
        f.wheel("random.split", key(n), num=n)
    f.wheel("random.split", key())
    for seed, n, draws in ((7, 2, 2), (0, 3, 4)):
        mx.random.seed(seed)
        f.add("random.seed", [], {"seed": seed, "shape": [n], "draws": draws}, "mlx", [from_mx(mx.random.uniform(shape=(n,))) for _ in range(draws)])


def uniform(f):
    k = key()
    for shape in ([], [1], [4], [7], [2, 3], [0], [33]):
        f.wheel("random.uniform", None, None, k, shape=shape)
    f.wheel("random.uniform", Scalar(-2.0), Scalar(3.0), k, shape=[5])
    f.wheel("random.uniform", arr("float32", [0.0, 10.0]), arr("float32", [[1.0], [20.0]]), k, shape=[2, 2])
    for dtype in HALVES:
        f.wheel("random.uniform", None, None, k, shape=[9], dtype=dtype)
        f.wheel("random.uniform", Scalar(-1.0), Scalar(2.0), k, shape=[9], dtype=dtype)
    f.wheel("random.uniform", None, None, key(3), shape=[1000], every=37)
    f.spec("random.uniform", [None, None, k], [arr("float64", doubles(42, 6))], shape=[6], dtype="float64")


def threefry(k0, k1, c0, c1):
    m = 0xFFFFFFFF
    ks = [k0, k1, k0 ^ k1 ^ 0x1BD11BDA]
    a, b = (c0 + k0) & m, (c1 + k1) & m
    for i in range(5):
        for r in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            a = (a + b) & m
            b = ((b << r | b >> (32 - r)) & m) ^ a
        a, b = (a + ks[(i + 1) % 3]) & m, (b + ks[(i + 2) % 3] + i + 1) & m
    return a, b


def doubles(seed, n):
    """lapis: float64 uniforms take 8 bytes a value from the same layout, (b >> 11) * 2^-53."""
    half = n
    words = [0] * (2 * n)
    for i in range(half):
        words[i], words[half + i] = threefry(0, seed, i, i + half)
    return [((words[2 * i] | words[2 * i + 1] << 32) >> 11) * 2.0**-53 for i in range(n)]


def normal(f):
    k = key()
    for shape in ([], [6], [3, 5], [0]):
        f.wheel("random.normal", None, None, k, shape=shape)
    f.wheel("random.normal", Scalar(1.5), Scalar(2.0), k, shape=[7])
    f.wheel("random.normal", arr("float32", [0.0, 100.0]), arr("float32", [1.0, 0.5]), k, shape=[3, 2])
    for dtype in (*HALVES, "complex64"):
        f.wheel("random.normal", None, None, k, shape=[9], dtype=dtype)
    f.wheel("random.normal", None, None, key(5), shape=[3000], every=97)


def discrete(f):
    k = key()
    f.wheel("random.randint", Scalar(-5), Scalar(10), k, shape=[8])
    f.wheel("random.randint", Scalar(0), Scalar(2**31 - 1), k, shape=[8])
    f.wheel("random.randint", arr("int32", [0, 100]), arr("int32", [10, 1000]), k, shape=[3, 2])
    for dtype in ("uint8", "int64", "bool", "int16"):
        f.wheel("random.randint", Scalar(0), Scalar(2 if dtype == "bool" else 100), k, shape=[8], dtype=dtype)
    f.wheel("random.bernoulli", Scalar(0.3), k, shape=[8])
    f.wheel("random.bernoulli", None, k, shape=[8])
    f.wheel("random.bernoulli", arr("float32", [0.0, 1.0, 0.5, 0.9]), k)
    f.wheel("random.bernoulli", arr("float32", [0.1, 0.9]), k, shape=[3, 2])
    for n in (1, 8, 100):
        f.wheel("random.permutation", Scalar(n), k)
    f.wheel("random.permutation", arr("int32", np.arange(12).reshape(3, 4)), k)
    f.wheel("random.permutation", arr("int32", np.arange(12).reshape(3, 4), "transposed"), k, axis=1)
    logits = lcg("float32", [3, 8], 1, -2.0, 2.0)
    one = Arr("float32", logits.values[:1])
    f.wheel("random.categorical", logits, k)
    f.wheel("random.categorical", logits, k, num_samples=4)
    f.wheel("random.categorical", logits, k, shape=[5, 3])
    f.wheel("random.categorical", logits, k, axis=0)
    f.wheel("random.categorical", one, k)
    f.wheel("random.categorical", one, k, num_samples=20)
    f.wheel("random.categorical", Arr("float32", logits.values[0]), k)
    f.wheel("random.categorical", Arr("float32", logits.values[0]), k, num_samples=20)
    f.wheel("random.categorical", arr("float32", [[0.0, np.inf, 1.0, -np.inf, np.inf]]), k, num_samples=10)
    f.wheel("random.categorical", arr("float32", [[-np.inf, 0.0, -np.inf]]), k, num_samples=3)


def others(f):
    k = key()
    for shape in ([], [6], [2, 3]):
        f.wheel("random.gumbel", k, shape=shape)
        f.wheel("random.laplace", k, shape=shape, tol={"ulp": 1})
    f.wheel("random.laplace", k, shape=[5], loc=1.0, scale=2.0, tol={"ulp": 2})
    f.wheel("random.truncated_normal", Scalar(-1.0), Scalar(2.0), k, shape=[9])
    f.wheel("random.truncated_normal", arr("float32", [-1.0, 0.0]), arr("float32", [1.0, 3.0]), k)
    f.wheel("random.multivariate_normal", arr("float32", [1.0, -1.0]), arr("float32", [[2.0, 0.0], [0.0, 0.5]]), k, shape=[4], tol={"rtol": 1e-4, "atol": 1e-4})
    f.wheel("random.multivariate_normal", arr("float32", [[1.0, -1.0], [5.0, 0.0]]), arr("float32", np.stack([np.eye(2), [[2.0, 0.3], [0.3, 0.5]]])), k,
            tol={"rtol": 1e-4, "atol": 1e-4})
    f.wheel("random.multivariate_normal", arr("float32", [0.0, 0.0]), arr("float32", [[2.0, 0.5], [0.5, 1.0]]), k, shape=[3], tol={"rtol": 1e-4, "atol": 1e-4})


def errors(f):
    k = key()
    f.error("Shape", "random.multivariate_normal", arr("float32", [0.0, 0.0]), arr("float32", np.eye(3)), k, shape=[2])
    f.error("Shape", "random.multivariate_normal", arr("float32", 0.0), arr("float32", np.eye(1)), k)
    f.error("Shape", "random.multivariate_normal", arr("float32", np.zeros((3, 2))), arr("float32", np.eye(2)), k, shape=[2])
    f.error("Dtype", "random.multivariate_normal", arr("float32", [0.0]), arr("float32", np.eye(1)), k, dtype="int32")
    f.error("Dtype", "random.uniform", None, None, k, shape=[2], dtype="int32")
    f.error("Dtype", "random.normal", None, None, k, shape=[2], dtype="int32")
    f.error("Dtype", "random.randint", Scalar(0), Scalar(5), k, shape=[2], dtype="float32")
    f.error("Value", "random.uniform", None, None, arr("uint32", [1, 2, 3]), shape=[2])
    f.error("Value", "random.uniform", None, None, arr("int32", [1, 2]), shape=[2])
    f.error("Shape", "random.uniform", arr("float32", [0.0, 1.0, 2.0]), None, k, shape=[2])
    f.error("Shape", "random.bernoulli", arr("float32", [0.1, 0.2, 0.3]), k, shape=[2])
    f.error("Axis", "random.categorical", lcg("float32", [3, 8], 1, -2.0, 2.0), k, axis=2)
    f.error("Value", "random.split", k, num=-1, wheel=False)
