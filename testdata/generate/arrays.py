"""Typed arrays as the case files hold them: rounding, JSON, the generator of medium-sized inputs, MLX and back.

bfloat16 is carried in float32 arrays whose values are bfloat16 values; every other dtype is numpy's own.
"""

import math

import mlx.core as mx
import numpy as np

INTS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
HALVES = ["float16", "bfloat16"]
FLOATS = ["float16", "bfloat16", "float32", "float64"]
DTYPES = ["bool", *INTS, *FLOATS, "complex64"]
LAYOUTS = ["transposed", "strided", "reversed", "offset"]

CARRIER = {name: np.dtype(name) for name in DTYPES if name != "bfloat16"}
CARRIER["bfloat16"] = np.dtype("float32")


def mx_dtype(name):
    return getattr(mx, "bool_" if name == "bool" else name)


def name_of(dtype):
    """The name of an MLX dtype: mlx.core.float32 -> float32."""
    return str(dtype).split(".")[-1].rstrip("_")


def to_bfloat16(x):
    """Round float64 to the nearest bfloat16 (ties to even), carried in float32."""
    x = np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        near = np.atleast_1d(x.astype(np.float32))
        # Round to odd on the way to float32, so that the second rounding sees whether anything was cut off.
        word = near.view(np.uint32).copy()
        back = near.astype(np.float64)
        flat = np.atleast_1d(x)
        inexact = np.isfinite(flat) & (back != flat)
        away = inexact & (np.abs(back) > np.abs(flat))
        word = np.where(away, word - 1, word)
        word = np.where(inexact, word | 1, word).astype(np.uint32)
        kept = ((word + 0x7FFF + ((word >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
        kept = np.where(np.isnan(flat), np.float32(np.nan), np.where(np.isinf(flat), near, kept))
    return kept.astype(np.float32).reshape(x.shape)


def rounded(dtype, values):
    """Values (float64, complex128, int or bool) as the carrier of `dtype`."""
    values = np.asarray(values)
    with np.errstate(all="ignore"):
        if dtype == "bfloat16":
            return to_bfloat16(values.real if np.iscomplexobj(values) else values)
        return values.astype(CARRIER[dtype])


class Arr:
    """An array of a case: dtype name, carrier values and the layout in which the runner is to build it."""

    def __init__(self, dtype, values, layout=None, gen=None):
        self.dtype, self.layout, self.gen = dtype, layout, gen
        self.values = rounded(dtype, values)

    @property
    def shape(self):
        return list(self.values.shape)

    @property
    def wide(self):
        """The values in float64 (complex128; integers and bool as they are, as Python sees them)."""
        if self.dtype == "complex64":
            return self.values.astype(np.complex128)
        return self.values.astype(np.float64) if self.dtype in FLOATS else self.values

    def mx(self):
        if self.dtype == "bfloat16":
            return mx.array(self.values).astype(mx.bfloat16)
        return mx.array(self.values, dtype=mx_dtype(self.dtype))

    def json(self, step=1):
        out = {"dtype": self.dtype, "shape": self.shape}
        if self.gen:
            out["gen"] = self.gen
        else:
            out["data"] = [encode(v, self.dtype) for v in self.values.reshape(-1)[::step]]
        if step != 1:
            out["step"] = step
        if self.layout:
            out["layout"] = self.layout
        return out


class Scalar:
    """A host scalar: a weak operand."""

    def __init__(self, value):
        self.value = value

    def json(self):
        return {"scalar": plain(self.value)}


def arr(dtype, values, layout=None):
    return Arr(dtype, values, layout)


def from_mx(a):
    if a.dtype == mx.bfloat16:
        return Arr("bfloat16", np.array(a.astype(mx.float32)))
    return Arr(name_of(a.dtype), np.array(a))


def lcg(dtype, shape, seed, lo, hi):
    """The documented generator: 64-bit LCG, the upper 24 bits scaled to [lo, hi), rounded to the dtype."""
    n, state, out = math.prod(shape), seed, []
    for _ in range(n):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        v = lo + (hi - lo) * ((state >> 40) * 2.0**-24)
        out.append(math.floor(v) if dtype in INTS else v)
    gen = {"kind": "lcg", "seed": seed, "lo": lo, "hi": hi}
    return Arr(dtype, np.array(out, np.float64).reshape(shape), gen=gen)


def plain(v):
    """A JSON value for an attribute: non-finite floats become strings."""
    if isinstance(v, complex):
        return {"re": plain(v.real), "im": plain(v.imag)}
    if isinstance(v, float) and not math.isfinite(v):
        return "nan" if math.isnan(v) else ("inf" if v > 0 else "-inf")
    if isinstance(v, (list, tuple)):
        return [plain(x) for x in v]
    return v


def encode(v, dtype):
    """A JSON value for one element: the shortest text that reads back (as f64, then rounded) to the same value."""
    if dtype == "complex64":
        return [encode(v.real, "float32"), encode(v.imag, "float32")]
    if dtype == "bool":
        return bool(v)
    if dtype in INTS:
        return int(v)
    v = float(v)
    if not math.isfinite(v):
        return plain(v)
    if v == math.floor(v) and abs(v) < 1e15:
        return Number("-0.0" if v == 0 and math.copysign(1, v) < 0 else str(int(v)))
    for digits in range(1, 18):
        text = f"{v:.{digits}g}"
        if float(rounded(dtype, float(text))) == v:
            return Number(text)
    raise AssertionError(v)


class Number(float):
    """A float that prints as the given text."""

    def __new__(cls, text):
        self = float.__new__(cls, text)
        self.text = text
        return self

    def __repr__(self):
        return self.text
