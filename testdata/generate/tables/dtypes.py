"""Result dtypes of every op, measured on the wheel; null where the dtype is refused."""

import mlx.core as mx
import numpy as np

from arrays import DTYPES, Arr, arr, mx_dtype, name_of
from case import dumps, resolve

UNARY = ("abs arccos arccosh arcsin arcsinh arctan arctanh bitwise_invert ceil conjugate cos cosh degrees erf erfinv exp expm1 floor "
         "isfinite isinf isnan log log10 log1p log2 logical_not negative positive radians real imag reciprocal round rsqrt sigmoid sign "
         "sin sinh sqrt square tan tanh trunc nan_to_num softmax sort argsort cumsum cumprod cummax logcumsumexp").split()
BINARY = ("add subtract multiply divide floor_divide remainder power maximum minimum logaddexp arctan2 bitwise_and left_shift equal less "
          "logical_and matmul divmod").split()
REDUCE = "sum prod mean var std max min argmax argmin all any logsumexp median count_nonzero".split()
SCALARS = {"add": "__add__", "multiply": "__mul__", "divide": "__truediv__", "power": "__pow__", "less": "__lt__"}
SCALAR_VALUES = [True, 1, 1.5, 1j, 300, 2**40, -1]
CATEGORIES = "generic number integer signedinteger unsignedinteger inexact floating complexfloating".split()
KINDS = ["bool", "signed integer", "unsigned integer", "integral", "real floating", "complex floating", "numeric"]

# Where lapis goes beyond MLX.
ACCEPTED = {("nan_to_num", "float64"), ("nan_to_num", "complex64")}
# There is no floor of a complex number; the wheel divides.
REFUSED = {("floor_divide", "complex64")}


def measured(function, *args):
    try:
        out = function(*args)
        out = out[0] if isinstance(out, (list, tuple)) else out
        mx.eval(out)
        return name_of(out.dtype)
    except (ValueError, RuntimeError, TypeError):
        return None


def of_op(op, dtype, args):
    if (op, dtype) in REFUSED:
        return None
    if op == "softmax":
        # Over several axes the wheel keeps integers.
        return measured(lambda a: mx.softmax(a, axis=-1), *args)
    return dtype if (op, dtype) in ACCEPTED else measured(resolve(op), *args)


def build():
    one = {d: arr(d, [[1, 1], [1, 1]]).mx() for d in DTYPES}
    rows = {}
    for group, names, count in (("unary", UNARY, 1), ("binary", BINARY, 2), ("reduce", REDUCE, 1)):
        rows[group] = {op: [of_op(op, d, [one[d]] * count) for d in DTYPES] for op in names}
    promotion = [[name_of(mx.result_type(mx_dtype(a), mx_dtype(b))) for b in DTYPES] for a in DTYPES]
    scalar = []
    for op, method in SCALARS.items():
        for v in SCALAR_VALUES:
            shown = {"re": 0.0, "im": 1.0} if isinstance(v, complex) else v
            scalar.append({"op": op, "scalar": shown, "result": [scalar_result(d, v, one, method) for d in DTYPES]})
    sets = {"categories": {c: [mx.issubdtype(mx_dtype(d), getattr(mx, c)) for d in DTYPES] for c in CATEGORIES},
            "kinds": {k: [mx.isdtype(mx_dtype(d), k) for d in DTYPES] for k in KINDS}}
    return render(rows | sets, promotion, scalar)


def scalar_result(dtype, value, one, method):
    """An int that does not fit is an error, for 64-bit integers and bool_ too."""
    if isinstance(value, int) and not isinstance(value, bool):
        held = "int32" if dtype == "bool" else dtype
        if held in ("int32", "uint64", "int64") and not np.iinfo(held).min <= value <= np.iinfo(held).max:
            return None
    return measured(lambda: getattr(one[dtype], method)(value))


def render(rows, promotion, scalar):
    lines = ["{", f'"dtypes":{dumps(DTYPES)},', '"promotion":[', ",\n".join(dumps(r) for r in promotion), "],"]
    for group, ops in rows.items():
        lines += [f'"{group}":{{', ",\n".join(f'"{op}":{dumps(r)}' for op, r in ops.items()), "},"]
    lines += ['"scalar":[', ",\n".join(dumps(s) for s in scalar), "]", "}"]
    return "\n".join(lines) + "\n"
