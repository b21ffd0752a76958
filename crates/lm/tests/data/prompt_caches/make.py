"""Prompt caches that mlx-lm writes for tiny models, with what it says next (metadata `prompt` and `next`).

  pip install "mlx[cpu]" mlx-lm numpy
  python make.py GOLDENS [NAME...]      # the folder of configs and parameters

Of what it writes, the smallest files that show each kind of cache and each layout are kept.
"""
import importlib, json, pathlib, sys
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import cache as kv
from mlx_lm.utils import MODEL_REMAPPING

# Small buffers make small files.
for kind in (kv.KVCache, kv.RotatingKVCache, kv.QuantizedKVCache, kv.ChunkedKVCache):
    kind.step = 4


def uniform(name, n):
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = ((h ^ b) * 0x100000001B3) & ((1 << 64) - 1)
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(n, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / float(1 << 24)


def build(golden):
    config = golden["config"]
    name = MODEL_REMAPPING.get(config["model_type"], config["model_type"])
    arch = importlib.import_module(f"mlx_lm.models.{name}")
    model = arch.Model(arch.ModelArgs.from_dict(config))
    fill = lambda k, s: s["center"] + s["scale"] * (2.0 * uniform(k, int(np.prod(s["shape"]))) - 1.0)
    params = {k: mx.array(fill(k, s).astype(np.float32).reshape(s["shape"])) for k, s in golden["params"].items()}
    model.update(tree_unflatten(list(params.items())))
    return model


def save_a(path, cache, user):
    """As mlx-lm 0.32.0 wrote it: states, then numbers, user's texts and kinds as metadata."""
    states, numbers = [], []
    for c in cache:
        if isinstance(c, kv.ArraysCache):
            states.append([mx.array([]) if a is None else a for a in c.cache])
            numbers.append("")
        elif isinstance(c, kv.RotatingKVCache):
            n = min(c.offset, c.keys.shape[2])
            states.append((c.keys[..., :n, :], c.values[..., :n, :]))
            numbers.append([str(x) for x in (c.keep, c.max_size, c.offset, c._idx)])
        else:
            states.append((c.keys[..., : c.offset, :], c.values[..., : c.offset, :]))
            numbers.append("")
    meta = dict(tree_flatten([numbers, user, [type(c).__name__ for c in cache]]))
    mx.save_safetensors(path, dict(tree_flatten(states)), meta)


def main():
    goldens, out = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
    names = ["cohere2", "deepseek_v3", "falcon_h1", "lfm2", "llama4", "mamba2", "qwen3_next", "ring"]
    for name in sys.argv[2:] or names:
        model = build(json.load(open(goldens / f"{'llama' if name == 'ring' else name}.json")))
        cache = kv.make_prompt_cache(model)
        if name == "ring":
            cache = [kv.RotatingKVCache(max_size=16, keep=4) for _ in cache]
        prompt = [int(t) for t in uniform(name, 21) * 96]
        # One by one where a ring is: several at once see other keys in mlx-lm.
        step = 1 if name == "ring" else 21
        for at in range(0, 21, step):
            model(mx.array([prompt[at : at + step]]), cache=cache)
        user = {"prompt": json.dumps(prompt)}
        first, token, said = 7, 7, []
        path = str(out / "state.safetensors")
        kv.save_prompt_cache(path, cache, user)
        going = kv.load_prompt_cache(path)
        pathlib.Path(path).unlink()
        for _ in range(30):
            token = int(mx.argmax(model(mx.array([[token]]), cache=going)[0, -1]).item())
            said.append(token)
        user["next"] = json.dumps([first] + said)
        kv.save_prompt_cache(str(out / f"{name}.b.safetensors"), cache, user)
        # How it wrote lists and runs of positions is not checked against a file of its own.
        if name not in ("falcon_h1", "llama4"):
            save_a(str(out / f"{name}.a.safetensors"), cache, user)


main()
