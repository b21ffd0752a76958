"""Steps of DPO and ORPO with the scores and losses of mlx-lm-lora, from the weights of golden.py.

  pip install "mlx[cpu]" mlx-lm mlx-lm-lora numpy
  python preference.py > preference.json
"""
import json
import numpy as np
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm_lora.trainer.dpo_trainer import compute_score, dpo_loss, get_token_scores
from mlx_lm_lora.trainer.orpo_trainer import get_logps, orpo_loss

import golden
from golden import drawn, short, summary, uniform, weight

STEPS = 6


def pairs():
    """Token lists of preferred and other answers, with the length of the prompt that both begin with."""
    out = []
    for i in range(8):
        prompt, chosen, other = 3 + i % 3, 8 + 3 * i, 6 + i * 5 % 11
        tokens = (uniform(f"pair {i}", chosen) * 96).astype(int).tolist()
        out.append((tokens, tokens[:prompt] + (uniform(f"other {i}", other) * 96).astype(int).tolist(), prompt))
    return out


def plain(times=1.0):
    model = golden.build("llama")
    model.update(tree_unflatten([(n, weight(n, a.shape) * times) for n, a in tree_flatten(model.parameters())]))
    model.freeze()
    return model


def padded(rows, prompts):
    width = max(map(len, rows))
    tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.float32)
    for i, (row, prompt) in enumerate(zip(rows, prompts)):
        tokens[i, : len(row)], mask[i, prompt : len(row)] = row, 1.0
    return mx.array(tokens), mx.array(mask)


def run(case):
    before, model = plain(case.get("reference_times", 1.0)), plain()
    linear_to_lora_layers(model, 2, dict(rank=4, scale=10.0, dropout=0.0))
    first = [(n, a) for n, a in tree_flatten(model.trainable_parameters()) if n.endswith("lora_a")]
    model.update(tree_unflatten([(n, drawn(n, a.shape, 0.0, a.shape[0] ** -0.5)) for n, a in first]))
    optimizer = optim.Adam(learning_rate=1e-4)
    beta, delta, kind = case["beta"], case["delta"], case["dpo_loss_type"]

    def scores(of, rows):
        if case["train_mode"] == "orpo":
            return get_logps(of, *rows)
        return compute_score(get_token_scores(of, *rows), rows[1], kind)

    def loss(of, chosen, other):
        if case["train_mode"] == "orpo":
            value, _, _, metrics = orpo_loss(*scores(of, chosen), *scores(of, other), chosen[1], other[1], mx.ones((2,)), beta)
        else:
            value, _, _, metrics = dpo_loss(scores(of, chosen), scores(of, other), scores(before, chosen), scores(before, other),
                                            chosen[1], other[1], beta, delta, kind)
        return value, metrics["margins"]

    lossgrad = nn.value_and_grad(model, loss)
    rows = pairs()
    groups = [rows[i : i + 2] for i in range(0, len(rows), 2)]
    np.random.seed(7)
    order = []
    while len(order) < STEPS:
        order += np.random.permutation(len(groups)).tolist()
    out = dict(case=case, losses=[], margins=[], gradients=[])
    for at in order[:STEPS]:
        group = groups[at]
        prompts = [p for _, _, p in group]
        (value, margin), grads = lossgrad(model, padded([c for c, _, _ in group], prompts), padded([o for _, o, _ in group], prompts))
        mx.eval(value, margin, grads)
        out["losses"].append(value.item())
        out["margins"].append(margin.item())
        out["gradients"].append(summary(grads))
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
    return out


CASES = [
    dict(train_mode="dpo", dpo_loss_type="sigmoid", beta=0.1, delta=50.0),
    dict(train_mode="dpo", dpo_loss_type="hinge", beta=0.3, delta=50.0),
    dict(train_mode="dpo", dpo_loss_type="ipo", beta=0.1, delta=50.0),
    dict(train_mode="dpo", dpo_loss_type="dpop", beta=0.2, delta=2.0),
    dict(train_mode="dpo", dpo_loss_type="sigmoid", beta=0.1, delta=50.0, reference_times=0.75),
    dict(train_mode="orpo", dpo_loss_type="sigmoid", beta=0.1, delta=50.0),
]
if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    configs = dict(llama=golden.CONFIGS["llama"])
    shapes = dict(llama=golden.shapes()["llama"])
    print(json.dumps(short(dict(configs=configs, shapes=shapes, cases=[run(c) for c in CASES])), separators=(",", ":")))
