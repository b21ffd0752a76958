"""Builds the cases of one family and writes them, one case a line.

Three sources of expected values:
  wheel(...)  what MLX computes, where it is trustworthy
  model(...)  a float64 function of ours, rounded to the result dtype; compared loosely with MLX unless told otherwise
  spec(...)   a rule of lapis that goes beyond MLX
and error(...) for calls that must be refused.
"""

import json
import math
import os
import warnings

os.environ.setdefault("MLX_DISABLE_COMPILE", "1")

import mlx.core as mx
import numpy as np

from arrays import DTYPES, FLOATS, Arr, Number, Scalar, from_mx, mx_dtype, name_of, plain

mx.set_default_device(mx.cpu)

# Tolerances, in one place. ulp: units in the last place of the result dtype.
ELEMENTARY = {"float64": {"ulp": 2}, "float32": {"ulp": 4}, "float16": {"ulp": 1}, "bfloat16": {"ulp": 1},
              "complex64": {"rtol": 2e-6, "atol": 1e-7}}
# Ops of several roundings (norms, softmax, variance, decompositions' products, transforms).
COMPOSED = {"float64": {"rtol": 1e-12, "atol": 1e-14}, "float32": {"rtol": 2e-6, "atol": 1e-6},
            "float16": {"ulp": 1, "atol": 1e-6}, "bfloat16": {"ulp": 1, "atol": 1e-6},
            "complex64": {"rtol": 4e-6, "atol": 2e-6}}

LIST_OPS = {"concatenate", "stack"}
# Attributes that MLX takes by position only, after the arrays.
POSITIONAL = {"astype": ["dtype"], "tile": ["reps"], "roll": ["shift", "axis"], "permute_dims": ["axes"]}
# Arrays that MLX takes by keyword, in the order of the case's inputs.
KEYWORD = {
    "fast.scaled_dot_product_attention": [None, None, None, "mask", "sinks"],
    "quantize": [None, "global_scale"],
    "dequantize": [None, "scales", "biases", "global_scale"],
    "fft.stft": [None, "window"], "fft.istft": [None, "window"],
    "random.uniform": ["low", "high", "key"], "random.normal": ["loc", "scale", "key"],
    "random.bernoulli": ["p", "key"], "random.truncated_normal": ["lower", "upper", "key"],
    "random.randint": ["low", "high", "key"], "random.gumbel": ["key"], "random.laplace": ["key"],
    "random.categorical": ["logits", "key"], "random.permutation": ["x", "key"],
    "random.multivariate_normal": ["mean", "cov", "key"],
    "full": ["vals"], "full_like": [None, "vals"], "pad": [None, "constant_values"],
    "unique": [None, "fill_value"], "fast.rope": [None, "offset", "freqs"],
    "block_masked_mm": [None, None, "mask_out", "mask_lhs", "mask_rhs"],
}


def resolve(op):
    module = mx
    *path, name = op.split(".")
    for part in path:
        module = getattr(module, part)
    return getattr(module, name)


def host(value):
    if isinstance(value, Arr):
        return value.mx()
    return value.value if isinstance(value, Scalar) else value


def call(op, inputs, attrs):
    """Run the wheel on a case."""
    attrs = {k: mx_dtype(v) if k == "dtype" and v is not None else v for k, v in attrs.items()}
    inputs = [host(x) for x in inputs]
    if op == "einsum":
        return mx.einsum(attrs["subscripts"], *inputs)
    if op == "einsum_path":
        return [mx.array(pair, dtype=mx.int64) for pair in mx.einsum_path(attrs["subscripts"], *inputs)[0]]
    if op == "broadcast_shapes":
        return mx.array(mx.broadcast_shapes(*attrs["shapes"]), dtype=mx.int64)
    if op == "result_type":
        return mx.zeros(0, mx.result_type(*inputs))
    if op in LIST_OPS:
        return resolve(op)(inputs, **attrs)
    names = KEYWORD.get(op, [])
    for name, value in zip(names, inputs):
        if name and value is not None:
            attrs[name] = value
    args = [v for i, v in enumerate(inputs) if i >= len(names) or names[i] is None]
    args += [attrs.pop(n) for n in POSITIONAL.get(op, []) if n in attrs]
    return resolve(op)(*args, **attrs)


def listed(result):
    return list(result) if isinstance(result, (list, tuple)) else [result]


def close(expected, got, rtol=1e-3, atol=1e-4):
    a, b = np.asarray(expected), np.asarray(got)
    if a.shape != b.shape:
        return False
    with np.errstate(all="ignore"):
        return np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)


class Family:
    def __init__(self, name):
        self.name, self.lines, self.count = name, [], 0

    def add(self, op, inputs, attrs, source, outputs=None, error=None, tol=None, every=1, free=()):
        case = {"op": op, "inputs": [None if x is None else x.json() for x in inputs]}
        if attrs:
            case["attrs"] = {k: plain(v) for k, v in attrs.items()}
        if error:
            case["error"] = error
        else:
            case["outputs"] = [o.json(every) for o in outputs]
            for out, freedom in zip(case["outputs"], free):
                if freedom:
                    out["free"] = freedom
        if tol:
            case["tol"] = tol
        case["from"] = source
        self.lines.append(dumps(case))
        self.count += 1

    def wheel(self, op, *inputs, tol=None, every=1, **attrs):
        """Expected values from MLX. tol: None (bit-exact), a tolerance, or a table by dtype."""
        outputs = [from_mx(o) for o in listed(call(op, inputs, attrs))]
        self.add(op, inputs, attrs, "mlx", outputs, tol=pick(tol, outputs), every=every)

    def model(self, op, inputs, function, tol=COMPOSED, every=1, dtypes=None, differs=False, loose=1.0, free=(), **attrs):
        """Expected values from `function(*float64 inputs)`; dtypes and shapes are MLX's, unless `dtypes` says them.

        differs: MLX is known to be wrong here; do not compare. loose: factor on the comparison's tolerance.
        free: per output, what the definition leaves open ("columns", "rows": a sign or phase each; "order"; "vectors": order and
        phase of the columns).
        """
        wide = [x.wide if isinstance(x, Arr) else (x.value if isinstance(x, Scalar) else None) for x in inputs]
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = listed(function(*wide))
        if dtypes is None:
            got = listed(call(op, inputs, attrs))
            dtypes = [name_of(g.dtype) for g in got]
            for g, v, d in zip(got, values, dtypes):
                assert list(g.shape) == list(np.shape(v)), (op, attrs, g.shape, np.shape(v))
                scale = loose * {"float16": 10, "bfloat16": 80}.get(d, 1)
                if not differs and not free and not close(v, from_mx(g).wide, 1e-3 * scale, 1e-4 * scale):
                    raise AssertionError(f"{op} {attrs} {d}\n{wide}\nmodel {v}\nmlx {from_mx(g).wide}")
        outputs = [Arr(d, v) for d, v in zip(dtypes, values)]
        self.add(op, inputs, attrs, "numpy", outputs, tol=pick(tol, outputs), every=every, free=free)

    def spec(self, op, inputs, outputs, tol=None, **attrs):
        """Expected values from a rule of lapis."""
        self.add(op, inputs, attrs, "spec", outputs, tol=tol)

    def error(self, kind, op, *inputs, wheel=True, **attrs):
        """A call that is refused with `kind`; wheel=False where MLX accepts it (or fails in another way)."""
        if wheel:
            try:
                mx.eval(*listed(call(op, inputs, attrs)))
            except (ValueError, IndexError, RuntimeError, OverflowError, TypeError):
                pass
            else:
                raise AssertionError(f"{op} {attrs} did not raise in MLX")
        self.add(op, inputs, attrs, "mlx" if wheel else "spec", error=kind)

    def text(self):
        return "[\n" + ",\n".join(self.lines) + "\n]\n"


def pick(tol, outputs):
    """The tolerance of a case from a table by dtype: that of the first inexact output."""
    if tol is None or "float32" not in tol:
        return tol
    return next((tol[o.dtype] for o in outputs if o.dtype in tol), None)


def dumps(value):
    """Compact JSON that keeps the text of a Number."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{dumps(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(dumps(v) for v in value) + "]"
    if isinstance(value, Number):
        return repr(value)
    if isinstance(value, float) and not isinstance(value, bool):
        assert math.isfinite(value)
    return json.dumps(value)
