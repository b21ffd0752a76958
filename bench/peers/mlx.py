# MLX on its CPU device. Slow rows run once.
import sys

try:
    import mlx.core as mx
except ImportError:
    note("mlx is not installed for " + sys.executable + "; run: " + sys.executable + ' -m pip install "mlx[cpu]"')
    sys.exit(0)

mx.set_default_device(mx.cpu)
BF = mx.bfloat16


def rand(*shape, dtype=mx.float32):
    return mx.random.normal(shape).astype(dtype)


def ready(*arrays):
    mx.eval(*arrays)
    return arrays


def matmul(dtype):
    def prepare():
        a, b = ready(rand(2048, 2048, dtype=dtype), rand(2048, 2048, dtype=dtype))
        return lambda: mx.eval(a @ b)

    return prepare


def quantized(rows, k, n, copies):
    """x (rows, k) times W^T, W (n, k) in 4 bits; the weights rotate through `copies` matrices."""

    def prepare():
        x = rand(rows, k, dtype=BF)
        ws = [mx.quantize(rand(n, k, dtype=BF), group_size=64, bits=4)]
        for _ in range(copies - 1):
            ws.append(tuple(mx.array(a) + mx.zeros((), a.dtype) for a in ws[0]))
        ready(x, ws)
        turn = [0]

        def work():
            turn[0] = (turn[0] + 1) % copies
            w, s, b = ws[turn[0]]
            mx.eval(mx.quantized_matmul(x, w, s, b, transpose=True, group_size=64, bits=4))

        return work

    return prepare


def silu():
    x, y, z = ready(rand(1 << 22), rand(1 << 22), rand(1 << 22))
    f = mx.compile(lambda x, y, z: x * mx.sigmoid(x) * y + z)
    return lambda: mx.eval(f(x, y, z))


def softmax():
    (x,) = ready(rand(4096, 4096))
    return lambda: mx.eval(mx.softmax(x, axis=-1))


def rms_norm():
    x, w = ready(rand(4096, 4096), rand(4096))
    return lambda: mx.eval(mx.fast.rms_norm(x, w, 1e-5))


def attention(queries, context, copies, mask):
    """32 query heads on 8 key heads of 128."""

    def prepare():
        q = rand(1, 32, queries, 128, dtype=BF)
        kv = [(rand(1, 8, context, 128, dtype=BF), rand(1, 8, context, 128, dtype=BF)) for _ in range(copies)]
        ready(q, kv)
        turn = [0]

        def work():
            turn[0] = (turn[0] + 1) % copies
            k, v = kv[turn[0]]
            mx.eval(mx.fast.scaled_dot_product_attention(q, k, v, scale=128**-0.5, mask=mask))

        return work

    return prepare


def unary(f):
    def prepare():
        (x,) = ready(rand(1 << 24))
        return lambda: mx.eval(f(x))

    return prepare


def chain():
    (a,) = ready(mx.ones((16,)))

    def work():
        z = a
        for _ in range(1000):
            z = z + a
        mx.eval(z)

    return work


bench("matmul_f32_2048", "GFLOP/s", 2 * 2048**3, matmul(mx.float32))
bench("matmul_bf16_2048", "GFLOP/s", 2 * 2048**3, matmul(BF))
Q = 4096 * 14336 * (0.5 + 4 / 64)
bench("qmv_4bit_g64_4096x14336_bf16", "GB/s", Q, quantized(1, 4096, 14336, 2))
bench("qmm_4bit_g64_512x4096x4096_bf16", "GFLOP/s", 2 * 512 * 4096 * 4096, quantized(512, 4096, 4096, 1))
bench("fused_silu_mul_add_4m", "GB/s", 4 * 4 * 2**22, silu)
bench("softmax_f32_4096", "GB/s", 2 * 4 * 4096**2, softmax)
bench("rms_norm_f32_4096", "GB/s", 2 * 4 * 4096**2, rms_norm)
bench("sdpa_prefill_32x1024x128_bf16", "GFLOP/s", 2 * 32 * 1024 * 1024 * 128, attention(1024, 1024, 1, "causal"))
bench("sdpa_decode_32x4096x128_bf16", "GB/s", 2 * 2 * 8 * 4096 * 128, attention(1, 4096, 2, None))
bench("graph_us_per_op", "us/op", 1000, chain)
bench("exp_f32_16m", "GB/s", 2 * 4 * 2**24, unary(mx.exp))
bench("tanh_f32_16m", "GB/s", 2 * 4 * 2**24, unary(mx.tanh))
bench("erf_f32_16m", "GB/s", 2 * 4 * 2**24, unary(mx.erf))
