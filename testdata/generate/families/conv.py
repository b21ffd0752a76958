"""Convolutions, channels last."""

import itertools

import numpy as np

from arrays import FLOATS, HALVES, Arr, arr, lcg
from case import COMPOSED
from products import DOT
from reduce import sample


def spread(x, axis, step):
    """Zeros between neighbours along an axis."""
    n = x.shape[axis]
    shape = list(x.shape)
    shape[axis] = (n - 1) * step + 1 if n else 0
    out = np.zeros(shape, x.dtype)
    out[tuple(slice(None, None, step) if a == axis else slice(None) for a in range(x.ndim))] = x
    return out


def convolve(x, w, stride, padding, kernel_dilation, input_dilation, groups=1, flip=False):
    """Cross-correlation by its definition; per spatial axis lists, padding as (lo, hi) pairs that may be negative."""
    dims = x.ndim - 2
    for a in range(dims):
        x, w = spread(x, a + 1, input_dilation[a]), spread(w, a + 1, kernel_dilation[a])
        lo, hi = padding[a]
        pad = [(0, 0)] * x.ndim
        pad[a + 1] = (max(lo, 0), max(hi, 0))
        x = np.pad(x, pad)
        x = np.take(x, range(max(-lo, 0), x.shape[a + 1] - max(-hi, 0)), axis=a + 1)
    if flip:
        w = w[(slice(None), *[slice(None, None, -1)] * dims)]
    size = [(x.shape[a + 1] - w.shape[a + 1]) // stride[a] + 1 for a in range(dims)]
    out = np.zeros([x.shape[0], *size, w.shape[0]])
    og, cg = w.shape[0] // groups, x.shape[-1] // groups
    for at in itertools.product(*[range(n) for n in size]):
        window = x[(slice(None), *[slice(i * s, i * s + k) for i, s, k in zip(at, stride, w.shape[1:])])]
        for g in range(groups):
            part = window[..., g * cg:(g + 1) * cg]
            kernel = w[g * og:(g + 1) * og]
            out[(slice(None), *at, slice(g * og, (g + 1) * og))] = np.tensordot(part, kernel, [list(range(1, dims + 2))] * 2)
    return out


def transposed(x, w, stride, padding, dilation, output_padding, groups=1):
    """out[t*stride + k*dilation - pad] += in[t]*w[k]."""
    dims = x.ndim - 2
    size = [(x.shape[a + 1] - 1) * stride[a] - 2 * padding[a] + dilation[a] * (w.shape[a + 1] - 1) + 1 + output_padding[a] for a in range(dims)]
    out = np.zeros([x.shape[0], *size, w.shape[0]])
    og, cg = w.shape[0] // groups, x.shape[-1] // groups
    for t in itertools.product(*[range(n) for n in x.shape[1:-1]]):
        for k in itertools.product(*[range(n) for n in w.shape[1:-1]]):
            at = [t[a] * stride[a] + k[a] * dilation[a] - padding[a] for a in range(dims)]
            if all(0 <= i < n for i, n in zip(at, size)):
                for g in range(groups):
                    out[(slice(None), *at, slice(g * og, (g + 1) * og))] += x[(slice(None), *t, slice(g * cg, (g + 1) * cg))] @ w[(slice(g * og, (g + 1) * og), *k)].T
    return out


def each(v, dims):
    return list(v) if isinstance(v, (list, tuple)) else [v] * dims


def tensors(dims, n=2, size=(7, 6, 4), c=3, o=4, k=(3, 2, 2), groups=1, dtype="float32", layouts=(None, None)):
    x = lcg("float32", [n, *size[:dims], c], dims, -1.0, 1.0).wide
    w = lcg("float32", [o, *k[:dims], c // groups], dims + 10, -1.0, 1.0).wide
    return arr(dtype, np.round(x * 32) / 32, layouts[0]), arr(dtype, np.round(w * 32) / 32, layouts[1])


def build(f):
    plain(f)
    general(f)
    transposes(f)
    signals(f)
    errors(f)


def direct(f, dims, x, w, every=1, loose=1.0, differs=False, **kw):
    n = len(x.shape) - 2
    p = each(kw.get("padding", 0), n)
    f.model(f"conv{dims}d", [x, w], lambda a, b: convolve(a, b, each(kw.get("stride", 1), n), [(q, q) for q in p], each(kw.get("dilation", 1), n), [1] * n, kw.get("groups", 1)),
            tol=DOT, every=every, loose=loose, differs=differs, **({"dtypes": [x.dtype]} if differs else {}), **kw)


def plain(f):
    for dims in (1, 2, 3):
        small = dict(n=1, c=2, o=2, size=(5, 4, 3), k=(2, 2, 2))
        direct(f, dims, *tensors(dims, **small))
        direct(f, dims, *tensors(dims, **small), stride=2, padding=1)
        direct(f, dims, *tensors(dims, **small), dilation=2, padding=2)
        for dtype in (*HALVES, "float64"):
            direct(f, dims, *tensors(dims, dtype=dtype, **small), padding=1, loose=20, every=3)
        direct(f, dims, *tensors(dims, layouts=("transposed", "strided"), **small))
        direct(f, dims, *tensors(dims, layouts=("reversed", "offset"), **small), stride=2)
    direct(f, 1, *tensors(1, c=4, o=6, groups=2), groups=2)
    direct(f, 1, *tensors(1, c=4, o=4, groups=4), groups=4, padding=2)
    direct(f, 2, *tensors(2, n=1, c=4, o=4, groups=2), groups=2, stride=[2, 1], padding=[1, 0], every=3)
    direct(f, 2, *tensors(2, n=1), stride=[1, 2], padding=[2, 1], dilation=[2, 1], every=5)
    # lapis: groups also in 3-D.
    direct(f, 3, *tensors(3, n=1, c=4, o=2, size=(3, 3, 3), k=(2, 2, 2), groups=2), groups=2, differs=True)
    direct(f, 2, lcg("float32", [1, 17, 19, 16], 1, -1.0, 1.0), lcg("float32", [24, 3, 3, 16], 2, -1.0, 1.0), padding=1, every=97)
    direct(f, 1, lcg("float32", [1, 200, 32], 1, -1.0, 1.0), lcg("float32", [16, 5, 32], 2, -1.0, 1.0), every=97)
    direct(f, 1, lcg("bfloat16", [1, 40, 32], 1, -1.0, 1.0), lcg("bfloat16", [32, 4, 1], 2, -1.0, 1.0), groups=32, padding=3, every=97, loose=20)


def general(f):
    def case(x, w, every=1, **kw):
        n = len(x.shape) - 2
        p = kw.get("padding", 0)
        pairs = list(zip(each(p[0], n), each(p[1], n))) if isinstance(p, tuple) else [(q, q) for q in each(p, n)]
        f.model("conv_general", [x, w], lambda a, b: convolve(a, b, each(kw.get("stride", 1), n), pairs, each(kw.get("kernel_dilation", 1), n),
                each(kw.get("input_dilation", 1), n), kw.get("groups", 1), kw.get("flip", False)), tol=DOT, every=every, **kw)

    case(*tensors(1, n=1))
    case(*tensors(1, n=1), padding=([1], [2]))
    case(*tensors(1, n=1), padding=([-1], [-2]))
    case(*tensors(1, n=1), flip=True, stride=2)
    case(*tensors(1, n=1), input_dilation=2, padding=2)
    case(*tensors(2, n=1), input_dilation=[2, 1], kernel_dilation=[1, 2], padding=([1, 0], [0, 2]), stride=[1, 2], flip=True, every=3)
    case(*tensors(2, n=1, c=4, o=4, groups=2), groups=2, input_dilation=2, every=7)


def transposes(f):
    def case(dims, x, w, every=1, **kw):
        n = len(x.shape) - 2
        f.model(f"conv_transpose{dims}d", [x, w], lambda a, b: transposed(a, b, *[each(kw.get(k, d), n) for k, d in
                (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0))], kw.get("groups", 1)), tol=DOT, every=every, **kw)

    for dims in (1, 2, 3):
        small = dict(n=1, c=2, o=2, size=(3, 2, 2), k=(3, 2, 2))
        case(dims, *tensors(dims, **small))
        case(dims, *tensors(dims, **small), stride=2, padding=1, output_padding=1, every=3)
        case(dims, *tensors(dims, **small), dilation=2, every=3)
    case(1, *tensors(1, n=1, c=4, o=4, groups=2), groups=2, stride=2)
    case(2, *tensors(2, n=1, size=(3, 3), c=2, o=4, groups=2), groups=2, stride=[2, 1], padding=[0, 1], every=5)


def signals(f):
    a, v = arr("float32", [1.0, 2.0, 3.0, -1.0, 0.5]), arr("float32", [0.0, 1.0, 0.5])
    for mode in ("full", "same", "valid"):
        f.model("convolve", [a, v], lambda x, y: np.convolve(x, y, mode), tol=DOT, mode=mode)
        f.model("convolve", [v, a], lambda x, y: np.convolve(x, y, mode), tol=DOT, mode=mode)
        even = arr("float32", [1.0, -1.0, 2.0, 0.25])
        f.model("convolve", [a, even], lambda x, y: np.convolve(x, y, mode), tol=DOT, mode=mode)
    f.error("Shape", "convolve", sample("float32", [2, 3]), v)
    f.error("Shape", "convolve", arr("float32", np.zeros(0)), v)
    f.error("Value", "convolve", a, v, mode="circular")


def errors(f):
    x, w = tensors(2, n=1)
    f.error("Shape", "conv2d", x, sample("float32", [4, 3, 2, 2]))
    f.error("Shape", "conv1d", x, w, wheel=False)
    f.error("Shape", "conv2d", sample("float32", [1, 2, 2, 3]), sample("float32", [1, 3, 3, 3]))
    f.error("Dtype", "conv2d", sample("int32", [1, 4, 4, 1]), sample("int32", [1, 2, 2, 1]))
    f.error("Value", "conv2d", x, w, groups=2)
    f.error("Value", "conv1d", *tensors(1, n=1), stride=0, wheel=False)
