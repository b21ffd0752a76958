"""Writes tiny.gguf: a Llama of random weights whose matrices have several block types, and tiny.json: what llama.cpp
computes for the same file with every matrix in float32.

usage: python tiny.py PROGRAM
PROGRAM, linked with llama.cpp, takes a model, a file to write and token ids, "1,2,3", and writes float32 logits of all.
"""
import json, os, subprocess, sys
import gguf, numpy as np

WIDTH, INNER, HEADS, KEYS, LAYERS = 32, 64, 4, 2, 2
PIECES = ["▁", "e", "t", "a", "h", "s", "▁t", "he", "▁the", "▁a", "s▁", "in", "i", "n", "▁in", "é"]
TOKENS = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] + PIECES + ["<|im_end|>", "<tool>"]
KINDS = [2, 3, 3] + [6] * 256 + [1] * len(PIECES) + [3, 4]
TEMPLATE = "{% for m in messages %}<s>{{ m.content }}<|im_end|>{% endfor %}"
BLOCKS = {"token_embd": "Q8_0", "attn_q": "Q8_0", "attn_k": "Q4_0", "attn_v": "Q5_0", "attn_output": "F16",
          "ffn_gate": "Q4_1", "ffn_up": "Q4_0", "ffn_down": "Q5_1"}
random = np.random.default_rng(7)


def matrix(rows, columns):
    return (random.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)


def norm():
    return (1 + 0.2 * random.standard_normal(WIDTH)).astype(np.float32)


tensors = {"token_embd": matrix(len(TOKENS), WIDTH), "output_norm": norm()}
for i in range(LAYERS):
    head = WIDTH // HEADS
    for name, value in {"attn_norm": norm(), "attn_q": matrix(WIDTH, WIDTH), "attn_k": matrix(KEYS * head, WIDTH),
                        "attn_v": matrix(KEYS * head, WIDTH), "attn_output": matrix(WIDTH, WIDTH), "ffn_norm": norm(),
                        "ffn_gate": matrix(INNER, WIDTH), "ffn_up": matrix(INNER, WIDTH),
                        "ffn_down": matrix(WIDTH, INNER)}.items():
        tensors[f"blk.{i}.{name}"] = value


def write(path, packed):
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(128), w.add_embedding_length(WIDTH), w.add_block_count(LAYERS)
    w.add_feed_forward_length(INNER), w.add_head_count(HEADS), w.add_head_count_kv(KEYS)
    w.add_rope_dimension_count(WIDTH // HEADS), w.add_rope_freq_base(10000.0), w.add_layer_norm_rms_eps(1e-5)
    w.add_tokenizer_model("llama"), w.add_token_list(TOKENS), w.add_token_types(KINDS)
    w.add_token_scores([0.0 if k != 1 else -float(i) for i, k in enumerate(KINDS)])
    w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_unk_token_id(0), w.add_chat_template(TEMPLATE)
    for name, value in tensors.items():
        kind = BLOCKS.get(name.rsplit(".", 1)[-1])
        if kind:
            kind = gguf.GGMLQuantizationType[kind]
            blocks = gguf.quants.quantize(value, kind)
            if packed:
                w.add_tensor(name + ".weight", blocks, raw_dtype=kind)
                continue
            value = gguf.quants.dequantize(blocks, kind).reshape(value.shape).astype(np.float32)
        w.add_tensor(name + ".weight", value)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


here = os.path.dirname(os.path.abspath(__file__))
write(os.path.join(here, "tiny.gguf"), True)
write("/tmp/tiny-f32.gguf", False)
tokens = [1, 260, 267, 268, 40, 271, 259, 265]
subprocess.run([sys.argv[1], "/tmp/tiny-f32.gguf", "/tmp/tiny.f32", ",".join(map(str, tokens))], check=True)
logits = np.fromfile("/tmp/tiny.f32", np.float32).reshape(len(tokens), -1)
last = [float(f"{x:.6g}") for x in logits[-1]]
with open(os.path.join(here, "tiny.json"), "w") as f:
    json.dump({"tokens": tokens, "likeliest": logits.argmax(-1).tolist(), "last": last}, f)
    f.write("\n")
