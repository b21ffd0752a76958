//! Gemma 3n and Gemma 4: files by the rules of llama.cpp's converter, and the vocabulary of the latter. llama.cpp computes the same
//! logits of those of Gemma 4 (within 1e-4 of the largest, mlx-lm's); of Gemma 3n it takes the makers' sizes alone.

use super::{difference, expected, logits, number, real, scratch, shared, smallest, text};
use lapis::io::{Arrays, GgufMetadata, GgufValue, save_gguf};
use lapis::{Array, Dtype, ops};
use lapis_lm::Checkpoint;
use lapis_lm::tokenizer::Tokenizer;
use serde_json::Value;

const NAMES: &[(&str, &str)] = &[
    ("embed_tokens.weight", "token_embd.weight"),
    ("norm.weight", "output_norm.weight"),
    ("embed_tokens_per_layer.weight", "per_layer_token_embd.weight"),
    ("per_layer_model_projection.weight", "per_layer_model_proj.weight"),
    ("per_layer_projection_norm.weight", "per_layer_proj_norm.weight"),
    ("input_layernorm.weight", "attn_norm.weight"),
    ("self_attn.q_proj.weight", "attn_q.weight"),
    ("self_attn.k_proj.weight", "attn_k.weight"),
    ("self_attn.v_proj.weight", "attn_v.weight"),
    ("self_attn.o_proj.weight", "attn_output.weight"),
    ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    ("self_attn.k_norm.weight", "attn_k_norm.weight"),
    ("post_attention_layernorm.weight", "post_attention_norm.weight"),
    ("pre_feedforward_layernorm.weight", "ffn_norm.weight"),
    ("post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
    ("pre_feedforward_layernorm_2.weight", "pre_ffw_norm_2.weight"),
    ("post_feedforward_layernorm_1.weight", "post_ffw_norm_1.weight"),
    ("post_feedforward_layernorm_2.weight", "post_ffw_norm_2.weight"),
    ("mlp.gate_proj.weight", "ffn_gate.weight"),
    ("mlp.up_proj.weight", "ffn_up.weight"),
    ("mlp.down_proj.weight", "ffn_down.weight"),
    ("router.proj.weight", "ffn_gate_inp.weight"),
    ("router.scale", "ffn_gate_inp.scale"),
    ("router.per_expert_scale", "ffn_down_exps.scale"),
    ("experts.switch_glu.down_proj.weight", "ffn_down_exps.weight"),
    ("layer_scalar", "layer_output_scale.weight"),
    ("per_layer_input_gate.weight", "inp_gate.weight"),
    ("per_layer_projection.weight", "proj.weight"),
    ("post_per_layer_input_norm.weight", "post_norm.weight"),
    ("altup.correction_coefs.weight", "altup_correct_coef.weight"),
    ("altup.correct_output_scale", "altup_correct_scale.weight"),
    ("altup.prediction_coefs.weight", "altup_predict_coef.weight"),
    ("altup.modality_router.weight", "altup_router.weight"),
    ("altup.router_norm.weight", "altup_router_norm.weight"),
    ("laurel.linear_left.weight", "laurel_l.weight"),
    ("laurel.linear_right.weight", "laurel_r.weight"),
    ("laurel.post_laurel_norm.weight", "laurel_post_norm.weight"),
];

const KEYS: &[(&str, &str)] = &[
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.sliding_window", "sliding_window"),
    ("attention.shared_kv_layers", "num_kv_shared_layers"),
    ("embedding_length_per_layer_input", "hidden_size_per_layer_input"),
    ("altup.num_inputs", "altup_num_inputs"),
    ("altup.active_idx", "altup_active_idx"),
    ("expert_count", "num_experts"),
    ("expert_used_count", "top_k_experts"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
];

fn list<T: lapis::dtype::Element>(all: Vec<T>) -> GgufValue {
    let n = all.len();
    GgufValue::Array(Array::from_vec(all, &[n]))
}

/// Metadata and tensors of a golden model, whose tensors have names that begin with `prefix`.
fn file_of(arch: &str, prefix: &str, golden: &Value) -> (GgufMetadata, Arrays) {
    let config = golden["config"].get("text_config").unwrap_or(&golden["config"]);
    let whole = |key: &str| config[key].as_u64();
    let mut meta = GgufMetadata::new();
    let mut put = |key: &str, value: GgufValue| _ = meta.insert(format!("{arch}.{key}"), value);
    for (to, from) in KEYS {
        if let Some(n) = whole(from) {
            put(to, number(n as u32));
        }
    }
    let kinds = config["layer_types"].as_array().unwrap();
    let slides: Vec<bool> = kinds.iter().map(|k| k == "sliding_attention").collect();
    put("attention.sliding_window_pattern", list(slides.clone()));
    put("attention.layer_norm_rms_epsilon", real(1e-6));
    put("rope.freq_base", real(1e6));
    put("rope.freq_base_swa", real(1e4));
    put("final_logit_softcapping", real(30.0));
    let mut all = Arrays::default();
    if arch == "gemma4" {
        let (far, near) = (whole("global_head_dim").unwrap(), whole("head_dim").unwrap());
        for kind in ["key", "value"] {
            put(&format!("attention.{kind}_length"), number(far as u32));
            put(&format!("attention.{kind}_length_swa"), number(near as u32));
        }
        put("rope.dimension_count", number(far as u32));
        put("rope.dimension_count_swa", number(near as u32));
        // A quarter of the pairs is turned.
        let pairs = far as usize / 2;
        let factors: Vec<f32> = (0..pairs).map(|i| if i < pairs / 4 { 1.0 } else { 1e30 }).collect();
        all.insert("rope_freqs.weight".into(), Array::from_vec(factors, &[pairs]));
        let (inner, shared) = (whole("intermediate_size").unwrap(), whole("num_kv_shared_layers").unwrap());
        if config["use_double_wide_mlp"] != false {
            let own = kinds.len() - shared as usize;
            let wide = (0..kinds.len()).map(|i| (if i < own { inner } else { 2 * inner }) as u32);
            put("feed_forward_length", list(wide.collect::<Vec<u32>>()));
        }
        if let (Some(far), Some(near)) = (whole("num_global_key_value_heads"), whole("num_key_value_heads")) {
            let each = slides.iter().map(|&slides| (if slides { near } else { far }) as u32);
            put("attention.head_count_kv", list(each.collect::<Vec<u32>>()));
        }
    } else {
        // Deviations below which are the parts 0.9, 0, 0.5 and 0 of a normal distribution.
        put("activation_sparsity_scale", list(vec![1.281_551_6_f32, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY]));
    }
    meta.insert("general.architecture".into(), text(arch));
    let mut gates = Arrays::default();
    let mut stacks = std::collections::BTreeMap::<String, Vec<Array>>::new();
    for (name, mut a) in shared::golden::tensors(&golden["params"]) {
        let name = name.strip_prefix(prefix).unwrap();
        let (layer, part) = match name.strip_prefix("layers.") {
            Some(rest) => rest.split_once('.').map(|(i, part)| (format!("blk.{i}."), part)).unwrap(),
            None => (String::new(), name),
        };
        // Files have both products before an expert's gate as one, and the matrices between streams as stacks.
        if part == "experts.switch_glu.gate_proj.weight" {
            gates.insert(layer, a);
            continue;
        }
        if part == "experts.switch_glu.up_proj.weight" {
            let both = ops::concatenate(&[gates[&layer].clone(), a], 1).unwrap();
            all.insert(format!("{layer}ffn_gate_up_exps.weight"), both);
            continue;
        }
        if let Some((stack, _)) = part.split_once("_projections.") {
            let stack = stack.replace("unembed", "unembd");
            stacks.entry(format!("{stack}_proj.weight")).or_default().push(a);
            continue;
        }
        // Files do not say where coefficients end: they end there already.
        if let (true, Some(most)) = (part.ends_with("_coefs.weight"), config["altup_coef_clip"].as_f64()) {
            a = ops::minimum(ops::maximum(&a, -most).unwrap(), most).unwrap();
        }
        let found = NAMES.iter().find(|n| n.0 == part).unwrap_or_else(|| panic!("{name}")).1;
        all.insert(format!("{layer}{found}"), a);
    }
    all.extend(stacks.into_iter().map(|(name, stack)| (name, ops::stack(&stack, 0).unwrap())));
    (meta, all)
}

#[test]
fn models_have_the_logits_of_their_checkpoints() {
    let dir = scratch("gemma");
    for (name, arch, prefix, data) in [
        ("gemma3n", "gemma3n", "model.language_model.", include_str!("../data/goldens/gemma3n.json")),
        ("gemma4_text", "gemma4", "model.", include_str!("../data/goldens/gemma4_text.json")),
        ("gemma4", "gemma4", "language_model.model.", include_str!("../data/goldens/gemma4.json")),
    ] {
        let golden: Value = serde_json::from_str(data).unwrap();
        let (meta, all) = file_of(arch, prefix, &golden);
        let path = dir.join(format!("{name}.gguf"));
        save_gguf(&path, &all, &meta).unwrap();
        let far = difference(&logits(&path, &golden), &expected(&golden));
        assert!(far < 1e-4, "{name}: logits differ by {far:.1e} of the largest");
        // Matrices in half precision, the rest as it was.
        let half = |(name, a): (&String, &Array)| {
            let a = if a.ndim() > 1 { ops::astype(a, Dtype::Bfloat16).unwrap() } else { a.clone() };
            (name.clone(), a)
        };
        save_gguf(&path, &all.iter().map(half).collect::<Arrays>(), &meta).unwrap();
        let far = difference(&logits(&path, &golden), &expected(&golden));
        assert!(far < 0.1, "{name}: as bfloat16 logits differ by {far:.1e} of the largest");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_a_file_of_gemma_4_lacks_is_said() {
    let dir = scratch("gemma-lacks");
    let golden: Value = serde_json::from_str(include_str!("../data/goldens/gemma4_text.json")).unwrap();
    let (meta, all) = file_of("gemma4", "model.", &golden);
    for (key, value) in [
        ("attention.key_length_swa", None),
        ("attention.sliding_window_pattern", None),
        ("attention.sliding_window_pattern", Some(list(vec![true, false]))),
        ("feed_forward_length", Some(list(vec![96u32, 96, 96, 192]))),
        ("attention.head_count_kv", Some(list(vec![1u32, 2, 2, 2]))),
    ] {
        let (key, mut meta) = (format!("gemma4.{key}"), meta.clone());
        meta.shift_remove(&key);
        meta.extend(value.map(|v| (key.clone(), v)));
        let path = dir.join("model.gguf");
        save_gguf(&path, &all, &meta).unwrap();
        let e = Checkpoint::open(&path).map(drop).unwrap_err();
        assert!(e.message().contains(&key), "{key}: {e}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn pieces_may_come_with_merges() {
    let dir = scratch("gemma-pieces");
    let (mut meta, all) = smallest();
    let tokens = [
        ("<pad>", 3),
        ("<eos>", 3),
        ("<bos>", 3),
        ("<unk>", 2),
        ("▁", 1),
        ("a", 1),
        ("b", 1),
        ("ab", 1),
        ("▁ab", 1),
        ("\n", 1),
        ("\n\n", 1),
        ("<0xC3>", 6),
        ("<0xA9>", 6),
        ("<turn|>", 3),
        ("<|tool_response>", 4),
    ];
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    meta.insert(key("model"), text("gemma4"));
    meta.insert(key("tokens"), GgufValue::Texts(tokens.map(|t| t.0.to_string()).into()));
    meta.insert(key("token_type"), list(tokens.map(|t| t.1).into()));
    meta.insert(key("scores"), list(vec![0f32; tokens.len()]));
    meta.insert(key("merges"), GgufValue::Texts(["a b", "▁ ab", "\n \n"].map(String::from).into()));
    meta.insert(key("bos_token_id"), number(2));
    meta.insert(key("eos_token_id"), number(1));
    meta.insert(key("add_bos_token"), GgufValue::Array(Array::from_vec(vec![true], &[])));
    meta.insert(key("add_space_prefix"), GgufValue::Array(Array::from_vec(vec![false], &[])));
    let path = dir.join("model.gguf");
    save_gguf(&path, &all, &meta).unwrap();
    let tokenizer = Tokenizer::load(&path).unwrap();
    let ids = tokenizer.encode("ab ab\n\né<turn|>", true).unwrap();
    assert_eq!(ids, [2, 7, 8, 10, 11, 12, 13]);
    assert_eq!(tokenizer.decode(&ids[1..6], false).unwrap(), "ab ab\n\né");
    assert_eq!(Checkpoint::open(&path).unwrap().eos_ids().into_iter().collect::<Vec<_>>(), [1, 13, 14]);
    std::fs::remove_dir_all(dir).unwrap();
}
