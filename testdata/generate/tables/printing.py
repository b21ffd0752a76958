"""What arrays print as, taken from the wheel."""

import math

import mlx.core as mx
import numpy as np

from arrays import DTYPES, arr
from case import dumps
from reduce import sample

INF, NAN = math.inf, math.nan


def arrays():
    yield arr("float32", 2.0)
    yield arr("int32", [1, 2, 3])
    yield arr("float32", [1.0, 2.5])
    for dtype in DTYPES:
        yield arr(dtype, [1, 0])
        yield arr(dtype, 1)
    yield arr("float32", [0.0, -0.0, 1e-8, 1234567.0, 123456.0, 0.1, 1 / 3, 1e20, 3.4e38, -2.5])
    yield arr("float32", [INF, -INF, NAN, 100000.0, 1e6, 0.0001, 0.00001])
    yield arr("float16", [0.1, 65504.0, 6e-8, 1 / 3])
    yield arr("bfloat16", [0.1, 3e38, 1 / 3, -7.0])
    yield arr("float64", [0.1, 1e300, 1 / 3, 1e-300])
    yield arr("complex64", [1 + 2j, 1 - 2j, 0.5j, complex(0, NAN), complex(INF, -1), -1.25])
    yield arr("uint64", [2**64 - 1, 0])
    yield arr("int64", [-(2**63), 2**63 - 1])
    yield arr("int8", [[-128, 127], [0, 1]])
    yield arr("float32", np.arange(6))
    yield arr("float32", np.arange(7))
    yield arr("int32", np.arange(1000))
    yield arr("int32", np.arange(12).reshape(3, 4))
    yield arr("int32", np.arange(24).reshape(2, 3, 4))
    yield arr("int32", np.arange(16).reshape(2, 2, 2, 2))
    yield arr("int32", np.arange(64).reshape(8, 8))
    yield arr("int32", np.arange(7 * 2).reshape(7, 2))
    yield arr("int32", np.arange(7 * 7 * 2).reshape(7, 7, 2) % 10)
    yield arr("float32", np.zeros(0))
    yield arr("int32", np.zeros((2, 0)))
    yield arr("int32", np.zeros((0, 2)))
    yield arr("int32", np.zeros((2, 0, 3)))
    yield arr("int32", [[5]])
    yield sample("float32", [2, 3], "transposed")
    yield sample("float32", [2, 3], "reversed")
    yield arr("bool", [[True, False], [False, True]])


def build():
    cases = [{"input": a.json(), "text": str(a.mx())} for a in arrays()]
    for a in (arr("float32", [1 / 3, 2.0, -1e-5, 12345.678]), arr("float16", [0.1]), arr("complex64", [1 / 3 + 2j]), arr("int32", [1, 2])):
        for precision in (0, 2, 8):
            with mx.printoptions(precision=precision):
                cases.append({"input": a.json(), "precision": precision, "text": str(a.mx())})
    return "[\n" + ",\n".join(dumps(c) for c in cases) + "\n]\n"
