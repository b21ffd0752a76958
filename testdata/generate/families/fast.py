"""Fast ops: norms, rotary embeddings, attention, cross entropy, gated delta."""

import math

import numpy as np

from arrays import FLOATS, HALVES, Arr, Scalar, arr, lcg, rounded
from case import COMPOSED
from reduce import sample

INF, NAN = math.inf, math.nan
LAYOUTS = [None, "transposed", "strided", "reversed", "offset"]
# In half precision the normalized value is rounded before the weight multiplies it: two roundings.
TWICE = {**COMPOSED, "float16": {"ulp": 2, "atol": 1e-6}, "bfloat16": {"ulp": 2, "atol": 1e-6}}
# cos and sin are rounded to the dtype, products and sums after that.
ROTATED = {**COMPOSED, "float32": {"rtol": 1e-5, "atol": 1e-5}, "float64": {"rtol": 1e-10, "atol": 1e-10},
           "float16": {"rtol": 2e-3, "atol": 4e-3}, "bfloat16": {"rtol": 1e-2, "atol": 3e-2}}
ATTENTION = {**COMPOSED, "float32": {"rtol": 1e-5, "atol": 2e-6}, "float16": {"ulp": 2, "atol": 1e-4}, "bfloat16": {"ulp": 2, "atol": 1e-3}}


def build(f):
    norms(f)
    rope(f)
    attention(f)
    cross_entropy(f)
    gated_delta(f)


def rms(x, w, eps):
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return y if w is None else y * w


def layer(x, w, b, eps):
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    y = y if w is None else y * w
    return y if b is None else y + b


def norms(f):
    for dtype in FLOATS:
        x, w, b = sample(dtype, [2, 8]), sample(dtype, [8]), sample(dtype, [8], "reversed")
        f.model("fast.rms_norm", [x, w], lambda x, w: rms(x, w, 1e-5), tol=TWICE, loose=5, eps=1e-5)
        f.model("fast.rms_norm", [x, None], lambda x, w: rms(x, w, 1e-5), tol=TWICE, loose=5, eps=1e-5)
        f.model("fast.layer_norm", [x, w, b], lambda x, w, b: layer(x, w, b, 1e-5), tol=ROTATED, loose=5, eps=1e-5)
        f.model("fast.layer_norm", [x, w, None], lambda x, w, b: layer(x, w, b, 1e-5), tol=TWICE, loose=5, eps=1e-5)
        f.model("fast.layer_norm", [x, None, None], lambda x, w, b: layer(x, w, b, 1e-5), tol=TWICE, loose=5, eps=1e-5)
    for layout in LAYOUTS:
        x, w = sample("float32", [2, 3, 4], layout), sample("float32", [4], layout)
        f.model("fast.rms_norm", [x, w], lambda x, w: rms(x, w, 0.1), eps=0.1)
        f.model("fast.layer_norm", [x, w, w], lambda x, w, b: layer(x, w, b, 0.1), eps=0.1)
    f.model("fast.rms_norm", [sample("bfloat16", [2, 4]), sample("float32", [4])], lambda x, w: rms(x, w, 1e-5), tol=ROTATED["bfloat16"], loose=80, eps=1e-5)
    f.model("fast.layer_norm", [sample("float16", [2, 4]), sample("float32", [4]), sample("float32", [4])],
            lambda x, w, b: layer(x, w, b, 1e-5), tol=ROTATED["float16"], loose=10, eps=1e-5)
    x = lcg("float32", [3, 1000], 1, -2.0, 2.0)
    f.model("fast.rms_norm", [x, lcg("float32", [1000], 2, 0.5, 1.5)], lambda x, w: rms(x, w, 1e-6), eps=1e-6, every=97)
    f.model("fast.layer_norm", [x, lcg("float32", [1000], 2, 0.5, 1.5), None], lambda x, w, b: layer(x, w, b, 1e-6), eps=1e-6, every=97)
    # The squares are summed in f32.
    f.model("fast.rms_norm", [lcg("float16", [1, 4096], 0, 300.0, 300.0), None], lambda x, w: rms(x, w, 1e-6), eps=1e-6, every=1001, tol=TWICE, differs=True)
    x = sample("float32", [2, 4])
    f.error("Shape", "fast.rms_norm", x, sample("float32", [3]), eps=1e-5)
    f.error("Shape", "fast.rms_norm", x, sample("float32", [1, 4]), eps=1e-5)
    f.error("Shape", "fast.layer_norm", x, sample("float32", [4]), sample("float32", [3]), eps=1e-5)
    f.error("Shape", "fast.rms_norm", arr("float32", 1.0), None, eps=1e-5)
    f.error("Dtype", "fast.rms_norm", sample("int32", [2, 4]), None, eps=1e-5)
    f.error("Dtype", "fast.layer_norm", sample("int32", [2, 4]), None, None, eps=1e-5)


def rotate(a, dims, traditional, base, scale, offset, freqs=None):
    *_, t, d = a.shape
    half = dims // 2
    inverse = 1 / freqs if freqs is not None else base ** (-2.0 * np.arange(half) / dims)
    offset = np.asarray(offset, float).reshape((-1,) + (1,) * (a.ndim - 1))
    theta = (offset + np.arange(t)[:, None]) * scale * inverse
    cos, sin = np.cos(theta), np.sin(theta)
    out = a.copy()
    one, two = (slice(0, dims, 2), slice(1, dims, 2)) if traditional else (slice(0, half), slice(half, dims))
    x, y = a[..., one], a[..., two]
    out[..., one], out[..., two] = x * cos - y * sin, x * sin + y * cos
    return out


def rope(f):
    def case(x, offset, freqs=None, **kw):
        f.model("fast.rope", [x, offset, freqs], lambda a, o, q: rotate(a, kw["dims"], kw["traditional"], kw["base"], kw["scale"], o, q),
                tol=ROTATED, loose=20, **kw)

    for dtype in FLOATS:
        for traditional in (False, True):
            case(sample(dtype, [1, 2, 3, 8]), Scalar(0), dims=8, traditional=traditional, base=10000.0, scale=1.0)
            case(sample(dtype, [1, 2, 3, 8]), Scalar(5), dims=4, traditional=traditional, base=10000.0, scale=0.5)
    for layout in LAYOUTS:
        for traditional in (False, True):
            case(sample("float32", [2, 2, 3, 6], layout), Scalar(7), dims=6, traditional=traditional, base=100.0, scale=1.0)
    x = sample("float32", [2, 3, 4])
    case(x, Scalar(1), dims=4, traditional=False, base=10000.0, scale=1.0)
    case(x, arr("int32", 3), dims=4, traditional=False, base=10000.0, scale=1.0)
    case(sample("float32", [2, 1, 3, 4]), arr("int32", [3, 100]), dims=4, traditional=False, base=10000.0, scale=1.0)
    case(sample("float32", [2, 2, 1, 4]), arr("int32", [3, 1000]), dims=4, traditional=True, base=10000.0, scale=1.0)
    case(x, Scalar(2), arr("float32", [1.5, 20.0]), dims=4, traditional=False, base=None, scale=1.0)
    case(x, Scalar(2), arr("float32", [1.5, 20.0]), dims=4, traditional=True, base=None, scale=2.0)
    bad = dict(traditional=False, base=10000.0, scale=1.0)
    f.error("Shape", "fast.rope", sample("float32", [4, 4]), Scalar(0), None, dims=4, **bad)
    f.error("Value", "fast.rope", x, Scalar(0), arr("float32", [1.0, 2.0]), dims=4, **bad)
    f.error("Value", "fast.rope", x, Scalar(0), None, dims=4, traditional=False, base=None, scale=1.0)
    f.error("Value", "fast.rope", x, Scalar(0), None, dims=3, **bad, wheel=False)
    f.error("Value", "fast.rope", x, Scalar(0), None, dims=6, **bad, wheel=False)
    f.error("Shape", "fast.rope", x, Scalar(0), arr("float32", [1.0]), dims=4, traditional=False, base=None, scale=1.0)
    f.error("Dtype", "fast.rope", sample("int32", [2, 3, 4]), Scalar(0), None, dims=4, **bad)


def sdpa(q, k, v, scale, mask=None, sinks=None):
    groups = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, groups, 1), np.repeat(v, groups, 1)
    s = scale * np.einsum("bhqd,bhkd->bhqk", q, k)
    if isinstance(mask, str):
        mask = np.arange(k.shape[2])[None] <= np.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
    if mask is not None:
        s = np.where(mask, s, np.finfo(np.float32).min) if mask.dtype == bool else s + mask
    top = s.max(-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks.reshape(1, -1, 1, 1))
    e = np.exp(s - top)
    total = e.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks.reshape(1, -1, 1, 1) - top)
    return np.einsum("bhqk,bhkd->bhqd", e / total, v)


def attention(f):
    def case(q, k, v, mask=None, sinks=None, causal=False, every=1, **kw):
        extra = {"mask": "causal"} if causal else {}
        f.model("fast.scaled_dot_product_attention", [q, k, v, mask, sinks],
                lambda q, k, v, m, s: sdpa(q, k, v, 0.5, "causal" if causal else m, s), tol=ATTENTION, loose=5, scale=0.5, every=every, **extra, **kw)

    def qkv(dtype, b=1, hq=2, hk=2, tq=3, tk=3, d=4, dv=4, layout=None, seed=1):
        def make(shape, s):
            x = lcg(dtype, shape, s, -1.0, 1.0)
            return Arr(dtype, x.values, layout) if layout else x
        return make([b, hq, tq, d], seed), make([b, hk, tk, d], seed + 1), make([b, hk, tk, dv], seed + 2)

    for dtype in FLOATS:
        case(*qkv(dtype))
        case(*qkv(dtype, tq=2, tk=5), causal=True)
        case(*qkv(dtype, hq=4, hk=2, tq=1, tk=6))
    for layout in LAYOUTS[1:]:
        case(*qkv("float32", layout=layout, tk=4))
    q, k, v = qkv("float32", b=2, hq=4, hk=2, tq=3, tk=5, dv=6)
    case(q, k, v, causal=True)
    case(q, k, v, mask=lcg("float32", [3, 5], 9, -2.0, 2.0))
    case(q, k, v, mask=lcg("float32", [2, 4, 3, 5], 9, -2.0, 2.0))
    case(q, k, v, mask=lcg("float32", [2, 1, 1, 5], 9, -2.0, 2.0))
    case(q, k, v, mask=arr("bool", np.arange(15).reshape(3, 5) % 3 != 0))
    case(q, k, v, mask=arr("bool", np.arange(60).reshape(1, 4, 3, 5) % 4 != 0, "transposed"))
    # A row without any key averages all values.
    case(q, k, v, mask=arr("bool", [[True] * 5, [False] * 5, [True, False, True, False, False]]))
    case(q, k, v, sinks=arr("float32", [0.5, -1.0, 2.0, 0.0]))
    case(q, k, v, sinks=arr("float32", [0.5, -1.0, 2.0, 0.0]), causal=True)
    case(*qkv("float32", tq=1, tk=300, d=64, dv=64, hq=4, hk=1), every=17)
    case(*qkv("bfloat16", tq=1, tk=300, d=64, dv=64, hq=4, hk=1), every=17)
    case(*qkv("float32", tq=70, tk=70, d=32, dv=32), causal=True, every=97)
    case(*qkv("float16", tq=40, tk=90, d=64, dv=64), causal=True, every=97)
    case(*qkv("float32", tq=33, tk=65, d=128, dv=128, hq=2, hk=1), every=211)
    op = "fast.scaled_dot_product_attention"
    f.error("Shape", op, q, k, sample("float32", [2, 2, 4, 6]), None, None, scale=1.0, wheel=False)
    f.error("Shape", op, q, sample("float32", [2, 2, 5, 3]), v, None, None, scale=1.0)
    f.error("Shape", op, q, sample("float32", [2, 3, 5, 4]), sample("float32", [2, 3, 5, 6]), None, None, scale=1.0)
    f.error("Shape", op, sample("float32", [4, 3, 4]), k, v, None, None, scale=1.0)
    f.error("Shape", op, q, k, v, lcg("float32", [3, 4], 1, 0.0, 1.0), None, scale=1.0)
    f.error("Dtype", op, sample("int32", [1, 2, 3, 4]), sample("int32", [1, 2, 3, 4]), sample("int32", [1, 2, 3, 4]), None, None, scale=1.0)
    f.error("Value", op, q, k, v, None, None, scale=1.0, mask="full")


def cross_entropy(f):
    def model(x, t):
        m = x.max(-1, keepdims=True)
        return np.squeeze(np.log(np.exp(x - m).sum(-1, keepdims=True)) + m, -1) - np.take_along_axis(x, t[..., None].astype(int), -1)[..., 0]

    for dtype in ("float32", *HALVES):
        f.model("fast.cross_entropy", [sample(dtype, [2, 3, 5]), arr("int32", [[0, 4, 2], [1, 1, 3]])], model, loose=5)
    f.model("fast.cross_entropy", [sample("float32", [3, 5], "transposed"), arr("uint32", [0, 4, 2])], model)
    f.model("fast.cross_entropy", [lcg("float32", [2, 1000], 1, -30.0, 30.0), arr("int64", [17, 999])], model)
    f.error("Shape", "fast.cross_entropy", sample("float32", [3, 5]), arr("int32", [0, 1]))
    f.error("Dtype", "fast.cross_entropy", sample("float32", [3, 5]), arr("float32", [0, 1, 2]))
    f.error("Index", "fast.cross_entropy", sample("float32", [3, 5]), arr("int32", [0, 1, 5]), wheel=False)


def gated_delta(f):
    def model(q, k, v, gamma, beta, state=None, mask=None):
        B, T, Hk, Dk = q.shape
        Hv, Dv = v.shape[2:]
        q, k = np.repeat(q, Hv // Hk, 2), np.repeat(k, Hv // Hk, 2)
        S = np.zeros((B, Hv, Dv, Dk)) if state is None else state.copy()
        Y = np.zeros((B, T, Hv, Dv))
        for b in range(B):
            for t in range(T):
                if mask is not None and not mask[b, t]:
                    continue
                for h in range(Hv):
                    S[b, h] *= gamma[b, t, h]
                    d = beta[b, t, h] * (v[b, t, h] - S[b, h] @ k[b, t, h])
                    S[b, h] += np.outer(d, k[b, t, h])
                    Y[b, t, h] = S[b, h] @ q[b, t, h]
        return [Y, S]

    def make(dtype, b=1, t=3, hk=1, hv=2, dk=4, dv=3, wide=False):
        r = lambda shape, seed, lo=-1.0: lcg(dtype, shape, seed, lo, 1.0)
        return [r([b, t, hk, dk], 1), r([b, t, hk, dk], 2), r([b, t, hv, dv], 3), r([b, t, hv, dk] if wide else [b, t, hv], 4, 0.0), r([b, t, hv], 5, 0.0)]

    tol = {**COMPOSED, "float32": {"rtol": 1e-5, "atol": 2e-6}}
    # The wheel's kernel takes head sizes in steps of 32 only in places; compared where it answers.
    for dtype in ("float32", "bfloat16"):
        for wide in (False, True):
            f.model("fast.gated_delta_update", make(dtype, wide=wide), model, tol=ROTATED[dtype] if dtype != "float32" else tol, loose=5)
    x = make("float32", b=2, t=4, hk=2, hv=4, dk=8, dv=8)
    state = lcg("float32", [2, 4, 8, 8], 6, -1.0, 1.0)
    f.model("fast.gated_delta_update", [*x, state], model, tol=tol, every=7)
    f.model("fast.gated_delta_update", [*x, state, arr("bool", [[True, False, True, True], [False, True, True, False]])], model, tol=tol, every=7)
    f.error("Shape", "fast.gated_delta_update", x[0], x[1], x[2], x[3], sample("float32", [2, 4, 3]))
