"""Writes optim.json: what mlx.optimizers 0.32.4 gives, for tests/optim.rs.

    pip install "mlx[cpu]==0.32.4" numpy && python crates/nn/tests/data/optim.py

Every case runs 20 steps on the same parameters and gradients (float32 unless its name ends in bf16) and records the
parameters after each step, in the order of their names, and the state after the last.
"""

import json
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as opt
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

mx.set_default_device(mx.cpu)
rng = np.random.default_rng(7)
SHAPES = {"bias": (2,), "layers.0.weight": (3, 2), "layers.1.weight": (2, 3), "layers.2.weight": (3, 2, 2)}
STEPS = 20


def draw():
    return {k: rng.standard_normal(s).round(3).astype(np.float32) for k, s in SHAPES.items()}


PARAMS = draw()
GRADS = [draw() for _ in range(STEPS)]

decay = lambda: opt.exponential_decay(1e-1, 0.9)
warm = lambda: opt.join_schedules([opt.linear_schedule(0, 0.1, 5), opt.cosine_decay(0.1, 10, 0.01)], [5])
CASES = {
    "sgd": lambda: opt.SGD(0.1),
    "sgd_decay": lambda: opt.SGD(0.1, weight_decay=0.05),
    "sgd_momentum": lambda: opt.SGD(0.1, momentum=0.9, weight_decay=0.05),
    "sgd_dampening": lambda: opt.SGD(0.1, momentum=0.9, dampening=0.3),
    "sgd_nesterov": lambda: opt.SGD(0.1, momentum=0.8, nesterov=True, weight_decay=0.05),
    "sgd_schedule": lambda: opt.SGD(warm(), momentum=0.9),
    "rmsprop": lambda: opt.RMSprop(0.01),
    "rmsprop_options": lambda: opt.RMSprop(0.01, alpha=0.9, eps=1e-3),
    "adagrad": lambda: opt.Adagrad(0.1),
    "adagrad_eps": lambda: opt.Adagrad(decay(), eps=1e-2),
    "adadelta": lambda: opt.AdaDelta(1.0),
    "adadelta_options": lambda: opt.AdaDelta(0.5, rho=0.8, eps=1e-3),
    "adam": lambda: opt.Adam(0.01),
    "adam_corrected": lambda: opt.Adam(0.01, betas=[0.8, 0.95], eps=1e-4, bias_correction=True),
    "adam_schedule": lambda: opt.Adam(warm(), bias_correction=True),
    "adamw": lambda: opt.AdamW(0.01),
    "adamw_corrected": lambda: opt.AdamW(decay(), weight_decay=0.1, bias_correction=True),
    "adamax": lambda: opt.Adamax(0.01),
    "adamax_options": lambda: opt.Adamax(0.01, betas=[0.7, 0.9], eps=1e-3),
    "lion": lambda: opt.Lion(0.01),
    "lion_decay": lambda: opt.Lion(decay(), betas=[0.8, 0.9], weight_decay=0.1),
    "adafactor": lambda: opt.Adafactor(),
    "adafactor_warmup": lambda: opt.Adafactor(warmup_init=True, decay_rate=-0.5),
    "adafactor_rate": lambda: opt.Adafactor(decay(), relative_step=False, scale_parameter=False, weight_decay=0.05),
    "adafactor_moment": lambda: opt.Adafactor(0.05, relative_step=False, beta_1=0.9, clip_threshold=0.5, eps=(1e-12, 0.1)),
    "muon": lambda: opt.Muon(0.02),
    "muon_plain": lambda: opt.Muon(decay(), momentum=0.8, weight_decay=0, nesterov=False, ns_steps=3),
    "multi": lambda: opt.MultiOptimizer(
        [opt.Muon(0.02), opt.SGD(0.1, momentum=0.9), opt.Adam(0.01)],
        [lambda name, g: name.startswith("layers") and g.ndim == 2, lambda name, g: name == "bias"],
    ),
    "adam_bf16": lambda: opt.Adam(0.01),
    "adam_corrected_bf16": lambda: opt.Adam(0.01, bias_correction=True),
}


def numbers(a):
    return np.array(a.astype(mx.float32)).ravel().tolist()


def run(name, make):
    dtype = mx.bfloat16 if name.endswith("bf16") else mx.float32
    tree = lambda flat: tree_unflatten([(k, mx.array(v).astype(dtype)) for k, v in flat.items()])
    params, optimizer, steps = tree(PARAMS), make(), []
    optimizer.init(params)
    for grads in GRADS:
        params = optimizer.apply_gradients(tree(grads), params)
        mx.eval(params, optimizer.state)
        steps.append([x for _, v in sorted(tree_flatten(params)) for x in numbers(v)])
    state = {
        k: {"dtype": str(v.dtype).split(".")[-1], "shape": list(v.shape), "values": numbers(v)}
        for k, v in tree_flatten(optimizer.state)
    }
    return {"steps": steps, "state": state}


SCHEDULES = {
    "exponential": decay(),
    "step": opt.step_decay(0.1, 0.5, 7),
    "cosine": opt.cosine_decay(0.1, 30, 0.02),
    "linear": opt.linear_schedule(0.0, 0.3, 17),
    "joined": warm(),
    "three": opt.join_schedules([opt.linear_schedule(0, 1, 10), opt.step_decay(1, 0.5, 4), opt.cosine_decay(0.5, 9)], [10, 25]),
}
AT = [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 16, 17, 18, 24, 25, 26, 29, 30, 33, 40]


def clip(max_norm):
    grads, norm = opt.clip_grad_norm({k: mx.array(v) for k, v in GRADS[0].items()}, max_norm)
    return {"max_norm": max_norm, "norm": norm.item(), "grads": {k: numbers(v) for k, v in grads.items()}}


def compact(tree):
    """Floats with eight digits: errors of 1e-8 in comparisons at 1e-6."""
    if isinstance(tree, dict):
        return {k: compact(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [compact(v) for v in tree]
    return float(f"{tree:.8g}") if isinstance(tree, float) else tree


out = {
    "mlx": mx.__version__,
    "shapes": {k: list(s) for k, s in SHAPES.items()},
    "params": {k: v.ravel().tolist() for k, v in PARAMS.items()},
    "grads": [{k: v.ravel().tolist() for k, v in g.items()} for g in GRADS],
    "cases": {name: run(name, make) for name, make in CASES.items()},
    "schedule_steps": AT,
    "schedules": {k: [f(mx.array(t, mx.uint64)).item() for t in AT] for k, f in SCHEDULES.items()},
    "clip": [clip(0.5), clip(100.0), clip(0.0)],
}
path = Path(__file__).with_suffix(".json")
path.write_text(json.dumps(compact(out), separators=(",", ":")) + "\n")
print(path, path.stat().st_size)
