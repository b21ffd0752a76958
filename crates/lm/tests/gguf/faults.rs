//! Damage and what is wrong: an error that says so, and never a panic.

use super::*;

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
