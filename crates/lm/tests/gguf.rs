//! GGUF files: models with the logits of their checkpoints, vocabularies with the ids of their tokenizers, and faults.
//!
//! Models are those of `../shared/goldens`, written here by the rules of llama.cpp's converter; vocabularies those of
//! `../shared/data/tokenizers`.

mod shared;

use lapis::io::{Arrays, GgufMetadata, GgufValue, save_gguf};
use lapis::{Array, Dtype, ops};
use lapis_lm::gguf::{Kind, export};
use lapis_lm::tokenizer::Tokenizer;
use lapis_lm::{Batch, Checkpoint, Sequence, convert, models};
use serde_json::Value;
use shared::shared;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Unpacks a tokenizer that may be compressed.
fn tokenizer_json(dir: &Path) -> Vec<u8> {
    if let Ok(bytes) = std::fs::read(dir.join("tokenizer.json")) {
        return bytes;
    }
    let unpacked = Command::new("gzip").arg("-dc").arg(dir.join("tokenizer.json.gz")).output().unwrap();
    assert!(unpacked.status.success(), "gzip cannot unpack {}", dir.display());
    unpacked.stdout
}

/// A vocabulary as llama.cpp's converter writes it.
fn vocabulary(json: &Value, model: &str, pre: &str) -> GgufMetadata {
    let mut ids: Vec<(String, u64)> =
        json["model"]["vocab"].as_object().unwrap().iter().map(|(t, id)| (t.clone(), id.as_u64().unwrap())).collect();
    let mut kinds: std::collections::HashMap<u64, i32> = Default::default();
    for token in json["added_tokens"].as_array().unwrap() {
        let (id, content) = (token["id"].as_u64().unwrap(), token["content"].as_str().unwrap());
        kinds.insert(id, if token["special"] == true { 3 } else { 4 });
        if !ids.iter().any(|t| t.1 == id) {
            ids.push((content.into(), id));
        }
    }
    let n = ids.iter().map(|t| t.1).max().unwrap() as usize + 1;
    let mut tokens: Vec<String> = (0..n).map(|i| format!("[PAD{i}]")).collect();
    let mut types = vec![5i32; n];
    for (token, id) in ids {
        let byte = token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        types[id as usize] = *kinds.get(&id).unwrap_or(if byte && model == "llama" { &6 } else { &1 });
        tokens[id as usize] = token;
    }
    let mut meta = GgufMetadata::new();
    meta.insert("general.architecture".into(), text("llama"));
    meta.insert("tokenizer.ggml.model".into(), text(model));
    meta.insert("tokenizer.ggml.pre".into(), text(pre));
    meta.insert("tokenizer.ggml.token_type".into(), GgufValue::Array(Array::from_vec(types, &[n])));
    if model == "llama" {
        // Runs of spaces come last.
        let score = |(i, token): (usize, &String)| if token.chars().all(|c| c == '▁') { -1e9 } else { -(i as f32) };
        let scores: Vec<f32> = tokens.iter().enumerate().map(score).collect();
        meta.insert("tokenizer.ggml.scores".into(), GgufValue::Array(Array::from_vec(scores, &[n])));
        meta.insert("tokenizer.ggml.unknown_token_id".into(), number(0));
    } else {
        let merges = json["model"]["merges"].as_array().unwrap().iter().map(|m| match m {
            Value::String(merge) => merge.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        });
        meta.insert("tokenizer.ggml.merges".into(), GgufValue::Texts(merges.collect()));
    }
    meta.insert("tokenizer.ggml.tokens".into(), GgufValue::Texts(tokens));
    meta
}

#[test]
fn vocabularies_give_the_ids_of_their_tokenizers() {
    let Some(data) = shared("data/tokenizers") else { return };
    let dir = scratch("vocabularies");
    for (name, model, pre) in [
        ("deepseek-v3", "gpt2", "deepseek-v3"),
        ("gpt-oss", "gpt2", "gpt-4o"),
        ("gpt2", "gpt2", "gpt-2"),
        ("llama-2", "llama", "default"),
        ("llama-3.2", "gpt2", "llama-bpe"),
        ("mistral-nemo", "gpt2", "tekken"),
        ("phi-3-mini", "llama", "default"),
        ("qwen3", "gpt2", "qwen2"),
    ] {
        let bytes = tokenizer_json(&data.join(name));
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        let theirs = Tokenizer::from_json(&bytes, Value::Null).unwrap();
        let path = dir.join(format!("{name}.gguf"));
        let none: Arrays =
            [("token_embd.weight".to_string(), Array::from_vec(vec![0f32], &[1, 1]))].into_iter().collect();
        save_gguf(&path, &none, &vocabulary(&json, model, pre)).unwrap();
        let ours = Tokenizer::load(&path).unwrap();
        let mut texts = Vec::new();
        for file in ["mixed_input.txt", "small_input.txt", "utf8_input.txt"] {
            let file = std::fs::read_to_string(data.join("vectors/kitoken").join(file)).unwrap();
            texts.extend(file.split('\n').map(str::to_string));
            texts.push(file);
        }
        for file in ["llama-bpe", "llama-spm"] {
            let file = std::fs::read_to_string(data.join(format!("vectors/llama.cpp/ggml-vocab-{file}.gguf.inp")));
            texts.extend(file.unwrap().split("\n__ggml_vocab_test__\n").map(str::to_string));
        }
        let special = json["added_tokens"][0]["content"].as_str().unwrap();
        texts.push(format!("{special}begin {special} and{special}end"));
        for text in &texts {
            let ids = theirs.encode(text, false).unwrap();
            assert_eq!(ours.encode(text, false).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(ours.decode(&ids, false).unwrap(), theirs.decode(&ids, false).unwrap(), "{name}: {text:?}");
        }
        assert_eq!(ours.vocab_size(), theirs.vocab_size());
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// A folder of vocabularies of llama.cpp, `ggml-vocab-*.gguf`, with texts and ids beside them.
#[test]
fn llama_cpp_s_own_vocabularies_give_its_ids() {
    let Some(dir) = std::env::var_os("LAPIS_VOCABULARIES").map(PathBuf::from) else {
        return eprintln!("skipped: LAPIS_VOCABULARIES names no folder");
    };
    let Some(vectors) = shared("data/tokenizers/vectors/llama.cpp") else { return };
    let mut wrong = Vec::new();
    let mut total = 0;
    for file in std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()) {
        let Some(name) = file.file_name().and_then(|n| n.to_str()).filter(|n| n.ends_with(".gguf")) else { continue };
        let read = |end: &str| {
            let beside = |p: &Path| std::fs::read_to_string(p.with_file_name(format!("{name}.{end}")));
            beside(&file).or_else(|_| beside(&vectors.join("x")))
        };
        let tokenizer = match Tokenizer::load(&file) {
            Ok(tokenizer) => tokenizer,
            Err(e) => {
                eprintln!("{name}: {e}");
                continue;
            }
        };
        let (Ok(texts), Ok(ids)) = (read("inp"), read("out")) else { continue };
        for (text, ids) in texts.split("\n__ggml_vocab_test__\n").zip(ids.split('\n')) {
            let ids: Vec<u32> = ids.split_whitespace().map(|n| n.parse().unwrap()).collect();
            let found = tokenizer.encode(text, false).unwrap();
            total += 1;
            if found != ids {
                wrong.push(format!("{name}: {text:?} is {found:?}, not {ids:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {total} differ:\n{}", wrong.len(), wrong.join("\n"));
    eprintln!("{total} texts");
}

/// A Llama with matrices of seven types of blocks, written by `data/tiny.py`.
fn tiny() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny.gguf"))
}

#[test]
fn blocks_of_every_kind_stand_for_the_values_that_llama_cpp_sees() {
    let want: Value = serde_json::from_slice(include_bytes!("data/tiny.json")).unwrap();
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
    convert::convert(&tiny(), &to, &options, |_| {}).unwrap();
    let all = logits(&to, &tokens);
    let far = difference(&row(all.clone()), &last);
    assert!(far < 1e-3, "{far:.1e}");
    let likeliest = |row: &[f32]| (0..row.len()).fold(0, |m, i| if row[i] > row[m] { i } else { m });
    let likeliest: Vec<usize> = all.chunks(last.len()).map(likeliest).collect();
    assert_eq!(serde_json::json!(likeliest), want["likeliest"]);
    // Packed as they were, with the block of the config that says how.
    let to = dir.join("packed");
    convert::convert(&tiny(), &to, &convert::Options::default(), |_| {}).unwrap();
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

/// A unigram model of SentencePiece, written and read again; `data/unigram.py` has made the tokenizer.
#[test]
fn the_likeliest_pieces_are_found_in_a_file_that_was_written_here() {
    let mut told: Value = serde_json::from_slice(include_bytes!("data/unigram.json")).unwrap();
    let (dir, rows) = (scratch("unigram"), told["tokenizer"]["model"]["vocab"].as_array().unwrap().len());
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": rows, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
        // As transformers 5 has it.
        "rope_parameters": { "rope_type": "default", "rope_theta": 50.0 },
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let words = serde_json::json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>" });
    std::fs::write(dir.join("tokenizer_config.json"), words.to_string()).unwrap();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut all = Arrays::default();
    for (i, (name, shape)) in [
        ("model.embed_tokens.weight".to_string(), &[rows, 32][..]),
        ("lm_head.weight".to_string(), &[rows, 32]),
        ("model.norm.weight".to_string(), &[32]),
        (layer("input_layernorm"), &[32]),
        (layer("post_attention_layernorm"), &[32]),
        (layer("self_attn.q_proj"), &[32, 32]),
        (layer("self_attn.k_proj"), &[32, 32]),
        (layer("self_attn.v_proj"), &[32, 32]),
        (layer("self_attn.o_proj"), &[32, 32]),
        (layer("mlp.gate_proj"), &[32, 32]),
        (layer("mlp.up_proj"), &[32, 32]),
        (layer("mlp.down_proj"), &[32, 32]),
    ]
    .into_iter()
    .enumerate()
    {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|j| ((i + 1) as f32 * (j + 3) as f32).sin() * 0.5).collect();
        all.insert(name, Array::from_vec(values, shape));
    }
    lapis::io::save_safetensors(dir.join("model.safetensors"), &all, &Default::default()).unwrap();
    let write = |tokenizer: &Value| {
        std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        export(&dir, &dir.join("model.gguf"), Kind::F32)
    };
    assert_eq!(write(&told["tokenizer"]).unwrap(), None);
    let (theirs, ours) = (Tokenizer::load(&dir).unwrap(), Tokenizer::load(&dir.join("model.gguf")).unwrap());
    for case in told["ids"].as_array().unwrap() {
        let text = case[0].as_str().unwrap();
        for tokenizer in [&theirs, &ours] {
            assert_eq!(serde_json::json!(tokenizer.encode(text, true).unwrap()), case[1], "{text:?}");
        }
        let ids = theirs.encode(text, false).unwrap();
        assert_eq!(ours.decode(&ids, false).unwrap(), theirs.decode(&ids, false).unwrap(), "{text:?}");
    }
    let tokens = serde_json::json!({ "tokens": [[1, 20, 30, 40, 50, 60]] });
    let far = difference(&logits(&dir.join("model.gguf"), &tokens), &logits(&dir, &tokens));
    assert!(far < 1e-5, "{far:.1e}");

    let tokenizer = &mut told["tokenizer"];
    tokenizer["model"]["byte_fallback"] = true.into();
    assert!(write(tokenizer).unwrap().unwrap().contains("unknown token"));
    tokenizer["normalizer"] = serde_json::json!({ "type": "NFKC" });
    let why = write(tokenizer).err().unwrap().to_string();
    assert!(why.contains("the normalizer {\"type\":\"NFKC\"} of the unigram tokenizer has no words in GGUF"), "{why}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_is_wrong_is_said() {
    let dir = scratch("wrong");
    let path = dir.join("model.gguf");
    let (meta, all) = smallest();
    let save = |meta: &GgufMetadata, all: &Arrays| save_gguf(&path, all, meta).unwrap();
    let model = || {
        let loaded = Checkpoint::open(&path).and_then(|mut c| models::load(&mut c));
        loaded.err().map(|e| e.to_string()).unwrap_or_default()
    };
    let vocabulary = || Tokenizer::load(&path).err().map(|e| e.to_string()).unwrap_or_default();
    save(&meta, &all);
    assert_eq!((model(), vocabulary()), Default::default());
    let with = |key: &str, value: GgufValue| {
        let mut meta = meta.clone();
        meta.insert(key.into(), value);
        save(&meta, &all);
    };
    let without = |key: &str| {
        let mut meta = meta.clone();
        assert!(meta.shift_remove(key).is_some());
        save(&meta, &all);
    };
    let list = |all: Vec<u32>| {
        let n = all.len();
        GgufValue::Array(Array::from_vec(all, &[n]))
    };
    let says = |found: String, what: &str| {
        assert!(found.contains(what) && found.contains("model.gguf"), "{found:?} does not say {what:?}");
        assert!(found.lines().count() <= 6, "{found}");
    };
    // The config.
    without("general.architecture");
    says(model(), "general.architecture is missing");
    with("general.architecture", text("bert"));
    says(model(), "architecture \"bert\" is not read from GGUF; known are llama, qwen2");
    without("llama.block_count");
    says(model(), "llama.block_count is missing");
    with("llama.block_count", text("one"));
    says(model(), "llama.block_count is no number");
    with("llama.attention.head_count", list(vec![2, 4]));
    says(model(), "llama.attention.head_count is one for each layer, which is not supported");
    with("llama.attention.head_count", number(0));
    assert!(model().contains("num_attention_heads"), "{}", model());
    with("llama.block_count", number(2));
    assert!(model().contains("model.layers.1.self_attn.q_proj.weight: missing"), "{}", model());
    with("llama.block_count", number(u32::MAX));
    assert!(model().contains("num_hidden_layers"), "{}", model());
    with("llama.embedding_length", number(1 << 30));
    assert!(model().contains("hidden_size"), "{}", model());
    with("llama.rope.freq_base", real(f64::NAN));
    says(model(), "llama.rope.freq_base is no number");
    // Tensors.
    let tensor = |name: &str, a: Option<Array>| {
        let mut all = all.clone();
        match a {
            Some(a) => _ = all.insert(name.into(), a),
            None => assert!(all.shift_remove(name).is_some()),
        }
        save(&meta, &all);
    };
    tensor("blk.0.attn_mystery.weight", Some(ops::ones::<f32>(&[4]).unwrap()));
    says(model(), "tensor blk.0.attn_mystery.weight is not known in a model of architecture \"llama\"");
    tensor("token_embd.weight", None);
    says(model(), "token_embd.weight is missing");
    tensor("blk.0.ffn_up.weight", None);
    says(model(), "model.layers.0.mlp.up_proj.weight: missing");
    tensor("blk.0.attn_q.weight", Some(ops::ones::<f32>(&[3, 4]).unwrap()));
    assert!(!model().is_empty());
    // The vocabulary.
    without("tokenizer.ggml.tokens");
    says(vocabulary(), "no vocabulary");
    without("tokenizer.ggml.model");
    says(vocabulary(), "tokenizer.ggml.model is missing");
    with("tokenizer.ggml.model", text("rwkv"));
    says(vocabulary(), "vocabularies of kind \"rwkv\" are not read");
    without("tokenizer.ggml.merges");
    says(vocabulary(), "tokenizer.ggml.merges is missing");
    with("tokenizer.ggml.pre", text("klingon"));
    says(vocabulary(), "\"klingon\"");
    with("tokenizer.ggml.model", text("llama"));
    says(vocabulary(), "tokenizer.ggml.scores is missing");
    with("tokenizer.ggml.token_type", list(vec![1, 1]));
    says(vocabulary(), "tokenizer.ggml.token_type has 2 entries for 3 tokens");
    with("tokenizer.ggml.bos_token_id", number(3));
    says(vocabulary(), "tokenizer.ggml.bos_token_id is 3, there are 3 tokens");
    with("tokenizer.ggml.add_bos_token", number(7));
    says(vocabulary(), "tokenizer.ggml.add_bos_token is 7, expected true or false");
    with("tokenizer.ggml.merges", GgufValue::Texts(vec!["a c".into()]));
    says(vocabulary(), "\"c\"");
    with("tokenizer.ggml.merges", GgufValue::Texts(vec!["b a".into()]));
    says(vocabulary(), "\"ba\"");
    with("tokenizer.ggml.tokens", GgufValue::Texts(["a", "b", "a"].map(String::from).into()));
    says(vocabulary(), "\"a\" is there twice");
    // Of another suffix it is no model.
    std::fs::rename(&path, dir.join("model.bin")).unwrap();
    let why = Checkpoint::open(dir.join("model.bin")).err().unwrap().to_string();
    assert!(why.contains("does not end with .gguf"), "{why}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn several_files_are_one_model() {
    let dir = scratch("split");
    let (meta, all) = smallest();
    let whole = dir.join("whole.gguf");
    save_gguf(&whole, &all, &meta).unwrap();
    let part = |i: usize| dir.join(format!("model-{i:05}-of-00003.gguf"));
    let names: Vec<&String> = all.keys().collect();
    for (i, names) in names.chunks(4).enumerate() {
        let mut meta = if i == 0 { meta.clone() } else { GgufMetadata::new() };
        for (key, value) in [("split.no", i as u32), ("split.count", 3), ("split.tensors.count", 11)] {
            meta.insert(key.into(), number(value));
        }
        save_gguf(part(i + 1), names.iter().map(|n| (*n, &all[*n])), &meta).unwrap();
    }
    let tokens = serde_json::json!({ "tokens": [[0, 1, 2]] });
    assert_eq!(logits(&part(1), &tokens), logits(&whole, &tokens));
    assert_eq!(Tokenizer::load(&part(1)).unwrap().vocab_size(), 3);
    let why = Checkpoint::open(part(2)).err().unwrap().to_string();
    assert!(why.contains("part 2 of 3; name the first one, model-00001-of-00003.gguf"), "{why}");
    std::fs::copy(part(2), part(3)).unwrap();
    let why = Checkpoint::open(part(1)).err().unwrap().to_string();
    assert!(why.contains("the parts hold 12 tensors, 11 are announced"), "{why}");
    std::fs::remove_file(part(3)).unwrap();
    let why = Checkpoint::open(part(1)).err().unwrap().to_string();
    assert!(why.contains("3 parts belong together; missing are") && why.contains("model-00003-of-00003.gguf"), "{why}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn damage_is_an_error_or_another_model_and_never_a_panic() {
    let dir = scratch("damage");
    let path = dir.join("model.gguf");
    let good = std::fs::read(tiny()).unwrap();
    // Metadata and the list of tensors are before the data.
    let head = good.windows(14).rposition(|w| w == b"ffn_up.weight\x02").unwrap() + 64;
    let mut state = 9u64;
    let mut next = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut loaded = 0;
    for i in 0..1200 {
        let mut bytes = good.clone();
        for _ in 0..1 + i % 2 {
            let at = next(head);
            bytes[at] = match next(4) {
                0 => 0,
                1 => 255,
                2 => bytes[at] ^ (1 << next(8)),
                _ => next(256) as u8,
            };
        }
        std::fs::write(&path, &bytes).unwrap();
        let model = Checkpoint::open(&path).and_then(|mut c| models::load(&mut c));
        let tokenizer = Tokenizer::load(&path).and_then(|t| t.encode("the tin é<tool>\n", true));
        loaded += usize::from(model.is_ok() && tokenizer.is_ok());
        for why in [model.err(), tokenizer.err()].into_iter().flatten() {
            assert!(why.to_string().lines().count() <= 6, "{why}");
        }
    }
    eprintln!("{loaded} of 1200 load");
    std::fs::remove_dir_all(dir).unwrap();
}
