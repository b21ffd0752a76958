"""Writes encoders.json: tiny encoders, a WordPiece tokenizer, texts, and what transformers computes for them in float32.

usage: python encoders.py            (needs torch, transformers)
Weights are drawn from the counter-based generator of tests/shared/golden.rs, so the file holds their shapes only.
"""
import json, pathlib
import numpy as np, torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

WORDS = ["the", "fox", "runs", "run", "##s", "##ning", "over", "a", "dog", "cafe", "hello", "world", ",", ".", "!", "?", "中", "文", "🦊", "un", "##believ", "##able", "1", "##2", "'", "t"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + WORDS
TEXTS = ["The fox runs over a dog.", "", "Café, hello!", "中文 hello 🦊", "unbelievable running 12", "don't", "\tThe\n\nFOX\u00a0 ", "x" * 150, "the [SEP] fox"]


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


tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(VOCABULARY)}, unk_token="[UNK]", max_input_chars_per_word=100))
tokenizer.add_special_tokens(VOCABULARY[:5])
tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
ids = [tokenizer.encode(t).ids for t in TEXTS]

size, width, inner = len(VOCABULARY), 16, 24
MODELS = {
    "bert": (BertModel, BertConfig(vocab_size=size, hidden_size=width, intermediate_size=inner, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=40), "bert."),
    "roberta": (RobertaModel, RobertaConfig(vocab_size=size, hidden_size=width, intermediate_size=inner, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=42, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5, hidden_act="gelu_new"), "roberta."),
    "distilbert": (DistilBertModel, DistilBertConfig(vocab_size=size, dim=width, hidden_dim=inner, n_layers=2, n_heads=2, max_position_embeddings=40), ""),
}
out = {"tokenizer": json.loads(tokenizer.to_str()), "texts": TEXTS, "ids": ids, "models": {}}
for name, (kind, config, prefix) in MODELS.items():
    model = kind(config).float().eval()
    params = {}
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if "pooler" in key or key.endswith("position_ids") or key.endswith("token_type_ids"):
                continue
            norm = key.lower().endswith("norm.weight")
            center, scale = (1.0, 0.25) if norm else (0.0, 0.4)
            values = center + scale * (2 * uniform(prefix + key, tensor.numel()) - 1)
            tensor.copy_(torch.from_numpy(values.astype(np.float32).reshape(tuple(tensor.shape))))
            params[prefix + key] = {"shape": list(tensor.shape), "center": center, "scale": scale}
        # A text of token 1 would be padding to RoBERTa.
        taken = [i for i in ids if name != "roberta" or 1 not in i]
        rows = [model(torch.tensor([i])).last_hidden_state[0] for i in taken]
    vectors = {"mean": [r.mean(0) for r in rows], "cls": [r[0] for r in rows], "last": [r[-1] for r in rows], "max": [r.max(0).values for r in rows]}
    vectors = {k: [[round(float(x), 7) for x in v] for v in vs] for k, vs in vectors.items()}
    own = json.loads(config.to_json_string())
    keep = {"model_type", "vocab_size", "hidden_size", "dim", "intermediate_size", "hidden_dim", "num_hidden_layers", "n_layers", "num_attention_heads", "n_heads", "max_position_embeddings", "type_vocab_size", "pad_token_id", "layer_norm_eps", "hidden_act", "activation"}
    out["models"][name] = {"config": {k: v for k, v in own.items() if k in keep}, "params": params, "ids": taken, "vectors": vectors}
path = pathlib.Path(__file__).with_name("encoders.json")
path.write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")).replace('"models":{', '\n"models":{').replace('"texts"', '\n"texts"'))
print(path.stat().st_size)
