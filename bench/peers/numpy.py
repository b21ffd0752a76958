# numpy: f32 work only. Arrays are preallocated where numpy can write into them.
import sys

try:
    import numpy as np
except ImportError:
    note("numpy is not installed for " + sys.executable + "; run: " + sys.executable + " -m pip install numpy")
    sys.exit(0)

rng = np.random.default_rng(0)


def rand(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


def matmul():
    a, b, o = rand(2048, 2048), rand(2048, 2048), np.empty((2048, 2048), np.float32)
    return lambda: np.matmul(a, b, out=o)


def silu():
    x, y, z = rand(1 << 22), rand(1 << 22), rand(1 << 22)
    return lambda: x / (1 + np.exp(-x)) * y + z


def softmax():
    x = rand(4096, 4096)

    def work():
        e = np.exp(x - x.max(-1, keepdims=True))
        e /= e.sum(-1, keepdims=True)
        return e

    return work


def rms_norm():
    x, w = rand(4096, 4096), rand(4096)
    return lambda: x * (1 / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-5)) * w


def unary(f):
    def prepare():
        x, o = rand(1 << 24), np.empty(1 << 24, np.float32)
        return lambda: f(x, out=o)

    return prepare


bench("matmul_f32_2048", "GFLOP/s", 2 * 2048**3, matmul)
bench("fused_silu_mul_add_4m", "GB/s", 4 * 4 * 2**22, silu)
bench("softmax_f32_4096", "GB/s", 2 * 4 * 4096**2, softmax)
bench("rms_norm_f32_4096", "GB/s", 2 * 4 * 4096**2, rms_norm)
bench("exp_f32_16m", "GB/s", 2 * 4 * 2**24, unary(np.exp))
bench("tanh_f32_16m", "GB/s", 2 * 4 * 2**24, unary(np.tanh))
