"""Writes adapters.json: tiny models, adapters as mlx-lm's own layers take them, and the logits mlx-lm computes in float32.

usage: python adapters.py            (needs mlx, mlx-lm, numpy)
Numbers are drawn from the counter-based generator of tests/shared/golden.rs, so the file holds shapes only. Each adapter is
written as a directory and loaded by mlx_lm.tuner.utils.load_adapters.
"""
import importlib, json, pathlib, tempfile
import mlx.core as mx, mlx.nn as nn, numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

mx.set_default_device(mx.cpu)


def fnv1a(text):
    h = 0xCBF29CE484222325
    for b in text.encode():
        h = ((h ^ b) * 0x100000001B3) & (2**64 - 1)
    return h


def uniform(name, n):
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a(name)) + np.arange(n, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float64) / (1 << 24)


def values(name, spec):
    n = int(np.prod(spec["shape"]))
    x = spec["center"] + spec["scale"] * (2 * uniform(name, n) - 1)
    return mx.array(x.astype(np.float32).reshape(spec["shape"]))


LLAMA = dict(model_type="llama", hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             rms_norm_eps=1e-5, vocab_size=24, tie_word_embeddings=False, max_position_embeddings=64, rope_theta=10000.0)
MOE = dict(model_type="qwen3_moe", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
           rms_norm_eps=1e-5, vocab_size=24, tie_word_embeddings=True, max_position_embeddings=64, rope_theta=10000.0, num_experts=4,
           num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=32, norm_topk_prob=True)
PARTS = ["self_attn.q_proj", "mlp.down_proj", "lm_head", "model.embed_tokens"]
CASES = {
    "lora": (LLAMA, "lora", 2, None, False),
    "lora_all": (LLAMA, "lora", -1, None, False),
    "lora_parts": (LLAMA, "lora", 1, PARTS, False),
    "lora_tied": (LLAMA | dict(tie_word_embeddings=True), "lora", 1, PARTS, False),
    "lora_biased": (LLAMA | dict(attention_bias=True, mlp_bias=True), "lora", 3, None, False),
    "lora_packed": (LLAMA, "lora", 2, None, True),
    "lora_packed_parts": (LLAMA, "lora", 2, PARTS, True),
    "lora_experts": (MOE, "lora", 1, None, False),
    "lora_experts_packed": (MOE, "lora", 2, None, True),
    "dora": (LLAMA, "dora", 2, None, False),
    "dora_parts": (LLAMA, "dora", 1, PARTS, False),
    "dora_tied": (LLAMA | dict(tie_word_embeddings=True), "dora", 1, PARTS, False),
    "dora_biased": (LLAMA | dict(attention_bias=True, mlp_bias=True), "dora", 3, None, False),
    "dora_packed": (LLAMA, "dora", 2, None, True),
    "full": (LLAMA, "full", 1, None, False),
}
TOKENS = [3, 17, 5, 0, 23, 9, 9]

out = {"tokens": TOKENS, "cases": {}}
for name, (config, kind, layers, keys, packed) in CASES.items():
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    spec = {}
    for key, old in tree_flatten(model.parameters()):
        norm = key.endswith("norm.weight")
        spec[key] = {"shape": list(old.shape), "center": 1.0 if norm else 0.0, "scale": 0.25 if norm else 0.3}
    model.load_weights([(key, values(key, s)) for key, s in spec.items()])
    if packed:
        nn.quantize(model, group_size=32, bits=4)
    model.eval()
    plain = model(mx.array([TOKENS]))
    written = {"fine_tune_type": kind, "num_layers": layers, "lora_parameters": {"rank": 3, "scale": 2.5, "dropout": 0.0}}
    if keys:
        written["lora_parameters"]["keys"] = keys
    changed = {}
    if kind == "full":
        last = f"model.layers.{config['num_hidden_layers'] - 1}."
        names = [key for key in spec if key.startswith(last)]
        shapes = {key: spec[key]["shape"] for key in names}
    else:
        twin = module.Model(module.ModelArgs.from_dict(config))
        linear_to_lora_layers(twin, layers, written["lora_parameters"], use_dora=kind == "dora")
        shapes = {k: list(v.shape) for k, v in tree_flatten(twin.parameters()) if k.rsplit(".", 1)[-1] in ("lora_a", "lora_b", "m")}
    for key, shape in shapes.items():
        m = key.endswith(".m") or key.endswith("norm.weight")
        changed[key] = {"shape": shape, "center": 1.0 if m else 0.0, "scale": 0.5 if m else 0.2}
    with tempfile.TemporaryDirectory() as d:
        d = pathlib.Path(d)
        (d / "adapter_config.json").write_text(json.dumps(written))
        # The names differ from the model's, so that their numbers do, too.
        mx.save_safetensors(str(d / "adapters.safetensors"), {k: values("adapter." + k, s) for k, s in changed.items()})
        load_adapters(model, str(d))
    model.eval()
    logits = model(mx.array([TOKENS]))
    assert mx.abs(logits - plain).max() > 0.05, name
    rows = np.array(logits[0].astype(mx.float32))
    out["cases"][name] = {
        "config": config, "packed": packed, "params": spec, "adapter_config": written, "adapter": changed,
        "logits": [float(f"{x:.6g}") for x in rows[[0, 3, -1]].flatten()],
    }

# Models are written once.
models = {}
for case in out["cases"].values():
    key = json.dumps(case["config"])
    models.setdefault(key, (f"model {len(models)}", case["config"], case["params"]))
    case["model"] = models[key][0]
    del case["config"], case["params"]
out["rows"] = [0, 3, len(TOKENS) - 1]
out["models"] = {name: {"config": c, "params": p} for name, c, p in models.values()}
pathlib.Path(__file__).with_name("adapters.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
