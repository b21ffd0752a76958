"""Writes goldens/NAME.json: tiny models of families with what mlx-lm computes for them in float32 on the CPU; those of
MAKERS with the names and layouts of their makers, and what transformers computes.

usage: python goldens.py [NAME...]            (needs mlx, mlx-lm, numpy; for MAKERS transformers and torch)
Weights are drawn from the counter-based generator of tests/shared/golden.rs, so a file holds their shapes only.
"""
import copy, importlib, json, math, pathlib, sys, types
import mlx.core as mx, numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import MODEL_REMAPPING, quantize_model

# A package that mlx-lm's OLMo asks for, and does not use.
sys.modules["hf_olmo"] = types.ModuleType("hf_olmo")

DENSE = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "max_position_embeddings": 512}
SLIDING, FULL = "sliding_attention", "full_attention"
GEMMA4 = DENSE | {"num_hidden_layers": 4, "head_dim": 16, "global_head_dim": 32, "sliding_window": 6,
                  "layer_types": [SLIDING, FULL, SLIDING, FULL], "num_kv_shared_layers": 2,
                  "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 32}
FALCON_H1 = DENSE | {
    "model_type": "falcon_h1", "head_dim": 16, "rope_theta": 1e11, "mamba_d_ssm": 96, "mamba_d_head": 16, "mamba_n_heads": 6,
    "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_n_groups": 2, "mamba_conv_bias": True, "mamba_proj_bias": False,
    "mamba_rms_norm": False, "mamba_norm_before_gate": False, "tie_word_embeddings": True, "attention_in_multiplier": 1.25,
    "attention_out_multiplier": 0.75, "embedding_multiplier": 5.5, "key_multiplier": 0.4, "lm_head_multiplier": 0.8,
    "mlp_multipliers": [0.9, 0.6], "ssm_in_multiplier": 1.5, "ssm_multipliers": [0.35, 0.25, 0.5, 0.75, 0.4],
    "ssm_out_multiplier": 0.3}
LLAMA4 = DENSE | {
    "model_type": "llama4_text", "num_hidden_layers": 4, "head_dim": 16, "attention_bias": False, "attention_chunk_size": 5,
    "interleave_moe_layer_step": 2, "intermediate_size_mlp": 96, "intermediate_size": 32, "num_experts_per_tok": 1,
    "num_local_experts": 4, "rope_scaling": None, "rope_theta": 500000.0, "use_qk_norm": True, "floor_scale": 4,
    "attn_scale": 0.3, "attn_temperature_tuning": 4}
BAILING = DENSE | {
    "model_type": "bailing_moe", "num_hidden_layers": 3, "moe_intermediate_size": 32, "num_experts": 4, "num_shared_experts": 1,
    "norm_topk_prob": True, "num_experts_per_tok": 2, "rope_theta": 600000.0, "first_k_dense_replace": 2}
RING = BAILING | {
    "model_type": "bailing_moe_linear", "num_hidden_layers": 5, "layer_group_size": 3, "group_norm_size": 4, "use_qk_norm": True,
    "first_k_dense_replace": 4, "partial_rotary_factor": 0.5, "score_function": "sigmoid", "routed_scaling_factor": 0.1,
    "moe_router_enable_expert_bias": True}
NANOCHAT = {"model_type": "nanochat", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 96, "intermediate_size": 256, "rope_theta": 10000.0}
MAMBA = {"model_type": "mamba", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "state_size": 8,
         "num_hidden_layers": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 32}
JAMBA = DENSE | {
    "model_type": "jamba", "num_hidden_layers": 4, "attn_layer_offset": 1, "attn_layer_period": 3, "expert_layer_offset": 1,
    "expert_layer_period": 2, "mamba_d_conv": 4, "mamba_d_state": 8, "mamba_expand": 2, "num_experts": 4, "mamba_dt_rank": 32,
    "num_experts_per_tok": 4, "tie_word_embeddings": True}
PHIMOE = DENSE | {"model_type": "phimoe", "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32,
                  "original_max_position_embeddings": 64, "rope_theta": 10000.0}
KIMI = DENSE | {
    "model_type": "kimi_linear", "num_hidden_layers": 4, "head_dim": 16, "rope_theta": 10000.0, "model_max_length": 512,
    "linear_attn_config": {"kda_layers": [1, 2, 4], "full_attn_layers": [3], "num_heads": 4, "head_dim": 32,
                           "short_conv_kernel_size": 4},
    "num_experts": 4, "moe_intermediate_size": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 32, "mla_use_nope": True, "num_experts_per_token": 2, "num_shared_experts": 1, "first_k_dense_replace": 3,
    "moe_router_activation_func": "sigmoid", "moe_renormalize": True, "routed_scaling_factor": 2.5, "num_expert_group": 2,
    "topk_group": 1}
OLMO = {"model_type": "olmo", "d_model": 64, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 192, "vocab_size": 90,
        "embedding_size": 96, "rope_theta": 10000.0}
OPENELM = {"model_type": "openelm", "head_dim": 16, "num_transformer_layers": 3, "model_dim": 64, "vocab_size": 96,
           "ffn_dim_divisor": 32, "num_query_heads": [4, 4, 8], "num_kv_heads": [1, 2, 4], "ffn_multipliers": [0.5, 1.5, 2.4]}
STEP = DENSE | {
    "model_type": "step3p5", "num_hidden_layers": 4, "num_attention_groups": 2, "head_dim": 16, "rope_theta": 10000.0,
    "sliding_window": 5, "layer_types": [FULL, SLIDING, SLIDING, FULL], "moe_num_experts": 4, "moe_top_k": 2,
    "moe_intermediate_size": 32, "share_expert_dim": 32, "moe_layers_enum": "3", "moe_router_scaling_factor": 2.0}
CONFIGS = {
    "step3p5": STEP,
    # Heads of their own behind the window, limits, positions that differ by layer, no gates of heads.
    "step3p5_other": STEP | {
        "attention_other_setting": {"num_attention_heads": 6, "num_attention_groups": 3, "head_dim": 16},
        "use_head_wise_attn_gate": False, "swiglu_limits": [0.0, 0.0, 0.0, 0.3], "swiglu_limits_shared": [0.0, 0.5, None, 0.4],
        "partial_rotary_factors": [0.5, 1.0, 1.0, 0.5], "rope_theta": [500000.0, 10000.0, 10000.0, 500000.0],
        "yarn_only_types": [FULL], "rope_scaling": {
            "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 32.0,
            "original_max_position_embeddings": 64}},
    "mamba": MAMBA,
    # Norms inside the recurrence, biases, a head of its own.
    "falcon_mamba": MAMBA | {"model_type": "falcon_mamba", "use_bias": True, "use_conv_bias": False,
                             "tie_word_embeddings": False, "mixer_rms_eps": 1e-5},
    "jamba": JAMBA,
    "jamba_dense": JAMBA | {"num_experts": 1, "mamba_proj_bias": True, "mamba_conv_bias": False, "tie_word_embeddings": False,
                            "layers_block_type": ["mamba", "attention", "attention", "mamba"]},
    "phimoe": PHIMOE,
    "phimoe_longrope": PHIMOE | {"num_hidden_layers": 1, "rope_scaling": {
        "type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0 + 0.5 * i for i in range(8)],
        "short_mscale": 1.1, "long_mscale": 1.3}},
    "kimi_linear": KIMI,
    # No rows beside the latent one, one group of experts behind a softmax, the table for a head.
    "kimi_linear_softmax": KIMI | {
        "num_expert_group": 1, "moe_router_activation_func": "softmax", "moe_renormalize": False, "num_shared_experts": 0,
        "tie_word_embeddings": True, "first_k_dense_replace": 1, "moe_layer_freq": 3},
    "olmo": OLMO,
    "olmo_tied": OLMO | {"weight_tying": True, "rope_traditional": True, "mlp_hidden_size": None, "mlp_ratio": 3},
    "plamo": DENSE | {"model_type": "plamo", "num_attention_heads": 8, "num_key_value_heads": 8, "n_shared_head": 4},
    "openelm": OPENELM,
    "openelm_head": OPENELM | {"normalize_qk_projections": False, "share_input_output_layers": False},
    "phixtral": {"model_type": "phixtral", "num_vocab": 96, "model_dim": 64, "num_heads": 4, "num_layers": 2, "rotary_dim": 8,
                 "num_experts_per_tok": 2, "num_local_experts": 4},
    # Three layers behind runs of five positions, one over all; experts in every second one.
    "llama4": {"model_type": "llama4", "text_config": LLAMA4},
    # Experts everywhere, scaled positions, no norms of heads, biases.
    "llama4_dense": {"model_type": "llama4", "text_config": LLAMA4 | {
        "interleave_moe_layer_step": 1, "use_qk_norm": False, "attention_bias": True, "attn_temperature_tuning": 0,
        "attention_chunk_size": 8, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}}},
    "llama4_text": DENSE | {
        "model_type": "llama4_text", "num_hidden_layers": 4, "head_dim": 16, "intermediate_size_mlp": 96, "rope_theta": 500000.0,
        "use_qk_norm": True, "tie_word_embeddings": True, "no_rope_layers": [1, 1, 1, 0]},
    "llama4_text_head": DENSE | {
        "model_type": "llama4_text", "head_dim": 16, "intermediate_size_mlp": 96, "rope_theta": 500000.0, "use_qk_norm": False,
        "tie_word_embeddings": False, "no_rope_layers": [0, 1]},
    "bailing_moe": BAILING,
    # Sigmoids, groups, biases, norms of heads, a part of heads turned, a dense layer, the table for a head.
    "bailing_moe_sigmoid": BAILING | {
        "score_function": "sigmoid", "moe_router_enable_expert_bias": True, "n_group": 2, "topk_group": 1,
        "routed_scaling_factor": 2.5, "use_qk_norm": True, "partial_rotary_factor": 0.5, "first_k_dense_replace": 1,
        "tie_word_embeddings": True, "use_bias": True, "use_qkv_bias": True, "num_shared_experts": 2,
        "moe_shared_expert_intermediate_size": 32},
    "bailing_moe_linear": RING,
    # Heads that are no power of two, biases, the table for a head.
    "bailing_moe_linear_heads": RING | {
        "hidden_size": 192, "num_attention_heads": 6, "group_norm_size": 2, "use_qk_norm": False, "use_bias": True,
        "use_qkv_bias": True, "rope_traditional": True, "tie_word_embeddings": True},
    "bailing_hybrid": RING | {
        "model_type": "bailing_hybrid", "head_dim": 16, "n_group": 2, "topk_group": 1, "num_shared_experts": 2,
        "kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32},
    # Queries at once, one width of all shared experts, scaled positions.
    "bailing_hybrid_yarn": RING | {
        "model_type": "bailing_hybrid", "head_dim": 32, "n_group": 1, "topk_group": 1, "kv_lora_rank": 32, "q_lora_rank": None,
        "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32, "num_shared_experts": 2, "rope_interleave": False,
        "moe_shared_expert_intermediate_size": 32, "use_qkv_bias": True, "use_qk_norm": False, "rope_scaling": {
            "type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.7, "original_max_position_embeddings": 32}},
    "nanochat": NANOCHAT,
    "bitnet": DENSE | {"model_type": "bitnet", "head_dim": 16, "rope_theta": 500000.0, "tie_word_embeddings": True},
    "bitnet_head": DENSE | {"model_type": "bitnet", "rope_theta": 10000.0, "tie_word_embeddings": False,
                            "attention_bias": True, "mlp_bias": True, "quantization_config": {
                                "quant_method": "bitnet", "linear_class": "autobitlinear"}},
    "falcon_h1": FALCON_H1,
    # A norm before the gate, a head of its own, biases.
    "falcon_h1_norm": FALCON_H1 | {
        "mamba_n_groups": 1, "mamba_rms_norm": True, "mamba_norm_before_gate": True, "mamba_conv_bias": False,
        "mamba_proj_bias": True, "projectors_bias": True, "attention_bias": True, "mlp_bias": True,
        "tie_word_embeddings": False},
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

# Checkpoints before their conversion: factors beside the weights.
MAKERS = {
    "nanochat_raw": NANOCHAT | {"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "hidden_act": "relu2",
                                "max_position_embeddings": 512},
    # Two experts of four in the third layer of three; mlx-lm has their weights sum to one, and counts layers otherwise.
    "jamba_raw": JAMBA | {"num_hidden_layers": 3, "expert_layer_offset": 2, "expert_layer_period": 3, "num_experts_per_tok": 2},
    # Queries, keys and values that are clipped.
    "olmo_raw": DENSE | {"model_type": "olmo", "rope_theta": 10000.0, "clip_qkv": 1.5, "tie_word_embeddings": False},
    "falcon_h1_raw": FALCON_H1 | {"mamba_rms_norm": True},
    "falcon_h1_raw_head": FALCON_H1 | {"tie_word_embeddings": False},
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
    if leaf == "weight_scale":
        return 0.09, 0.01
    if leaf == "A_log":
        return 1.0, 0.5
    if leaf in ("alpha_p", "alpha_n", "beta"):
        return 0.5, 0.1
    if leaf == "eps":
        return -1e-6, 0.0
    if leaf in ("dt_bias", "bias", "e_score_correction_bias", "expert_bias", "router_bias"):
        return 0.0, 0.1
    if len(shape) == 1 or "norm" in name:
        return 1.0, 0.1
    if "embed" in name and len(shape) == 2 and "proj" not in name:
        return 0.0, 1.0
    return 0.0, round(math.sqrt(3.0 / (shape[1] if len(shape) == 3 and "conv" in name else shape[-1])), 6)


def draw(name, shape, packed=False):
    """What a file says of a parameter, and its numbers; of packed ones, four of three codes in a byte."""
    u = uniform(name, int(np.prod(shape)))
    if packed:
        digits = (u * 81).astype(np.int64)
        x = sum((digits // 3**i % 3) << (2 * i) for i in range(4)).astype(np.uint8)
        return {"shape": list(shape), "ternary": True}, x.reshape(shape)
    center, scale = drawn(name, shape)
    x = (center + scale * (2 * u - 1)).astype(np.float32)
    return {"shape": list(shape), "center": center, "scale": scale}, x.reshape(shape)


def ternary(layer, x):
    """What the kernel of `BitLinear`, which needs a GPU, computes."""
    codes = mx.concatenate([(layer.weight >> (2 * i)) & 3 for i in range(4)]).astype(mx.float32) - 1
    y = (x @ codes[: layer.out_features].T) * layer.weight_scale
    return y if layer.bias is None else y + layer.bias


def build(config):
    kind = MODEL_REMAPPING.get(config["model_type"], config["model_type"])
    arch = importlib.import_module(f"mlx_lm.models.{kind}")
    model = arch.Model(arch.ModelArgs.from_dict(copy.deepcopy(config)))
    if kind == "bitnet":
        arch.BitLinear.__call__ = ternary
    if kind == "olmo":
        # It adds its mask to scores, and is given the name of one.
        arch.create_attention_mask = lambda x, cache: (
            mx.log(create_attention_mask(x, cache, return_array=True)) if x.shape[1] > 1 else None)
    params, weights = {}, []
    for name, value in tree_flatten(model.parameters()):
        params[name], x = draw(name, value.shape, value.dtype == mx.uint8)
        weights.append((name, mx.array(x)))
    model.update(tree_unflatten(weights))
    mx.eval(model.parameters())
    return model.eval() or model, params


def logits(model, tokens, cache=None):
    rows = model(tokens, cache=cache or make_prompt_cache(model))
    # OLMo of one table gives its cache as well.
    return (rows[0] if isinstance(rows, tuple) else rows).astype(mx.float32)


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
    # mlx-lm does not pack BitNet's layers, and cannot use a packed table as the head of MobileLLM.
    if config["model_type"] == "bitnet" or config["model_type"] == "llama4_text" and config["tie_word_embeddings"]:
        return out
    model, packed = quantize_model(model, copy.deepcopy(config), group_size=32, bits=4)
    # What its predicate leaves as it is.
    whole = {path: False for path, part in model.named_modules() if hasattr(part, "to_quantized")}
    out["quantized"] = {"quantization": packed["quantization"] | whole, "logits": values(logits(model, mx.array(ids)))}
    return out


def golden_of_makers(config):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {k: v for k, v in config.items() if v is not None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), attn_implementation="eager").float().eval()
    params, state = {}, model.state_dict()
    if config["tie_word_embeddings"]:
        del state["lm_head.weight"]
    with torch.no_grad():
        for name, value in state.items():
            params[name], x = draw(name, tuple(value.shape))
            value.copy_(torch.from_numpy(x))
        ids = (uniform("tokens", 24).reshape(2, 12) * 95).astype(np.int64)
        rows = model(torch.from_numpy(ids)).logits.numpy()
        out = {"config": config, "params": params, "tokens": ids.tolist(), "logits": values(rows), "greedy": []}
        text = ids[:1]
        for _ in range(12):
            out["greedy"].append(int(model(torch.from_numpy(text)).logits[0, -1].argmax()))
            text = np.concatenate([text, [out["greedy"][-1:]]], axis=1)
    return out


here = pathlib.Path(__file__).parent / "goldens"
for name in sys.argv[1:] or [*CONFIGS, *MAKERS]:
    made = golden_of_makers(MAKERS[name]) if name in MAKERS else golden(CONFIGS[name])
    (here / f"{name}.json").write_text(json.dumps(made) + "\n")
    print(name)
