"""The derivatives of the cases as MLX has them: for cases with float32 operands the products of Jacobian and weights.

A row names a case by family and line; `vjp` holds a gradient for every float32 operand, `jvp` a derivative for every
float32 output, in row-major order; one of them is null where MLX has no rule. Complex outputs count as two, their real and
their imaginary parts. Weights are those of `counted`.
"""

import collections
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import mlx.core as mx
import numpy as np

import case
from arrays import lcg, mx_dtype
from case import dumps
from index import index_of

CASES = pathlib.Path(__file__).resolve().parents[2] / "cases"
TABLES = {"dtypes", "names", "printing", "gradients"}
# Cases of an operation, and elements of an array.
MANY, LARGE = 8, 256
# The same for operations with many plain cases before the odd ones, and with large ones only.
FEW = {"block_masked_mm": (2, 2048), "hadamard_transform": (12, 256), "quantize": (60, 256)}
# Derivatives of what the definition leaves open.
SKIPPED = {"fft.istft", "linalg.svd", "linalg.eigh"}


def number(v):
    return float(v) if isinstance(v, str) else complex(*v) if isinstance(v, list) else v


def operand(v):
    """The MLX array or host number of a case's operand."""
    if v is None:
        return None
    if "scalar" in v:
        s = v["scalar"]
        return complex(s["re"], s["im"]) if isinstance(s, dict) else number(s)
    if "gen" in v:
        g = v["gen"]
        return lcg(v["dtype"], v["shape"], g["seed"], g["lo"], g["hi"]).mx()
    values = np.array([number(x) for x in v["data"]]).reshape(v["shape"])
    return mx.array(values, dtype=mx_dtype(v["dtype"]))


def attribute(v):
    return float(v) if v in ("inf", "-inf", "nan") else v


def counted(shape, first):
    """Weights that are the same in every language: sevenths from -1 to 1, beginning at another one for each array."""
    n = math.prod(shape)
    return mx.array([((i + first) * 5 % 13 - 6) / 7 for i in range(n)], dtype=mx.float32).reshape(shape)


def apply(op, inputs, attrs):
    if op == "getitem":
        return inputs[0][index_of(attrs["index"], inputs, lambda x: x)]
    if op == "setitem" or op.startswith("at."):
        target = mx.array(inputs[0])
        index = index_of(attrs["index"], inputs, lambda x: x)
        if op == "setitem":
            target[index] = inputs[-1]
            return target
        return getattr(target.at[index], op.split(".")[1])(inputs[-1])
    return case.call(op, inputs, dict(attrs))


def has(line, dtype):
    return any(v and v.get("dtype") == dtype for v in line["inputs"])


def derivatives(line):
    """Gradients and derivatives of one case, None for those that MLX does not have."""
    inputs = [operand(v) for v in line["inputs"]]
    if not has(line, "float32"):
        inputs[0] = inputs[0].astype(mx.float32)
    attrs = {k: attribute(v) if isinstance(v, str) else v for k, v in line.get("attrs", {}).items()}
    real = [i for i, x in enumerate(inputs) if isinstance(x, mx.array) and x.dtype == mx.float32]
    large = FEW.get(line["op"], (MANY, LARGE))[1]
    if not real or any(inputs[i].size > large for i in real):
        return None

    def f(*x):
        all = list(inputs)
        for i, v in zip(real, x):
            all[i] = v
        out = case.listed(apply(line["op"], all, attrs))
        return [part for o in out for part in parts(o)]

    x = [inputs[i] for i in real]
    outputs = f(*x)
    if not outputs or any(o.size > large for o in outputs):
        return None

    def attempt(run):
        try:
            got = run()
            mx.eval(got)
        except (ValueError, RuntimeError, IndexError):
            return None
        return [[plain(v) for v in np.array(g, dtype=np.float64).flatten()] for g in got]

    return {
        "vjp": attempt(lambda: mx.vjp(f, x, [counted(o.shape, i) for i, o in enumerate(outputs)])[1]),
        "jvp": attempt(lambda: mx.jvp(f, x, [counted(a.shape, i) for i, a in enumerate(x)])[1]),
    }


def parts(o):
    return [o] if o.dtype == mx.float32 else [mx.real(o), mx.imag(o)] if o.dtype == mx.complex64 else []


def plain(v):
    return float(f"{v:.6g}") if math.isfinite(v) else str(v)


def candidates():
    """Family, line number and case of everything that might have derivatives. Of operations whose cases have no float32
    the first operand is taken as such where it is int32."""
    rows = list(cases())
    real = {line["op"] for _, _, line in rows if has(line, "float32") and line["op"] != "slice_update"}
    for family, number_, line in rows:
        first = line["inputs"][0] if line["inputs"] else None
        if has(line, "float32") or line["op"] not in real and first and first.get("dtype") == "int32":
            yield family, number_, line


def cases():
    for path in sorted(CASES.glob("*.json")):
        if path.stem not in TABLES:
            for number_, text in enumerate(path.read_text().splitlines()[1:-1], 2):
                line = json.loads(text.rstrip(","))
                if "error" not in line and line["op"] not in SKIPPED:
                    yield path.stem, number_, line


def work(first, taken):
    """Prints a row, or null, for each candidate from `first` on; of an operation so many are `taken`. Some rules of MLX end
    the process."""
    for family, number_, line in list(candidates())[first:]:
        row, op = None, line["op"]
        if taken.get(op, 0) < FEW.get(op, (MANY, LARGE))[0]:
            try:
                found = derivatives(line)
            except (NotImplementedError, ValueError, RuntimeError, IndexError, TypeError, AttributeError):
                # A rule of lapis beyond MLX.
                found = None
            if found and (found["vjp"] or found["jvp"]):
                taken[op] = taken.get(op, 0) + 1
                row = {"family": family, "line": number_, "op": op} | found
        print(json.dumps(row), flush=True)


def build():
    count, rows = len(list(candidates())), []
    while len(rows) < count:
        taken = collections.Counter(row["op"] for row in rows if row)
        command = [sys.executable, "-c", f"import gradients; gradients.work({len(rows)}, {dict(taken)})"]
        with tempfile.TemporaryFile("w+") as out:
            try:
                done = subprocess.run(command, stdout=out, timeout=60, env=os.environ | {"PYTHONPATH": ":".join(sys.path)})
                ended = done.returncode == 0
            except subprocess.TimeoutExpired:
                ended = False
            out.seek(0)
            rows += [json.loads(text) for text in out.read().splitlines()]
        if not ended:
            print("MLX ends at candidate", len(rows))
            rows.append(None)
    rows = [row for row in rows if row]
    return "[\n" + ",\n".join(dumps(row) for row in rows) + "\n]\n"
