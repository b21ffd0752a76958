//! What dense families promise beyond the goldens: windows, settings, and what is said of configs that are wrong.

use lapis::io::Arrays;
use lapis::{Array, Dtype, ops};
use lapis_lm::{Batch, Checkpoint, Model, Sequence, models};
use serde_json::{Value, json};

/// Tensors of these shapes, each with its own values.
fn tensors(shapes: &[(String, Vec<usize>)]) -> Arrays {
    let fill = |(k, (name, shape)): (usize, &(String, Vec<usize>))| {
        let n: usize = shape.iter().product();
        let value = |i: usize| ((i * 7919 + k * 104_729) % 1009) as f32 / 1009.0 - 0.5;
        (name.clone(), Array::from_vec((0..n).map(value).collect(), shape))
    };
    shapes.iter().enumerate().map(fill).collect()
}

fn gemma2(window: usize) -> Box<dyn Model> {
    let config = json!({
        "model_type": "gemma2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 32,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-6,
        "sliding_window": window,
    });
    let mut shapes = vec![("model.embed_tokens.weight".to_string(), vec![32, 32])];
    shapes.push(("model.norm.weight".to_string(), vec![32]));
    for i in 0..2 {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{i}.{name}.weight"), shape.to_vec()));
        };
        add("self_attn.q_proj", &[32, 32]);
        add("self_attn.k_proj", &[16, 32]);
        add("self_attn.v_proj", &[16, 32]);
        add("self_attn.o_proj", &[32, 32]);
        add("mlp.gate_proj", &[48, 32]);
        add("mlp.up_proj", &[48, 32]);
        add("mlp.down_proj", &[32, 48]);
        for norm in ["input", "post_attention", "pre_feedforward", "post_feedforward"] {
            add(&format!("{norm}_layernorm"), &[32]);
        }
    }
    load(config, tensors(&shapes)).unwrap()
}

fn load(config: Value, tensors: Arrays) -> lapis::Result<Box<dyn Model>> {
    models::load(&mut Checkpoint::from_parts(config.as_object().unwrap().clone(), tensors)?)
}

/// Logits of a text in steps of this many tokens.
fn logits(model: &dyn Model, tokens: &[i32], step: usize) -> Vec<u32> {
    let mut sequence = Sequence::new();
    let mut all = Vec::new();
    for part in tokens.chunks(step) {
        let mut batch = Batch::one(part.len(), &mut sequence);
        let hidden = model.hidden(&Array::from_vec(part.to_vec(), &[part.len()]), &mut batch).unwrap();
        batch.finish();
        let rows = ops::astype(&model.logits(&hidden).unwrap(), Dtype::Float32).unwrap().to_vec::<f32>().unwrap();
        all.extend(rows.into_iter().map(f32::to_bits));
    }
    all
}

/// Keys that have left a window are dropped in runs: no bit of the logits says when.
#[test]
fn long_texts_behind_windows_have_the_same_bits_in_steps() {
    let tokens: Vec<i32> = (0..1300).map(|i: i32| (i * i + 3 * i) % 31).collect();
    for window in [8, 600] {
        let model = gemma2(window);
        let whole = logits(&*model, &tokens, tokens.len());
        assert!(whole.iter().all(|&b| f32::from_bits(b).is_finite()));
        for step in [1, 100] {
            assert!(logits(&*model, &tokens, step) == whole, "window {window}, steps of {step}: other bits");
        }
    }
    // The window is looked at: without it the rows that it changes are others.
    let (near, far) = (logits(&*gemma2(8), &tokens[..40], 40), logits(&*gemma2(600), &tokens[..40], 40));
    assert!(near[..8 * 32] == far[..8 * 32], "rows within the window");
    assert!(near[9 * 32..] != far[9 * 32..], "rows beyond it");
}

/// What loading says of a config, which has no tensors.
fn complaint(kind: &str, change: Value) -> String {
    let mut config = json!({
        "model_type": kind, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
        "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64, "layer_norm_epsilon": 1e-5,
        "use_qkv_bias": true, "logits_scaling": 8.0, "attention_multiplier": 0.1, "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5, "sliding_window": 8,
        "rope_parameters": { "rope_theta": 1e4, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64 },
    });
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    match load(config, Arrays::default()) {
        Ok(_) => panic!("{kind}, {change}: no complaint"),
        Err(e) => e.message().to_string(),
    }
}

#[test]
fn faults_of_configs_are_told_by_their_key() {
    let families: Vec<&str> = models::ALL.iter().flat_map(|a| a.names).copied().collect();
    let dense = ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3", "granite", "olmo2"];
    let others = ["olmo3", "cohere", "cohere2", "glm4", "ministral3", "starcoder2", "stablelm", "exaone4", "ernie4_5"];
    let wrapped = ["gemma3", "mistral3", "qwen2_vl", "qwen3_vl"];
    for kind in dense.into_iter().chain(others) {
        assert!(families.contains(&kind));
        for (key, value) in [
            ("num_hidden_layers", json!(0)),
            ("num_hidden_layers", json!(1e9 as u64)),
            ("hidden_size", json!(-64)),
            ("hidden_size", json!("64")),
            ("num_attention_heads", json!(0)),
            ("num_attention_heads", json!(3)),
            ("num_key_value_heads", json!(0)),
            ("num_key_value_heads", json!(3)),
            ("head_dim", json!(0)),
            ("head_dim", json!(15)),
            ("rope_theta", json!(0.0)),
            ("intermediate_size", json!(1.5)),
            ("partial_rotary_factor", json!(0.0)),
            ("sliding_window", json!(-1)),
            ("layer_types", json!(["full_attention"])),
            ("rope_scaling", json!({ "type": "linear" })),
        ] {
            let said = complaint(kind, json!({ (key): value }));
            let ropeless = said.contains("missing") && matches!(key, "rope_scaling" | "rope_theta");
            assert!(said.contains(key) || ropeless, "{kind}, {key} {value}: {said}");
        }
    }
    for kind in wrapped {
        let said = complaint(kind, json!({ "text_config": { "hidden_size": 64, "num_attention_heads": 0 } }));
        assert!(said.contains("num_attention_heads"), "{kind}: {said}");
        let said = complaint(kind, json!({ "text_config": 3 }));
        assert!(said.contains("text_config"), "{kind}: {said}");
    }
    assert!(complaint("gpt2", json!({ "n_head": 5 })).contains("n_embd"));
    assert!(complaint("granite", json!({ "logits_scaling": 0.0 })).contains("logits_scaling"));
    assert!(complaint("smollm3", json!({ "no_rope_layers": [1] })).contains("no_rope_layers"));
}

/// Names and layouts of Hugging Face, and lapis's own, are one model: converting twice changes nothing.
#[test]
fn names_of_other_checkpoints_are_read() {
    let text: Vec<i32> = (0..20).map(|i| (i * 7) % 32).collect();
    let gpt2 = json!({
        "model_type": "gpt2", "n_embd": 32, "n_head": 2, "n_layer": 1, "n_positions": 32, "vocab_size": 32,
        "layer_norm_epsilon": 1e-5,
    });
    let neox = json!({
        "model_type": "gpt_neox", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1,
        "vocab_size": 32, "layer_norm_eps": 1e-5, "rotary_emb_base": 10000, "rotary_pct": 0.5,
    });
    let inside = json!({
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 32,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
    });
    let vision = json!({ "model_type": "qwen2_vl", "text_config": inside, "tie_word_embeddings": false });
    let turned = ["c_attn.weight", "c_proj.weight", "c_fc.weight"];
    for config in [gpt2, neox, vision] {
        let kind = config["model_type"].as_str().unwrap().to_string();
        let shapes = match kind.as_str() {
            "gpt2" => vec![
                ("wte.weight", vec![32, 32]),
                ("wpe.weight", vec![32, 32]),
                ("ln_f.weight", vec![32]),
                ("ln_f.bias", vec![32]),
                ("h.0.attn.bias", vec![1, 1, 32, 32]),
                ("h.0.attn.c_attn.weight", vec![32, 96]),
                ("h.0.attn.c_attn.bias", vec![96]),
                ("h.0.attn.c_proj.weight", vec![32, 32]),
                ("h.0.attn.c_proj.bias", vec![32]),
                ("h.0.mlp.c_fc.weight", vec![32, 128]),
                ("h.0.mlp.c_fc.bias", vec![128]),
                ("h.0.mlp.c_proj.weight", vec![128, 32]),
                ("h.0.mlp.c_proj.bias", vec![32]),
                ("h.0.ln_1.weight", vec![32]),
                ("h.0.ln_1.bias", vec![32]),
                ("h.0.ln_2.weight", vec![32]),
                ("h.0.ln_2.bias", vec![32]),
            ],
            "gpt_neox" => vec![
                ("gpt_neox.embed_in.weight", vec![32, 32]),
                ("embed_out.weight", vec![32, 32]),
                ("gpt_neox.final_layer_norm.weight", vec![32]),
                ("gpt_neox.final_layer_norm.bias", vec![32]),
                ("gpt_neox.layers.0.attention.bias", vec![1, 1, 32, 32]),
                ("gpt_neox.layers.0.attention.masked_bias", vec![]),
                ("gpt_neox.layers.0.attention.rotary_emb.inv_freq", vec![4]),
                ("gpt_neox.layers.0.attention.query_key_value.weight", vec![96, 32]),
                ("gpt_neox.layers.0.attention.query_key_value.bias", vec![96]),
                ("gpt_neox.layers.0.attention.dense.weight", vec![32, 32]),
                ("gpt_neox.layers.0.attention.dense.bias", vec![32]),
                ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", vec![128, 32]),
                ("gpt_neox.layers.0.mlp.dense_h_to_4h.bias", vec![128]),
                ("gpt_neox.layers.0.mlp.dense_4h_to_h.weight", vec![32, 128]),
                ("gpt_neox.layers.0.mlp.dense_4h_to_h.bias", vec![32]),
                ("gpt_neox.layers.0.input_layernorm.weight", vec![32]),
                ("gpt_neox.layers.0.input_layernorm.bias", vec![32]),
                ("gpt_neox.layers.0.post_attention_layernorm.weight", vec![32]),
                ("gpt_neox.layers.0.post_attention_layernorm.bias", vec![32]),
            ],
            _ => vec![
                ("model.visual.patch_embed.proj.weight", vec![4, 4]),
                ("lm_head.weight", vec![32, 32]),
                ("model.language_model.embed_tokens.weight", vec![32, 32]),
                ("model.language_model.norm.weight", vec![32]),
                ("model.language_model.layers.0.self_attn.q_proj.weight", vec![32, 32]),
                ("model.language_model.layers.0.self_attn.q_proj.bias", vec![32]),
                ("model.language_model.layers.0.self_attn.k_proj.weight", vec![16, 32]),
                ("model.language_model.layers.0.self_attn.k_proj.bias", vec![16]),
                ("model.language_model.layers.0.self_attn.v_proj.weight", vec![16, 32]),
                ("model.language_model.layers.0.self_attn.v_proj.bias", vec![16]),
                ("model.language_model.layers.0.self_attn.o_proj.weight", vec![32, 32]),
                ("model.language_model.layers.0.mlp.gate_proj.weight", vec![48, 32]),
                ("model.language_model.layers.0.mlp.up_proj.weight", vec![48, 32]),
                ("model.language_model.layers.0.mlp.down_proj.weight", vec![32, 48]),
                ("model.language_model.layers.0.input_layernorm.weight", vec![32]),
                ("model.language_model.layers.0.post_attention_layernorm.weight", vec![32]),
            ],
        };
        let shapes: Vec<_> = shapes.into_iter().map(|(name, shape)| (name.to_string(), shape)).collect();
        let raw = load(config.clone(), tensors(&shapes)).unwrap();
        let own: Arrays = raw.module().parameters().into_iter().collect();
        let again = load(config, own).unwrap();
        assert!(logits(&*raw, &text, 20) == logits(&*again, &text, 20), "{kind}: other bits when read again");
        if kind == "gpt2" {
            let params = raw.module().parameters();
            let raw = tensors(&shapes);
            for name in turned.iter().flat_map(|t| raw.keys().filter(move |k| k.ends_with(t))) {
                let own = params[&format!("model.{name}")].shape().to_vec();
                assert!(raw[name].shape().iter().rev().eq(own.iter()), "{name}: {own:?}");
            }
        }
    }
}
