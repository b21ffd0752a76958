"""Writes goldens/NAME.json: tiny models of families with what mlx-lm computes for them in float32 on the CPU.

usage: python goldens.py [NAME...]            (needs mlx, mlx-lm, numpy)
Weights are drawn from the counter-based generator of tests/shared/golden.rs, so a file holds their shapes only.
"""
import copy, importlib, json, math, pathlib, sys
import mlx.core as mx, numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import MODEL_REMAPPING, quantize_model

DENSE = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "max_position_embeddings": 512}
SLIDING, FULL = "sliding_attention", "full_attention"
GEMMA4 = DENSE | {"num_hidden_layers": 4, "head_dim": 16, "global_head_dim": 32, "sliding_window": 6,
                  "layer_types": [SLIDING, FULL, SLIDING, FULL], "num_kv_shared_layers": 2,
                  "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 32}
CONFIGS = {
    # Keys that later layers share, embeddings for each layer.
    "gemma4_text": GEMMA4 | {"model_type": "gemma4_text"},
    # Experts, keys that are values, a head of its own; inside a model of pictures.
    "gemma4": {"model_type": "gemma4", "vocab_size": 96, "text_config": GEMMA4 | {
        "model_type": "gemma4_text", "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "num_global_key_value_heads": 1,
        "attention_k_eq_v": True, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32,
        "use_double_wide_mlp": False, "layer_types": [SLIDING, SLIDING, FULL, SLIDING]}},
    "apertus": DENSE | {"model_type": "apertus", "mlp_bias": False, "attention_bias": False, "rope_theta": 10000.0,
                        "post_norm": False, "qk_norm": True, "tie_word_embeddings": False},
    # Experts in the last layer alone, with biases, beside a shared one.
    "ernie4_5_moe": DENSE | {"model_type": "ernie4_5_moe", "rope_theta": 10000.0, "use_bias": True, "tie_word_embeddings": True,
                             "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 2,
                             "moe_layer_start_index": 1},
    "gemma3n": {"model_type": "gemma3n", "text_config": DENSE | {
        "model_type": "gemma3n_text", "num_hidden_layers": 4, "head_dim": 16, "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 90, "sliding_window": 6, "rope_local_base_freq": 10000.0, "rope_theta": 1000000.0,
        "final_logit_softcapping": 30.0, "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "activation_sparsity_pattern": [0.9, 0.0, 0.5, 0.0], "hidden_size_per_layer_input": 32, "altup_num_inputs": 3,
        "altup_coef_clip": 0.5, "altup_correct_scale": True, "altup_active_idx": 0, "laurel_rank": 32}},
}


def uniform(name, n):
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = ((h ^ b) * 0x100000001B3) & (2**64 - 1)
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(n, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float64) / (1 << 24)


def drawn(name, shape):
    """Centre and half width of a parameter's numbers."""
    leaf = name.split(".")[-1]
    if leaf == "A_log":
        return 1.0, 0.5
    if leaf in ("alpha_p", "alpha_n", "beta"):
        return 0.5, 0.1
    if leaf == "eps":
        return -1e-6, 0.0
    if leaf in ("dt_bias", "bias", "e_score_correction_bias", "expert_bias"):
        return 0.0, 0.1
    if len(shape) == 1 or "norm" in name:
        return 1.0, 0.1
    if "embed" in name and len(shape) == 2 and "proj" not in name:
        return 0.0, 1.0
    return 0.0, round(math.sqrt(3.0 / (shape[1] if len(shape) == 3 and "conv" in name else shape[-1])), 6)


def build(config):
    kind = MODEL_REMAPPING.get(config["model_type"], config["model_type"])
    arch = importlib.import_module(f"mlx_lm.models.{kind}")
    model = arch.Model(arch.ModelArgs.from_dict(copy.deepcopy(config)))
    params, weights = {}, []
    for name, value in tree_flatten(model.parameters()):
        center, scale = drawn(name, value.shape)
        params[name] = {"shape": list(value.shape), "center": center, "scale": scale}
        x = center + scale * (2 * uniform(name, value.size) - 1)
        weights.append((name, mx.array(x.astype(np.float32).reshape(value.shape))))
    model.update(tree_unflatten(weights))
    mx.eval(model.parameters())
    return model.eval() or model, params


def logits(model, tokens, cache=None):
    return model(tokens, cache=cache or make_prompt_cache(model)).astype(mx.float32)


def values(a):
    return {"shape": list(a.shape), "data": [float(f"{x:.6g}") for x in np.array(a).reshape(-1).tolist()]}


def golden(config):
    model, params = build(config)
    ids = (uniform("tokens", 24).reshape(2, 12) * 95).astype(np.int64)
    out = {"config": config, "params": params, "tokens": ids.tolist(), "logits": values(logits(model, mx.array(ids)))}
    cache, y, greedy = make_prompt_cache(model), mx.array(ids[:1]), []
    for _ in range(12):
        greedy.append(int(mx.argmax(logits(model, y, cache)[0, -1]).item()))
        y = mx.array([greedy[-1:]])
    out["greedy"] = greedy
    model, packed = quantize_model(model, copy.deepcopy(config), group_size=32, bits=4)
    out["quantized"] = {"quantization": packed["quantization"], "logits": values(logits(model, mx.array(ids)))}
    return out


here = pathlib.Path(__file__).parent / "goldens"
for name in sys.argv[1:] or CONFIGS:
    (here / f"{name}.json").write_text(json.dumps(golden(CONFIGS[name])) + "\n")
    print(name)
