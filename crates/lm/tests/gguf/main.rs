//! GGUF files: models with the logits of their checkpoints, vocabularies with the ids of their tokenizers, and faults.
//!
//! Models are those of `../shared/goldens`, written here by the rules of llama.cpp's converter; vocabularies those of
//! `../shared/data/tokenizers`.

mod faults;
mod gemma;
#[path = "../shared/mod.rs"]
mod shared;
mod vocabularies;

use lapis::io::{Arrays, GgufMetadata, GgufValue, save_gguf};
use lapis::{Array, Dtype, ops};
use lapis_lm::tokenizer::Tokenizer;
use lapis_lm::{Batch, Checkpoint, Sequence, convert, models};
use serde_json::Value;
use shared::shared;
use std::path::{Path, PathBuf};

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("lapis-gguf-{}-{name}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn number(x: u32) -> GgufValue {
    GgufValue::Array(Array::from_vec(vec![x], &[]))
}

fn real(x: f64) -> GgufValue {
    GgufValue::Array(Array::from_vec(vec![x as f32], &[]))
}

fn text(t: &str) -> GgufValue {
    GgufValue::Text(t.into())
}

/// The tensors of a golden model, by the names of its checkpoint.
fn tensors(golden: &Value) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let plain = |(name, a): (String, Array)| (name, a.shape().to_vec(), a.to_vec().unwrap());
    shared::golden::tensors(&golden["params"]).into_iter().map(plain).collect()
}

/// Keys of files and of configs; the last one is for every architecture.
const KEYS: &[(&str, &str)] = &[
    ("context_length", "max_position_embeddings n_positions"),
    ("embedding_length", "hidden_size n_embd"),
    ("block_count", "num_hidden_layers n_layer"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads n_head"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.sliding_window", "sliding_window"),
    ("expert_count", "num_experts num_local_experts"),
    ("expert_used_count", "num_experts_per_tok"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("rope.scaling.original_context_length", "original_max_position_embeddings"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.layer_norm_epsilon", "layer_norm_eps layer_norm_epsilon norm_epsilon"),
    ("rope.freq_base", "rope_theta"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("attention.scale", "attention_multiplier"),
    ("embedding_scale", "embedding_multiplier"),
    ("residual_scale", "residual_multiplier"),
    ("logit_scale", "logits_scaling logit_scale"),
];

const NAMES: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.switch_mlp.gate_proj", "ffn_gate_exps"),
    ("mlp.switch_mlp.up_proj", "ffn_up_exps"),
    ("mlp.switch_mlp.down_proj", "ffn_down_exps"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("block_sparse_moe.switch_mlp.gate_proj", "ffn_gate_exps"),
    ("block_sparse_moe.switch_mlp.up_proj", "ffn_up_exps"),
    ("block_sparse_moe.switch_mlp.down_proj", "ffn_down_exps"),
    ("wte", "token_embd"),
    ("wpe", "position_embd"),
    ("ln_f", "output_norm"),
    ("ln_1", "attn_norm"),
    ("ln_2", "ffn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
];

/// The name of a tensor in a file.
fn renamed(arch: &str, name: &str) -> String {
    let (path, leaf) = name.rsplit_once('.').unwrap();
    let (layer, part) = match path.strip_prefix("model.layers.").or(path.strip_prefix("model.h.")) {
        Some(rest) => rest.split_once('.').map(|(i, part)| (format!("blk.{i}."), part)).unwrap(),
        None => (String::new(), path),
    };
    let part = if arch == "gpt2" { part.trim_start_matches("model.") } else { part };
    let mut found = NAMES.iter().find(|n| n.0 == part).unwrap_or_else(|| panic!("{arch}: {name}")).1;
    if part == "post_attention_layernorm" && ["gemma2", "gemma3", "olmo2"].contains(&arch) {
        found = "post_attention_norm";
    }
    format!("{layer}{found}.{leaf}")
}

/// The golden models whose rules the test knows, with their architectures.
const MODELS: &[(&str, &str)] = &[
    ("llama", "llama"),
    ("llama-rope-llama3", "llama"),
    ("mistral", "llama"),
    ("mixtral", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("qwen3_moe", "qwen3moe"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3"),
    ("phi3", "phi3"),
    ("phi3-longrope", "phi3"),
    ("starcoder2", "starcoder2"),
    ("gpt2", "gpt2"),
    ("granite", "granite"),
    ("smollm3", "smollm3"),
    ("olmo2", "olmo2"),
    ("stablelm", "stablelm"),
    ("cohere2", "cohere2"),
];

/// Metadata and tensors of a golden model.
fn file_of(arch: &str, golden: &Value) -> (GgufMetadata, Arrays) {
    let config = golden["config"].as_object().unwrap();
    let get = |names: &str| names.split(' ').find_map(|n| config.get(n).filter(|v| v.is_number()));
    let whole = |names: &str| get(names).and_then(Value::as_u64);
    let mut meta = GgufMetadata::new();
    meta.insert("general.architecture".into(), text(arch));
    for (to, from) in KEYS {
        let Some(value) = get(from) else { continue };
        let fraction = ["epsilon", "freq_base", "softcapping", "scale"].iter().any(|e| to.ends_with(e));
        let value = if fraction { real(value.as_f64().unwrap()) } else { number(value.as_u64().unwrap() as u32) };
        meta.insert(format!("{arch}.{to}"), value);
    }
    let heads = whole("num_attention_heads n_head").unwrap();
    let keys = whole("num_key_value_heads").unwrap_or(heads);
    let head = whole("head_dim").unwrap_or(whole("hidden_size n_embd").unwrap() / heads);
    let part = config.get("partial_rotary_factor").and_then(Value::as_f64).unwrap_or(1.0);
    let usual = if arch == "stablelm" && part == 1.0 { 0.25 } else { part };
    if arch != "gpt2" {
        meta.insert(format!("{arch}.rope.dimension_count"), number((head as f64 * usual) as u32));
    }
    if let Some(period) = config.get("sliding_window_pattern").and_then(Value::as_u64) {
        let layers = whole("num_hidden_layers").unwrap();
        let slides = (1..=layers).map(|i| i % period != 0).collect::<Vec<bool>>();
        let slides = GgufValue::Array(Array::from_vec(slides, &[layers as usize]));
        meta.insert(format!("{arch}.attention.sliding_window_pattern"), slides);
    }
    let mut all = Arrays::default();
    for (name, shape, mut data) in tensors(golden) {
        let turned = ["llama", "granite", "smollm3"].contains(&arch);
        let count = if name.contains(".q_proj.") { heads } else { keys } as usize;
        if turned && (name.contains(".q_proj.") || name.contains(".k_proj.")) {
            // Row i of a head goes to 2i when it is in the first half, else to 2(i - half) + 1.
            let (rows, columns) = (shape[0] / count, data.len() / shape[0]);
            let half = rows / 2;
            let old = data.clone();
            for row in 0..shape[0] {
                let (h, i) = (row / rows, row % rows);
                let to = h * rows + if i < half { 2 * i } else { 2 * (i - half) + 1 };
                data[to * columns..][..columns].copy_from_slice(&old[row * columns..][..columns]);
            }
        }
        if arch.starts_with("gemma") && name.ends_with("norm.weight") {
            data.iter_mut().for_each(|w| *w += 1.0);
        }
        all.insert(renamed(arch, &name), Array::from_vec(data, &shape));
    }
    let scaling = config.get("rope_scaling").unwrap_or(&Value::Null);
    if scaling["rope_type"] == "llama3" {
        let of = |key: &str| scaling[key].as_f64().unwrap();
        let (factor, old) = (of("factor"), of("original_max_position_embeddings"));
        let base = config["rope_theta"].as_f64().unwrap();
        let factors = (0..head / 2).map(|i| {
            let length = std::f64::consts::TAU * base.powf(2.0 * i as f64 / head as f64);
            let smooth = (old / length - of("low_freq_factor")) / (of("high_freq_factor") - of("low_freq_factor"));
            match length {
                l if l < old / of("high_freq_factor") => 1.0,
                l if l > old / of("low_freq_factor") => factor as f32,
                _ => (1.0 / ((1.0 - smooth) / factor + smooth)) as f32,
            }
        });
        all.insert("rope_freqs.weight".into(), Array::from_vec(factors.collect::<Vec<f32>>(), &[head as usize / 2]));
    }
    for kind in ["long", "short"] {
        if let Some(factors) = scaling[format!("{kind}_factor")].as_array() {
            let factors: Vec<f32> = factors.iter().map(|f| f.as_f64().unwrap() as f32).collect();
            let n = factors.len();
            all.insert(format!("rope_factors_{kind}.weight"), Array::from_vec(factors, &[n]));
        }
    }
    (meta, all)
}

fn golden(name: &str) -> Option<Value> {
    let dir = shared("goldens")?;
    Some(serde_json::from_slice(&std::fs::read(dir.join(format!("{name}.json"))).unwrap()).unwrap())
}

/// The logits of a model for the tokens of a golden one.
fn logits(path: &Path, golden: &Value) -> Vec<f32> {
    let model = models::load(&mut Checkpoint::open(path).unwrap()).unwrap();
    let mut all = Vec::new();
    for tokens in golden["tokens"].as_array().unwrap() {
        let tokens: Vec<i32> = tokens.as_array().unwrap().iter().map(|t| t.as_i64().unwrap() as i32).collect();
        let mut sequence = Sequence::new();
        let mut batch = Batch::one(tokens.len(), &mut sequence);
        let hidden = model.hidden(&Array::from_slice(&tokens, &[tokens.len()]), &mut batch).unwrap();
        batch.finish();
        all.extend(ops::astype(&model.logits(&hidden).unwrap(), Dtype::Float32).unwrap().to_vec::<f32>().unwrap());
    }
    all
}

/// The largest difference over the largest value.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f64, |m, x| m.max(f64::from(x.abs())));
    a.iter().zip(b).fold(0f64, |m, (x, y)| m.max(f64::from((x - y).abs()))) / largest
}

fn expected(golden: &Value) -> Vec<f32> {
    golden["logits"]["data"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn models_have_the_logits_of_their_checkpoints() {
    let dir = scratch("models");
    for (name, arch) in MODELS {
        let Some(golden) = golden(name) else { return };
        let (meta, all) = file_of(arch, &golden);
        let path = dir.join(format!("{name}.gguf"));
        save_gguf(&path, &all, &meta).unwrap();
        let far = difference(&logits(&path, &golden), &expected(&golden));
        assert!(far < 1e-4, "{name}: logits differ by {far:.1e} of the largest");
        let half = |dtype| {
            all.iter()
                .map(|(n, a)| {
                    let a = if a.ndim() > 1 { ops::astype(a, dtype).unwrap() } else { a.clone() };
                    (n.clone(), a)
                })
                .collect::<Arrays>()
        };
        for dtype in [Dtype::Bfloat16, Dtype::Float16] {
            save_gguf(&path, &half(dtype), &meta).unwrap();
            let far = difference(&logits(&path, &golden), &expected(&golden));
            assert!(far < 0.1, "{name}: as {dtype} logits differ by {far:.1e} of the largest");
        }
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// A Llama with matrices of seven types of blocks, written by `data/tiny.py`.
fn tiny() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny.gguf"))
}

#[test]
fn blocks_of_every_kind_stand_for_the_values_that_llama_cpp_sees() {
    let want: Value = serde_json::from_slice(include_bytes!("../data/tiny.json")).unwrap();
    let tokens = serde_json::json!({ "tokens": [want["tokens"]] });
    let last: Vec<f32> = want["last"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    let row = |all: Vec<f32>| all[all.len() - last.len()..].to_vec();
    // As it is, in half precision and with rows of 8 bits.
    let far = difference(&row(logits(&tiny(), &tokens)), &last);
    assert!(far < 0.02, "{far:.1e}");
    // Unpacked, in float32; the checkpoint is one that mlx-lm reads.
    let dir = scratch("tiny");
    let to = dir.join("mlx");
    let options = convert::Options { dequantize: true, dtype: Some(Dtype::Float32), ..Default::default() };
    convert::convert(&tiny(), &to, &options, |_: &str| {}).unwrap();
    let all = logits(&to, &tokens);
    let far = difference(&row(all.clone()), &last);
    assert!(far < 1e-3, "{far:.1e}");
    let likeliest = |row: &[f32]| (0..row.len()).fold(0, |m, i| if row[i] > row[m] { i } else { m });
    let likeliest: Vec<usize> = all.chunks(last.len()).map(likeliest).collect();
    assert_eq!(serde_json::json!(likeliest), want["likeliest"]);
    // Packed as they were, with the block of the config that says how.
    let to = dir.join("packed");
    convert::convert(&tiny(), &to, &convert::Options::default(), |_: &str| {}).unwrap();
    assert_eq!(logits(&to, &tokens), logits(&tiny(), &tokens));
    let config: Value = serde_json::from_slice(&std::fs::read(to.join("config.json")).unwrap()).unwrap();
    let form = |bits: u32| serde_json::json!({ "bits": bits, "group_size": 32, "mode": "affine" });
    assert_eq!(config["quantization"]["bits"], 4);
    assert_eq!(config["quantization"]["model.embed_tokens"], form(8));
    assert_eq!(config["quantization"]["model.layers.1.self_attn.q_proj"], form(8));
    assert_eq!(config["quantization"].get("model.layers.0.self_attn.v_proj"), None);
    // The tokenizer went along.
    let (theirs, ours) = (Tokenizer::load(&to).unwrap(), Tokenizer::load(&tiny()).unwrap());
    let text = "the tin é<tool>x<|im_end|>\n";
    assert_eq!(theirs.encode(text, true).unwrap(), ours.encode(text, true).unwrap());
    // A space begins each piece of text between special tokens.
    let decoded = ours.decode(&ours.encode(text, false).unwrap(), false).unwrap();
    assert_eq!(decoded, "the tin é<tool> x<|im_end|> \n");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_file_is_all_that_a_chat_needs() {
    let model = lapis_lm::load(tiny()).unwrap();
    assert_eq!(model.context, Some(128));
    assert_eq!(model.tokenizer.bos(), Some("<s>"));
    // The end that metadata name, and that which the vocabulary is known to have.
    assert_eq!(model.eos.iter().copied().collect::<Vec<_>>(), [2, 275]);
    let messages = serde_json::json!([{ "role": "user", "content": "the" }]);
    let chat = lapis_lm::template::Chat { messages: &messages, ..Default::default() };
    // `▁the`, once more with the space that begins a text.
    let prompt = model.chat_prompt(&chat, None).unwrap();
    assert_eq!(prompt, [1, 267, 275]);
    let options = lapis_lm::Options { max_tokens: Some(4), ignore_eos: true, ..Default::default() };
    model.generate(&prompt, &options).unwrap();
}

/// Metadata and tensors of the smallest model.
fn smallest() -> (GgufMetadata, Arrays) {
    let mut meta = GgufMetadata::new();
    meta.insert("general.architecture".into(), text("llama"));
    for (key, value) in [
        ("embedding_length", 4),
        ("block_count", 1),
        ("feed_forward_length", 8),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("context_length", 16),
    ] {
        meta.insert(format!("llama.{key}"), number(value));
    }
    meta.insert("llama.attention.layer_norm_rms_epsilon".into(), real(1e-5));
    meta.insert("tokenizer.ggml.model".into(), text("gpt2"));
    meta.insert("tokenizer.ggml.pre".into(), text("gpt-2"));
    meta.insert("tokenizer.ggml.tokens".into(), GgufValue::Texts(["a", "b", "ab"].map(String::from).into()));
    meta.insert("tokenizer.ggml.merges".into(), GgufValue::Texts(vec!["a b".into()]));
    let mut all = Arrays::default();
    for (name, shape) in [
        ("token_embd", &[3, 4][..]),
        ("output_norm", &[4]),
        ("blk.0.attn_norm", &[4]),
        ("blk.0.attn_q", &[4, 4]),
        ("blk.0.attn_k", &[2, 4]),
        ("blk.0.attn_v", &[2, 4]),
        ("blk.0.attn_output", &[4, 4]),
        ("blk.0.ffn_norm", &[4]),
        ("blk.0.ffn_gate", &[8, 4]),
        ("blk.0.ffn_up", &[8, 4]),
        ("blk.0.ffn_down", &[4, 8]),
    ] {
        all.insert(format!("{name}.weight"), ops::ones::<f32>(shape).unwrap());
    }
    (meta, all)
}
