//! Vocabularies: what is read from a file gives the ids of its tokenizer, and so does what was written.

use super::*;
use lapis_lm::gguf::{Kind, export};
use std::process::Command;

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

/// A unigram model of SentencePiece, written and read again; `data/unigram.py` has made the tokenizer.
#[test]
fn the_likeliest_pieces_are_found_in_a_file_that_was_written_here() {
    let mut told: Value = serde_json::from_slice(include_bytes!("../data/unigram.json")).unwrap();
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
