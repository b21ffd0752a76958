"""The names of MLX's functions, by module."""

import inspect

import mlx.core as mx

from case import dumps

MODULES = ("", "fast", "fft", "linalg", "random", "distributed")


def build():
    modules = {m or "core": sorted(functions(getattr(mx, m) if m else mx)) for m in MODULES}
    return "{\n" + ",\n".join(f"{dumps(m)}:{dumps(names)}" for m, names in modules.items()) + "\n}\n"


def functions(module):
    for name, value in vars(module).items():
        if not name.startswith("_") and callable(value) and not inspect.isclass(value):
            yield name
