"""Indexing: getitem, setitem, at, take and put."""

import numpy as np

import mlx.core as mx
from arrays import DTYPES, INTS, Arr, Scalar, arr, from_mx, plain
from reduce import sample

LAYOUTS = [None, "transposed", "strided", "reversed", "offset"]
INT, SLICE, NEW, REST = "int", "slice", None, "..."


def i(v):
    return {"int": v}


def s(*parts):
    return {"slice": list(parts) + [None] * (3 - len(parts))}


def a(k):
    return {"array": k}


def m(k):
    return {"mask": k}


def index_of(entries, operands, convert):
    """The Python index of an index attribute; operands are counted from 0 = the indexed array."""
    out = []
    for e in entries:
        if e is None:
            out.append(None)
        elif e == "...":
            out.append(Ellipsis)
        elif "int" in e:
            out.append(e["int"])
        elif "slice" in e:
            out.append(slice(*e["slice"]))
        else:
            out.append(convert(operands[e.get("array", e.get("mask"))]))
    return tuple(out) if len(out) != 1 else out[0]


def get(f, inputs, *entries, wheel=True):
    """x[index]; with wheel=False the expected value is numpy's (masks)."""
    if wheel:
        value = from_mx(inputs[0].mx()[index_of(entries, inputs, Arr.mx)])
        expected = inputs[0].values[index_of(entries, inputs, lambda x: x.values)]
        assert np.array_equal(value.values, expected, equal_nan=True) and value.shape == list(expected.shape), entries
    else:
        value = Arr(inputs[0].dtype, inputs[0].values[index_of(entries, inputs, lambda x: x.values)])
    f.add("getitem", inputs, {"index": list(entries)}, "mlx" if wheel else "spec", [value])


def put(f, inputs, *entries, op="setitem", wheel=True):
    """x[index] = v or x.at[index].op(v); v is the last operand."""
    x, v = inputs[0], inputs[-1]
    host = v.value if isinstance(v, Scalar) else v.mx()
    if wheel:
        target = mx.array(x.mx())
        index = index_of(entries, inputs, Arr.mx)
        if op == "setitem":
            target[index] = host
        else:
            target = getattr(target.at[index], op.split(".")[1])(host)
        out = from_mx(target)
    else:
        out = x.values.copy()
        out[index_of(entries, inputs, lambda q: q.values)] = v.value if isinstance(v, Scalar) else v.values
        out = Arr(x.dtype, out)
    f.add(op, inputs, {"index": list(entries)}, "mlx" if wheel else "spec", [out])


def refuse(f, kind, inputs, *entries, op="getitem"):
    f.add(op, inputs, {"index": list(entries)}, "spec", error=kind)


def build(f):
    basic(f)
    advanced(f)
    masks(f)
    updates(f)
    at(f)
    takes(f)
    errors(f)


def basic(f):
    views = [(i(0),), (i(-1),), (i(1), i(2)), (i(1), i(2), i(-1)), (s(None),), (s(1, None),), (s(None, -1),), (s(None, None, -1),),
             (s(0, 2), s(None, None, 2)), (s(5, 9),), (s(-9, 9),), (s(2, 1),), ("...", i(0)), (i(0), "..."), (i(0), "...", i(1)), (None,), (None, i(1), None),
             (s(None), None, s(1, 3)), ("...", None), (s(None), s(None, None, -2), s(3, 0, -1)), ("...", s(1, None, 2)), (None, "...", None, i(2)), ("...",)]
    for k, entries in enumerate(views):
        get(f, [sample("int32", [2, 3, 4], LAYOUTS[k % 5])], *entries)
        get(f, [sample("float32", [2, 3, 4])], *entries)
    for dtype in DTYPES:
        get(f, [sample(dtype, [3, 4])], s(None, None, -1), s(1, None, 2))
    get(f, [arr("float32", 5.0)], None)
    get(f, [arr("float32", 5.0)], "...")
    get(f, [arr("float32", np.zeros((0, 3)))], s(None), i(1))
    get(f, [arr("int32", np.arange(6))], s(4, None, -3))
    get(f, [arr("int32", np.arange(6))], s(-1, -7, -1))


def advanced(f):
    x = sample("int32", [3, 4, 5])
    one, two, row = arr("int32", [0, 2]), arr("uint32", [[1, 0], [3, -0]]), arr("int64", [-1, 0, 2])
    get(f, [x, one], a(1))
    get(f, [x, two], s(None), a(1))
    get(f, [x, one], i(0), s(None), a(1))
    get(f, [x, one], s(None), a(1), a(1))
    get(f, [x, one], i(0), None, a(1))
    get(f, [x, one], None, a(1), "...", i(0))
    get(f, [x, one, arr("int32", [1, 3])], a(1), a(2))
    get(f, [x, one, arr("int32", [1, 3])], a(1), s(1, 3), a(2))
    get(f, [x, one, arr("int32", [[0], [4]])], a(1), "...", a(2))
    get(f, [x, one], a(1), s(None, None, -1), s(0, 4, 2))
    get(f, [x, row], s(0, 2), a(1))
    get(f, [x, arr("int32", 1)], a(1))
    get(f, [x, arr("int32", 1)], s(None), a(1), i(2))
    get(f, [x, arr("int32", np.zeros((0,)))], a(1))
    get(f, [x, arr("int32", np.zeros((2, 0)))], s(None), a(1))
    get(f, [x, one, arr("uint8", [1, 0]), arr("int16", [4, -5])], a(1), a(2), a(3))
    get(f, [x, one], a(1), None, a(1)) 
    for dtype in INTS:
        get(f, [sample("float32", [4, 2]), arr(dtype, [3, 0, 1])], a(1))
    for dtype in DTYPES:
        get(f, [sample(dtype, [4, 2], "strided"), arr("int32", [-1, 1, 1])], a(1))
    for layout in LAYOUTS:
        get(f, [sample("bfloat16", [3, 4, 5], layout), arr("int32", [[0, 1], [2, 2]], layout)], s(None), a(1))
        get(f, [sample("float32", [3, 4, 5], layout), one, arr("int32", [3, 3], "reversed")], a(1), a(2), s(1, None))


def masks(f):
    """lapis: masks read, also inside tuples, as in numpy."""
    x = sample("int32", [3, 4])
    full, rows = sample("bool", [3, 4]), arr("bool", [True, False, True])
    columns = arr("bool", [False, True, True, False])
    get(f, [x, full], m(1), wheel=False)
    get(f, [x, rows], m(1), wheel=False)
    get(f, [x, columns], s(None), m(1), wheel=False)
    get(f, [x, rows], m(1), i(1), wheel=False)
    get(f, [x, rows], m(1), s(1, 3), wheel=False)
    get(f, [x, rows, arr("int32", [1, 2])], m(1), a(2), wheel=False)
    get(f, [sample("float32", [3, 4], "transposed"), sample("bool", [3, 4], "reversed")], m(1), wheel=False)
    get(f, [sample("float32", [2, 3, 4]), sample("bool", [2, 3])], m(1), wheel=False)
    get(f, [x, arr("bool", [False] * 3)], m(1), wheel=False)
    put(f, [x, full, Scalar(-1)], m(1))
    put(f, [x, rows, Scalar(-1)], m(1))
    put(f, [x, rows, arr("int32", [7, 8, 9, 10])], m(1))
    put(f, [x, rows, arr("int32", [[1, 2, 3, 4], [5, 6, 7, 8]])], m(1))
    count = int(full.values.sum())
    put(f, [x, full, arr("int32", np.arange(100, 100 + count))], m(1))
    put(f, [sample("float32", [2, 3, 4], "transposed"), sample("bool", [2, 3]), arr("float32", 0.5)], m(1))
    put(f, [x, columns, Scalar(9)], s(None), m(1), wheel=False)
    put(f, [x, rows, Scalar(9)], m(1), s(0, 2), wheel=False)
    refuse(f, "Value", [x, full, arr("int32", [1, 2])], m(1), op="setitem")
    refuse(f, "Index", [x, arr("bool", [True, False])], m(1))
    refuse(f, "Index", [x, arr("bool", [True, False]), Scalar(1)], m(1), op="setitem")


def updates(f):
    x = sample("int32", [3, 4])
    for entries, v in (((i(0),), Scalar(9)), ((i(-1), i(2)), Scalar(9)), ((s(None),), arr("int32", [1, 2, 3, 4])), ((s(None, None, 2),), arr("int32", [[5], [6]])),
                       ((s(None), s(1, 3)), Scalar(0)), ((s(None, None, -1), i(0)), arr("int32", [1, 2, 3])), (("...", i(1)), arr("int32", [7, 8, 9])),
                       ((None,), Scalar(4)), (("...",), arr("int32", [1, 2, 3, 4])), ((s(2, 2),), Scalar(1)), ((i(1),), arr("float32", [1.9, -1.9, 2.5, 3.0])),
                       ((s(0, 2),), arr("int32", np.arange(8).reshape(1, 1, 2, 4))), ((s(2, None, -2), s(None, None, 3)), arr("int32", [[1, 2], [3, 4]]))):
        put(f, [x, v], *entries)
        put(f, [sample("int32", [3, 4], "transposed"), v], *entries)
    one = arr("int32", [2, 0])
    put(f, [x, one, Scalar(9)], a(1))
    put(f, [x, one, arr("int32", [[1, 2, 3, 4], [5, 6, 7, 8]])], a(1))
    put(f, [x, one, arr("int32", [10, 20, 30, 40], "strided")], a(1))
    put(f, [x, one, arr("int32", [10, 20])], a(1), i(-1))
    put(f, [x, one, arr("int32", [1, 3]), arr("int32", [10, 20])], a(1), a(2))
    put(f, [x, one, arr("int32", [[10, 20], [30, 40], [50, 60]])], s(None), a(1))
    put(f, [x, arr("int32", [1, 1, 1]), arr("int32", [10, 20, 30])], a(1), i(0))
    put(f, [sample("float32", [3, 4, 2], "reversed"), one, arr("float32", [[0.5], [1.5]])], a(1), i(1))
    put(f, [x, arr("int32", np.zeros((0,))), Scalar(5)], a(1))
    for dtype in DTYPES:
        put(f, [sample(dtype, [3, 4]), arr(dtype, [1, 0])], s(None, 2), i(1))
        put(f, [sample(dtype, [3, 4]), one, arr(dtype, [[1], [0]])], a(1))


def at(f):
    x = sample("float32", [3, 4])
    repeated = arr("int32", [0, 2, 0])
    for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum"):
        op = f"at.{name}"
        v = arr("float32", [[2.0], [4.0], [0.5]])
        put(f, [x, repeated, v], a(1), op=op)
        put(f, [x, Scalar(2.0)], s(None, None, 2), op=op)
        put(f, [x, arr("float32", [1.0, 2.0, 4.0])], s(None), i(1), op=op)
        put(f, [x, Scalar(4.0)], i(0), i(0), op=op)
        put(f, [sample("float32", [3, 4], "transposed"), repeated, arr("int32", [1, 1, 1]), arr("float32", [1.0, 2.0, 8.0])], a(1), a(2), op=op)
        if name not in ("divide",):
            for dtype in ("int32", "uint8", "int64", "bfloat16"):
                put(f, [sample(dtype, [4]), arr("int32", [3, 3, 1]), arr(dtype, [2, 3, 4])], a(1), op=op)
    # Half precision accumulates in f32.
    from arrays import lcg
    for dtype in ("float16", "bfloat16"):
        f.add("at.add", [arr(dtype, [0.0]), lcg("int32", [4096], 0, 0, 0), lcg(dtype, [4096], 0, 1.0, 1.0)], {"index": [a(1)]}, "spec", [arr(dtype, [4096.0])])


def takes(f):
    x = sample("float32", [3, 4])
    for layout in LAYOUTS:
        y = sample("int32", [3, 4], layout)
        f.wheel("take", y, arr("int32", [0, 2]), axis=0)
        f.wheel("take", y, arr("int32", [[0, 3], [1, -1]]), axis=1)
        f.wheel("take", y, arr("int32", [11, 0, 5]))
        f.wheel("take_along_axis", y, arr("int32", [[0, 1, 2, 0]]), axis=0)
        f.wheel("take_along_axis", y, arr("uint32", [[3], [0], [1]]), axis=1)
        f.wheel("take_along_axis", y, arr("int32", [[-1, 0], [1, 1], [2, -4]], layout), axis=1)
        f.wheel("put_along_axis", y, arr("int32", [[1], [0], [3]]), arr("int32", [[100], [200], [300]]), axis=1)
    f.wheel("take", x, arr("int32", 2), axis=0)
    f.wheel("take", x, Scalar(1), axis=1)
    f.wheel("take", x, arr("int32", np.zeros((0,))), axis=0)
    f.wheel("take_along_axis", x, arr("int32", [1, 5]), axis=None)
    f.wheel("put_along_axis", x, arr("int32", [1, 5]), arr("float32", [10.0, 20.0]), axis=None)
    f.wheel("put_along_axis", x, arr("int32", [[0, 1, 2, 0]]), arr("float32", 7.5), axis=0)
    for dtype in DTYPES:
        f.wheel("take", sample(dtype, [4, 2]), arr("int32", [3, 0]), axis=0)
        f.wheel("take_along_axis", sample(dtype, [2, 3]), arr("int32", [[2, 0], [1, 1]]), axis=-1)
        f.wheel("put_along_axis", sample(dtype, [2, 3]), arr("int32", [[2], [1]]), arr(dtype, [[1], [0]]), axis=-1)


def errors(f):
    x = sample("int32", [3, 4])
    for entries in ((i(3),), (i(-4),), (s(None), i(4)), ("...", i(4))):
        refuse(f, "Index", [x], *entries)
        refuse(f, "Index", [x, Scalar(1)], *entries, op="setitem")
    refuse(f, "Index", [x], i(0), i(0), i(0))
    refuse(f, "Index", [x], "...", "...")
    refuse(f, "Value", [x], s(0, 2, 0))
    for bad in ([3], [-4], [0, 7]):
        refuse(f, "Index", [x, arr("int32", bad)], a(1))
        refuse(f, "Index", [x, arr("int32", bad), Scalar(1)], a(1), op="setitem")
        refuse(f, "Index", [x, arr("int32", bad), Scalar(1)], a(1), op="at.add")
        f.error("Index", "take", x, arr("int32", bad), axis=0, wheel=False)
    refuse(f, "Index", [x, arr("uint8", [200])], s(None), a(1))
    refuse(f, "Index", [x, arr("int64", [2**40])], a(1))
    f.error("Index", "take", x, arr("int32", [12]), wheel=False)
    f.error("Index", "take_along_axis", x, arr("int32", [[4]]), axis=1, wheel=False)
    f.error("Index", "put_along_axis", x, arr("int32", [[-5]]), arr("int32", [[1]]), axis=1, wheel=False)
    refuse(f, "Dtype", [x, arr("float32", [1.0])], a(1))
    f.error("Dtype", "take", x, arr("float32", [1.0]), axis=0)
    f.error("Dtype", "take_along_axis", x, arr("float32", [[1.0]]), axis=0)
    refuse(f, "Shape", [x, arr("int32", [0, 1]), arr("int32", [0, 1, 2])], a(1), a(2))
    refuse(f, "Shape", [x, arr("int32", [1, 2, 3])], i(0), op="setitem")
    refuse(f, "Shape", [x, arr("int32", [0, 1]), arr("int32", [1, 2, 3])], a(1), op="setitem")
    refuse(f, "Shape", [x, arr("int32", [1, 2, 3])], i(0), op="at.add")
    f.error("Axis", "take", x, arr("int32", [0]), axis=2)
    f.error("Axis", "take_along_axis", x, arr("int32", [[0]]), axis=2)
    f.error("Shape", "take_along_axis", x, arr("int32", [0]), axis=0)
