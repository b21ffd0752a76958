#!/usr/bin/env python3
"""Writes quantize_mlx.txt: FNV-1a hashes of what MLX's quantize and dequantize return.

    pip install "mlx[cpu]==0.32.4" numpy && python quantize_mlx.py > quantize_mlx.txt

The input is made from integers, so that src/quant/tests.rs can make the same one.
"""
import mlx.core as mx
import numpy as np

mx.set_default_device(mx.cpu)
K = 256
state = 1


def draw():
    global state
    state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
    return state >> 40


def bell():
    return np.float32((draw() + draw() + draw() + draw() - 2**25) / 2**24)


def row(kind):
    v = [bell() for _ in range(K)]
    f = np.float32
    if kind == "normal":
        return v
    if kind == "positive":
        return [abs(x) + f(0.125) for x in v]
    if kind == "negative":
        return [-abs(x) - f(0.125) for x in v]
    if kind == "constant":
        return [f(0.37)] * K
    if kind == "zero":
        return [f(0)] * K
    if kind == "ties":
        return [f((draw() % 49 - 24) * 0.25) for _ in v]
    if kind == "small":
        return [x * f(0.001) for x in v]
    if kind == "outlier":
        return [x * f(100) if i % 37 == 5 else x for i, x in enumerate(v)]
    return [x * f(2.0**-60) for x in v]


KINDS = ["normal", "positive", "negative", "constant", "zero", "ties", "small", "outlier", "tiny"]
w32 = mx.array(np.array([row(k) for k in KINDS for _ in range(2)], np.float32))


def fnv(a):
    h = 0xCBF29CE484222325
    for b in bytes(memoryview(a.view(mx.uint8) if a.dtype != mx.uint8 else a)):
        h = (h ^ b) * 0x100000001B3 % 2**64
    return f"{h:016x}"


DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
print("# mode bits group dtype | packed scales biases | dequantized")
for name, dt in DTYPES.items():
    w = w32.astype(dt)
    for bits in (1, 2, 3, 4, 5, 6, 8):
        for group in (32, 64, 128):
            q, s, b = mx.quantize(w, group_size=group, bits=bits)
            d = mx.dequantize(q, s, b, group_size=group, bits=bits)
            print("affine", bits, group, name, fnv(q), fnv(s), fnv(b), fnv(d))
    for mode, bits, group in (("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)):
        q, s = mx.quantize(w, mode=mode)
        print(mode, bits, group, name, fnv(q), fnv(s), "-", fnv(mx.dequantize(q, s, mode=mode, dtype=dt)))
    amax = mx.abs(w).max().astype(mx.float32)
    q, s = mx.quantize(w, mode="nvfp4", global_scale=amax)
    d = mx.dequantize(q, s, mode="nvfp4", global_scale=amax, dtype=mx.float32)
    print("nvfp4-global", 4, 16, name, fnv(q), fnv(s), "-", fnv(d))
    print("to_fp8", 8, 1, name, fnv(mx.to_fp8(w)), "-", "-", fnv(mx.from_fp8(mx.to_fp8(w), dtype=dt)))
