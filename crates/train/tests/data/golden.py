"""The first steps of LoRA by mlx-lm, from weights and samples that any language makes again.

  pip install "mlx[cpu]" mlx-lm numpy
  python golden.py > golden.json

Weights, first factors and samples are drawn from a counter-based generator (`uniform`), so the file holds losses, for each
step and parameter the length of the gradient and its product with a drawn direction, and the same of the last weights.
"""
import json, math
import numpy as np
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import llama, qwen3_moe
from mlx_lm.tuner import trainer
from mlx_lm.tuner.utils import linear_to_lora_layers

MASK = (1 << 64) - 1
STEPS = 20


def fnv1a(text):
    h = 0xCBF29CE484222325
    for b in text.encode():
        h = ((h ^ b) * 0x100000001B3) & MASK
    return h


def uniform(name, n):
    """n numbers in [0, 1): the top 24 bits of splitmix64(fnv1a(name) + i)."""
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a(name)) + np.arange(n, dtype=np.uint64)
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / float(1 << 24)


def drawn(name, shape, center, scale):
    x = center + scale * (2.0 * uniform(name, math.prod(shape)) - 1.0)
    return mx.array(x.astype(np.float32).reshape(shape))


SIZES = dict(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True)
CONFIGS = dict(
    llama=dict(model_type="llama", **SIZES),
    qwen3_moe=dict(model_type="qwen3_moe", head_dim=16, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1,
                   mlp_only_layers=[], moe_intermediate_size=32, norm_topk_prob=True, **SIZES),
)


def build(name):
    module = {"llama": llama, "qwen3_moe": qwen3_moe}[name]
    return module.Model(module.ModelArgs.from_dict(CONFIGS[name]))


def weight(name, shape):
    if len(shape) == 1:
        return drawn(name, shape, 1.0, 0.1)
    return drawn(name, shape, 0.0, 1.0 if "embed" in name else math.sqrt(3.0 / shape[-1]))


def samples(count):
    """Token lists in order of length, each with the length of its prompt."""
    out = []
    for i in range(count):
        n = 6 + 3 * i
        tokens = (uniform(f"sample {i}", n) * 96).astype(int).tolist()
        out.append((tokens, n // 4 if i % 2 else 0))
    return out


class Rows:
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def summary(params):
    out = {}
    for name, a in tree_flatten(params):
        x = np.array(a, dtype=np.float64)
        direction = 2.0 * uniform("direction " + name, x.size).reshape(x.shape) - 1.0
        out[name] = [float(np.sqrt((x * x).sum())), float((x * direction).sum())]
    return out


def run(case):
    model = build(case["model"])
    model.update(tree_unflatten([(n, weight(n, a.shape)) for n, a in tree_flatten(model.parameters())]))
    if case["bits"]:
        nn.quantize(model, group_size=32, bits=case["bits"])
    model.freeze()
    if case["kind"] == "full":
        for layer in model.layers[-case["num_layers"]:]:
            layer.unfreeze()
    else:
        parameters = dict(rank=4, scale=10.0, dropout=0.0)
        linear_to_lora_layers(model, case["num_layers"], parameters, use_dora=case["kind"] == "dora")
        first = [(n, a) for n, a in tree_flatten(model.trainable_parameters()) if n.endswith("lora_a")]
        model.update(tree_unflatten([(n, drawn(n, a.shape, 0.0, (a.shape[-1] if a.ndim == 3 else a.shape[0]) ** -0.5)) for n, a in first]))
    if case["optimizer"] == "adamw":
        warmup = optim.schedulers.linear_schedule(0.0, 1e-3, 4)
        rate = optim.schedulers.join_schedules([warmup, optim.schedulers.cosine_decay(1e-3, 30)], [5])
        optimizer = optim.AdamW(learning_rate=rate, weight_decay=0.1)
    else:
        optimizer = getattr(optim, case["optimizer"].capitalize() if case["optimizer"] != "sgd" else "SGD")(learning_rate=1e-3)
    np.random.seed(7)
    every = case["grad_accumulation_steps"]
    lossgrad = nn.value_and_grad(model, trainer.default_loss)
    rows = Rows(samples(14))
    batches = trainer.iterate_batches(rows, 2, 48, loop=True)
    out, total = dict(case=case, losses=[], tokens=[], gradients=[]), None
    for step in range(1, STEPS + 1):
        (loss, tokens), grads = lossgrad(model, *next(batches))
        mx.eval(loss, grads)
        out["losses"].append(loss.item())
        out["tokens"].append(tokens.item())
        out["gradients"].append(summary(grads))
        if every > 1:
            flat = dict(tree_flatten(grads))
            total = flat if total is None else {n: total[n] + g for n, g in flat.items()}
            if step % every:
                continue
            grads, total = tree_unflatten([(n, g / every) for n, g in total.items()]), None
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
    out["weights"] = summary(model.trainable_parameters())
    out["validation"] = trainer.evaluate(model, Rows(samples(9)), 2, 3, 48)
    return out


def short(x):
    if isinstance(x, float):
        return float(f"{x:.6g}")
    if isinstance(x, dict):
        return {k: short(v) for k, v in x.items()}
    return [short(v) for v in x] if isinstance(x, list) else x


CASES = [
    dict(model="llama", kind="lora", bits=0, optimizer="adam", num_layers=2, grad_accumulation_steps=1),
    dict(model="llama", kind="lora", bits=4, optimizer="adamw", num_layers=3, grad_accumulation_steps=1),
    dict(model="llama", kind="dora", bits=0, optimizer="adam", num_layers=1, grad_accumulation_steps=2),
    dict(model="llama", kind="full", bits=0, optimizer="sgd", num_layers=1, grad_accumulation_steps=1),
    dict(model="qwen3_moe", kind="lora", bits=4, optimizer="adam", num_layers=1, grad_accumulation_steps=1),
]


def shapes():
    return {m: {n: list(a.shape) for n, a in tree_flatten(build(m).parameters())} for m in CONFIGS}


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    print(json.dumps(short(dict(configs=CONFIGS, shapes=shapes(), cases=[run(c) for c in CASES])), separators=(",", ":")))
