"""Shape and layout: reshape to roll. All bit-exact."""

import numpy as np

from arrays import DTYPES, Arr, Scalar, arr
from reduce import sample

LAYOUTS = [None, "transposed", "strided", "reversed", "offset"]


def build(f):
    reshapes(f)
    axes(f)
    joins(f)
    repeats(f)
    pads(f)
    strided(f)
    types_and_shapes(f)
    slices(f)


def cube(layout=None, dtype="int32"):
    return sample(dtype, [2, 3, 4], layout)


def reshapes(f):
    for layout in LAYOUTS:
        for shape in ([6, 4], [24], [2, -1], [-1, 1, 8], [4, 3, 2], [2, 3, 2, 2]):
            f.wheel("reshape", cube(layout), shape=shape)
        for kw in ({}, {"start_axis": 1}, {"end_axis": 1}, {"start_axis": -2, "end_axis": -1}, {"start_axis": 1, "end_axis": 1}):
            f.wheel("flatten", cube(layout), **kw)
        f.wheel("unflatten", cube(layout), axis=2, shape=[2, -1])
    f.wheel("reshape", arr("float32", 3.0), shape=[1, 1])
    f.wheel("reshape", arr("float32", [[3.0]]), shape=[])
    f.wheel("reshape", arr("float32", np.zeros((0, 3))), shape=[3, 0])
    f.wheel("reshape", arr("float32", np.zeros((0, 3))), shape=[3, -1])
    f.wheel("flatten", arr("float32", 3.0))
    f.wheel("flatten", arr("int32", np.zeros((2, 0))))
    f.wheel("unflatten", cube(), axis=-2, shape=[3, 1])
    f.error("Shape", "reshape", cube(), shape=[5, 5])
    f.error("Shape", "reshape", cube(), shape=[-1, 7])
    f.error("Shape", "reshape", cube(), shape=[-1, -1, 4])
    f.error("Shape", "reshape", arr("float32", np.zeros((0, 3))), shape=[0, -1])
    f.error("Shape", "reshape", cube(), shape=[2, -3, -4], wheel=False)
    f.error("Shape", "unflatten", cube(), axis=2, shape=[3, 3])
    f.error("Axis", "unflatten", cube(), axis=3, shape=[2, 2])
    f.error("Axis", "flatten", cube(), start_axis=3, wheel=False)
    f.error("Axis", "flatten", cube(), start_axis=2, end_axis=1)


def axes(f):
    ones = [1, 3, 1, 4]
    for layout in LAYOUTS:
        x = sample("float32", ones, layout)
        for axis in (None, 0, 2, -2, [0, 2], [-4, 2]):
            f.wheel("squeeze", x, axis=axis)
        for axis in (0, 1, -1, 3, [0, 2], [-1, 0], [1, 2, 4]):
            f.wheel("expand_dims", cube(layout), axis=axis)
        for perm in (None, [2, 0, 1], [0, 2, 1], [-1, 0, 1]):
            f.wheel("transpose", cube(layout), axes=perm)
        f.wheel("swapaxes", cube(layout), axis1=0, axis2=-1)
        f.wheel("moveaxis", cube(layout), source=0, destination=2)
        f.wheel("moveaxis", cube(layout), source=-1, destination=0)
    f.wheel("transpose", arr("float32", 1.0))
    f.wheel("transpose", arr("float32", [1.0, 2.0]))
    f.wheel("permute_dims", cube(), axes=[1, 0, 2])
    for dtype in DTYPES:
        f.wheel("transpose", sample(dtype, [2, 3]))
        f.wheel("reshape", sample(dtype, [2, 3], "transposed"), shape=[6])
    f.error("Axis", "squeeze", cube(), axis=3)
    f.error("Shape", "squeeze", cube(), axis=1)
    f.error("Axis", "squeeze", sample("float32", ones), axis=[0, 0])
    f.error("Axis", "expand_dims", cube(), axis=4)
    f.error("Axis", "expand_dims", cube(), axis=[0, 0])
    f.error("Axis", "transpose", cube(), axes=[0, 0, 1])
    f.error("Axis", "transpose", cube(), axes=[0, 1])
    f.error("Axis", "transpose", cube(), axes=[0, 1, 3])
    f.error("Axis", "swapaxes", cube(), axis1=0, axis2=3)
    f.error("Axis", "moveaxis", cube(), source=3, destination=0)
    broadcasts(f)
    atleast(f)


def broadcasts(f):
    for layout in LAYOUTS:
        f.wheel("broadcast_to", sample("int32", [3, 1], layout), shape=[2, 3, 4])
    f.wheel("broadcast_to", arr("float32", 2.0), shape=[2, 2])
    f.wheel("broadcast_to", sample("float32", [1, 3]), shape=[0, 3])
    f.wheel("broadcast_arrays", arr("int32", [1, 2, 3]), arr("float32", [[1.0], [2.0]]))
    f.wheel("broadcast_arrays", arr("int32", 1), arr("int32", [1, 2]), arr("int32", [[5], [6]]))
    f.error("Shape", "broadcast_to", sample("int32", [3]), shape=[4])
    f.error("Shape", "broadcast_to", sample("int32", [2, 3]), shape=[3])
    f.error("Shape", "broadcast_arrays", arr("int32", [1, 2, 3]), arr("int32", [1, 2]))


def atleast(f):
    for op in ("atleast_1d", "atleast_2d", "atleast_3d"):
        for x in (arr("float32", 1.0), arr("float32", [1.0, 2.0]), sample("int32", [2, 3]), cube()):
            f.wheel(op, x)
    f.wheel("atleast_2d", arr("float32", 1.0), arr("int32", [1, 2]))


def joins(f):
    a, b = sample("float32", [2, 3]), sample("float32", [2, 2])
    for layout in LAYOUTS:
        for axis in (0, 1, -1, None):
            f.wheel("concatenate", sample("int32", [2, 3], layout), sample("int32", [2, 3]), axis=axis)
            if axis is not None:
                f.wheel("stack", sample("int32", [2, 3], layout), sample("int32", [2, 3]), axis=axis)
        f.wheel("unstack", cube(layout), axis=1)
        f.wheel("split", cube(layout), indices_or_sections=2, axis=2)
        f.wheel("split", cube(layout), indices_or_sections=[1, 2], axis=1)
    f.wheel("concatenate", a, b, axis=1)
    f.wheel("concatenate", a, axis=0)
    f.wheel("concatenate", a, arr("float32", np.zeros((0, 3))), a, axis=0)
    f.wheel("concatenate", arr("int8", [1]), arr("uint8", [200]), arr("float16", [0.5]), axis=0)
    f.wheel("stack", arr("bool", [True]), arr("int32", [5]))
    f.wheel("stack", arr("float32", 1.0), arr("float32", 2.0))
    for dtype in DTYPES:
        f.wheel("concatenate", sample(dtype, [2, 2]), sample(dtype, [2, 2], "transposed"), axis=1)
    x = arr("int32", np.arange(10))
    for sections in (2, 5, [3], [3, 7], [-3], [2, 2], [0, 10], [4, 20], []):
        f.wheel("split", x, indices_or_sections=sections)
    f.wheel("unstack", x)
    f.error("Shape", "concatenate", a, b, axis=0)
    f.error("Shape", "concatenate", a, arr("float32", [1.0]), axis=0)
    f.error("Axis", "concatenate", a, a, axis=2)
    f.error("Axis", "concatenate", a, axis=2, wheel=False)
    f.error("Value", "concatenate")
    f.error("Value", "stack")
    f.error("Shape", "stack", a, b)
    f.error("Axis", "stack", a, a, axis=3)
    f.error("Value", "split", x, indices_or_sections=3)
    f.error("Value", "split", x, indices_or_sections=0, wheel=False)
    f.error("Axis", "split", x, indices_or_sections=2, axis=1)
    f.error("Axis", "unstack", x, axis=1)


def repeats(f):
    for layout in LAYOUTS:
        x = sample("int32", [2, 3], layout)
        for reps in (2, [2, 1], [1, 3], [2, 1, 2], [2]):
            f.wheel("tile", x, reps=reps)
        for axis in (None, 0, 1, -1):
            f.wheel("repeat", x, repeats=2, axis=axis)
        for shift, axis in ((1, None), (2, 0), (-1, 1), ([1, 2], [0, 1]), ([1, 1], [1, 1]), (7, None), (3, [0, 1])):
            f.wheel("roll", x, shift=shift, axis=axis)
    f.wheel("tile", arr("float32", 2.0), reps=[3])
    f.wheel("tile", sample("float32", [2]), reps=[0])
    f.wheel("repeat", sample("float32", [2, 2]), repeats=0, axis=0)
    f.wheel("repeat", arr("float32", 2.0), repeats=3)
    f.wheel("roll", arr("float32", np.zeros((0,))), shift=1, axis=None)
    for dtype in ("bool", "uint8", "int64", "bfloat16", "complex64"):
        f.wheel("tile", sample(dtype, [2, 2]), reps=[1, 2])
        f.wheel("roll", sample(dtype, [5]), shift=2, axis=None)
    for axis in (None, 0, 1, -1, [0, 2]):
        flipped = np.flip(cube().values, axis=tuple(axis) if isinstance(axis, list) else axis)
        f.spec("flip", [cube("strided")], [arr("int32", flipped)], axis=axis)
    f.error("Value", "repeat", sample("int32", [2]), repeats=-1, axis=0)
    f.error("Axis", "repeat", sample("int32", [2]), repeats=2, axis=1)
    f.error("Axis", "roll", sample("int32", [2]), shift=1, axis=1)
    f.error("Axis", "flip", sample("int32", [2]), axis=1, wheel=False)


def pads(f):
    for layout in LAYOUTS:
        x = sample("int32", [2, 3], layout)
        for width in (1, [2, 1], [[1, 0], [0, 2]]):
            f.wheel("pad", x, pad_width=width)
            f.wheel("pad", x, pad_width=width, mode="edge")
    x = sample("float32", [2, 3])
    f.wheel("pad", x, Scalar(2.5), pad_width=1)
    f.wheel("pad", x, arr("float32", -1.0), pad_width=[[0, 1], [1, 0]])
    f.wheel("pad", x, pad_width=0)
    f.wheel("pad", x, pad_width=[1])
    f.wheel("pad", arr("float32", np.zeros((0, 2))), pad_width=1)
    # Reflections continue when the pad is longer than the array.
    for mode in ("reflect", "symmetric"):
        for width in ([1, 1], [2, 2], [0, 5], [7, 4]):
            line = arr("int32", [1, 2, 3])
            f.spec("pad", [line], [arr("int32", np.pad(line.values, width, mode=mode))], pad_width=width, mode=mode)
            grid = sample("float32", [2, 3], "transposed")
            f.spec("pad", [grid], [arr("float32", np.pad(grid.values, [[1, 1], width], mode=mode))], pad_width=[[1, 1], width], mode=mode)
    f.error("Value", "pad", x, pad_width=-1)
    f.error("Value", "pad", x, pad_width=[[1, 1], [1, 1], [1, 1]])
    f.error("Value", "pad", x, pad_width=1, mode="wrap")


def types_and_shapes(f):
    for shapes in ([[2, 3]], [[2, 1], [3]], [[4, 1, 2], [3, 1], []], [[0, 1], [1, 5]], [[1], [1], [7]]):
        f.wheel("broadcast_shapes", shapes=shapes)
    f.error("Shape", "broadcast_shapes", shapes=[[2, 3], [4]])
    for dtypes in (["int8"], ["uint8", "int8"], ["uint64", "int8"], ["float16", "bfloat16"], ["bool", "uint16", "int16"], ["int64", "float16"], ["float64", "complex64"]):
        f.wheel("result_type", *[arr(d, [1]) for d in dtypes])
    f.error("Value", "result_type")


def strided(f):
    x = arr("int32", np.arange(12))
    f.wheel("as_strided", x, shape=[3, 3], strides=[1, 1], offset=0)
    f.wheel("as_strided", x, shape=[3, 2], strides=[4, 2], offset=1)
    f.wheel("as_strided", x, shape=[4], strides=[0], offset=5)
    f.wheel("as_strided", sample("int32", [3, 4], "transposed"), shape=[2, 2], strides=[4, 1], offset=3)
    f.wheel("as_strided", x, shape=[3, 2], strides=[-2, 1], offset=8)
    f.error("Value", "as_strided", x, shape=[4, 4], strides=[4, 1], offset=0, wheel=False)
    f.error("Value", "as_strided", x, shape=[2], strides=[-1], offset=0, wheel=False)
    f.error("Value", "as_strided", x, shape=[2, 2], strides=[1], offset=0, wheel=False)
    for layout in LAYOUTS:
        for dtype in ("float32", "bool", "complex64", "int16"):
            f.wheel("contiguous", cube(layout, dtype))
        f.wheel("contiguous", cube(layout), allow_col_major=True)
    f.wheel("matrix_transpose", cube()) if hasattr(__import__("mlx.core").core, "matrix_transpose") else f.spec(
        "matrix_transpose", [cube()], [arr("int32", np.swapaxes(cube().values, -1, -2))])


def slices(f):
    """Starts known only at evaluation, sizes fixed."""
    x = sample("int32", [4, 5])
    f.wheel("slice", x, arr("int32", [1, 2]), axes=[0, 1], slice_size=[2, 3])
    f.wheel("slice", x, arr("int32", [2]), axes=[1], slice_size=[4, 2])
    f.wheel("slice", x, arr("uint32", 3), axes=[0], slice_size=[1, 5])
    f.wheel("slice_update", x, arr("int32", [[100, 200]]), arr("int32", [3, 1]), axes=[0, 1])
    f.wheel("slice_update", x, arr("float32", [[1.5], [2.5]]), arr("int32", [2]), axes=[1])
    f.error("Index", "slice", x, arr("int32", [3, 2]), axes=[0, 1], slice_size=[2, 3], wheel=False)
    f.error("Index", "slice", x, arr("int32", [-1]), axes=[0], slice_size=[2, 5], wheel=False)
    f.error("Index", "slice_update", x, arr("int32", [[1, 2]]), arr("int32", [4]), axes=[1], wheel=False)
    f.error("Axis", "slice", x, arr("int32", [0]), axes=[2], slice_size=[2, 5])
    f.error("Shape", "slice", x, arr("int32", [0]), axes=[0], slice_size=[5, 5])
    f.error("Shape", "slice", x, arr("int32", [0, 0]), axes=[0], slice_size=[2, 5])
