# PyTorch on the CPU: the step of training above all, written as its users write it.
import sys

try:
    import torch
    import torch.nn.functional as F
except (ImportError, OSError) as e:
    note(f"torch cannot be used ({e}); run: {sys.executable} -m pip install torch")
    sys.exit(0)

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
VOCABULARY, WIDTH, HEADS, LAYERS, BATCH, LENGTH = 2048, 256, 8, 4, 16, 256


def matmul(dtype):
    def prepare():
        a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        return lambda: a @ b

    return prepare


def silu():
    x, y, z = torch.randn(1 << 22), torch.randn(1 << 22), torch.randn(1 << 22)
    return lambda: F.silu(x) * y + z


def softmax():
    x = torch.randn(4096, 4096)
    return lambda: torch.softmax(x, -1)


def rms_norm():
    x, w = torch.randn(4096, 4096), torch.randn(4096)
    return lambda: F.rms_norm(x, (4096,), w, 1e-5)


def unary(f):
    def prepare():
        x = torch.randn(1 << 24)
        return lambda: f(x)

    return prepare


def attention(queries, context):
    def prepare():
        q = torch.randn(1, 32, queries, 128).bfloat16()
        k, v = (torch.randn(1, 8, context, 128).bfloat16() for _ in range(2))
        causal = queries > 1
        return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    return prepare


def weight(rows, columns):
    return (torch.rand(rows, columns) * 2 - 1).mul_((3 / rows) ** 0.5).requires_grad_()


def layer(x, p):
    def heads(y):
        return y.view(BATCH, LENGTH, HEADS, WIDTH // HEADS).transpose(1, 2)

    h = F.rms_norm(x, (WIDTH,), p[6], 1e-5)
    y = F.scaled_dot_product_attention(heads(h @ p[0]), heads(h @ p[1]), heads(h @ p[2]), is_causal=True)
    x = y.transpose(1, 2).reshape(BATCH, LENGTH, WIDTH) @ p[3] + x
    h = F.rms_norm(x, (WIDTH,), p[7], 1e-5)
    return F.silu(h @ p[4]) @ p[5] + x


def train_step():
    """The model, loss and update of lapis's benchmark of this name."""
    table, out = weight(VOCABULARY, WIDTH), weight(WIDTH, VOCABULARY)
    layers = []
    for _ in range(LAYERS):
        square = [weight(WIDTH, WIDTH) for _ in range(4)]
        scales = [torch.ones(WIDTH, requires_grad=True) for _ in range(2)]
        layers.append(square + [weight(WIDTH, 4 * WIDTH), weight(4 * WIDTH, WIDTH)] + scales)
    every = [table, out] + [p for l in layers for p in l]
    update = torch.optim.SGD(every, lr=1e-3)
    x, y = (torch.randint(0, VOCABULARY, (BATCH, LENGTH)) for _ in range(2))

    def work():
        h = F.embedding(x, table)
        for p in layers:
            h = layer(h, p)
        update.zero_grad()
        F.cross_entropy((h @ out).view(-1, VOCABULARY), y.view(-1)).backward()
        update.step()

    return work


WEIGHTS = LAYERS * 12 * WIDTH * WIDTH + WIDTH * VOCABULARY
STEP = 6 * WEIGHTS * BATCH * LENGTH + 3 * 2 * BATCH * LENGTH * LENGTH * WIDTH * LAYERS

bench("matmul_f32_2048", "GFLOP/s", 2 * 2048**3, matmul(torch.float32))
bench("matmul_bf16_2048", "GFLOP/s", 2 * 2048**3, matmul(torch.bfloat16))
bench("softmax_f32_4096", "GB/s", 2 * 4 * 4096**2, softmax)
bench("rms_norm_f32_4096", "GB/s", 2 * 4 * 4096**2, rms_norm)
bench("sdpa_prefill_32x1024x128_bf16", "GFLOP/s", 2 * 32 * 1024 * 1024 * 128, attention(1024, 1024))
bench("sdpa_decode_32x4096x128_bf16", "GB/s", 2 * 2 * 8 * 4096 * 128, attention(1, 4096))
bench("fused_silu_mul_add_4m", "GB/s", 4 * 4 * 2**22, silu)
bench("exp_f32_16m", "GB/s", 2 * 4 * 2**24, unary(torch.exp))
bench("tanh_f32_16m", "GB/s", 2 * 4 * 2**24, unary(torch.tanh))
bench("erf_f32_16m", "GB/s", 2 * 4 * 2**24, unary(torch.erf))
bench("train_step_4m_16x256_f32", "GFLOP/s", STEP, train_step)
