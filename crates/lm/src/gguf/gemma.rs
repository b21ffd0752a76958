//! Gemma 3n and Gemma 4 in files: embeddings of tokens for each layer, keys that later layers share, heads of two widths.

use super::Meta;
use super::families::{AROUND, Family, PLAIN, Shapes, sliding};
use lapis::{Array, Error, Result, ops};
use serde_json::{Map, Value, json};

type Config = Map<String, Value>;

pub(super) const GEMMA3N: Family = Family {
    arch: "gemma3n",
    model_type: "gemma3n",
    keys: &[
        ("rope.freq_base_swa", "rope_local_base_freq"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("attention.shared_kv_layers", "num_kv_shared_layers"),
        ("embedding_length_per_layer_input", "hidden_size_per_layer_input"),
        ("altup.num_inputs", "altup_num_inputs"),
        ("altup.active_idx", "altup_active_idx"),
    ],
    lists: &["feed_forward_length"],
    names: &[
        ("token_embd", "model.language_model.embed_tokens"),
        ("output_norm", "model.language_model.norm"),
        ("per_layer_token_embd", "model.language_model.embed_tokens_per_layer"),
        ("per_layer_model_proj", "model.language_model.per_layer_model_projection"),
        ("per_layer_proj_norm", "model.language_model.per_layer_projection_norm"),
        ("altup_proj", "model.language_model.altup_projections"),
        ("altup_unembd_proj", "model.language_model.altup_unembed_projections"),
        AROUND[0],
        AROUND[1],
        AROUND[2],
        OWN[0],
        OWN[1],
        OWN[2],
        ("altup_correct_coef", "altup.correction_coefs"),
        ("altup_correct_scale.weight", "altup.correct_output_scale"),
        ("altup_predict_coef", "altup.prediction_coefs"),
        ("altup_router", "altup.modality_router"),
        ("altup_router_norm", "altup.router_norm"),
        ("laurel_l", "laurel.linear_left"),
        ("laurel_r", "laurel.linear_right"),
        ("laurel_post_norm", "laurel.post_laurel_norm"),
    ],
    layers: "model.language_model.layers",
    wide: true,
    finish: gemma3n,
    ..PLAIN
};

pub(super) const GEMMA4: Family = Family {
    arch: "gemma4",
    model_type: "gemma4_text",
    keys: &[
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("attention.key_length", "global_head_dim"),
        ("attention.key_length_swa", "head_dim"),
        ("attention.shared_kv_layers", "num_kv_shared_layers"),
        ("embedding_length_per_layer_input", "hidden_size_per_layer_input"),
        ("expert_used_count", "top_k_experts"),
    ],
    lists: &["feed_forward_length", "attention.head_count_kv"],
    names: &[
        ("per_layer_token_embd", "model.embed_tokens_per_layer"),
        ("per_layer_model_proj", "model.per_layer_model_projection"),
        ("per_layer_proj_norm", "model.per_layer_projection_norm"),
        AROUND[0],
        AROUND[1],
        AROUND[2],
        OWN[0],
        OWN[1],
        OWN[2],
        ("layer_output_scale.weight", "layer_scalar"),
        ("ffn_gate_inp", "router.proj"),
        ("ffn_gate_inp.scale", "router.scale"),
        ("ffn_down_exps.scale", "router.per_expert_scale"),
        ("ffn_gate_up_exps", "experts.switch_glu.gate_up_proj"),
        ("ffn_gate_exps", "experts.switch_glu.gate_proj"),
        ("ffn_up_exps", "experts.switch_glu.up_proj"),
        ("ffn_down_exps", "experts.switch_glu.down_proj"),
        ("pre_ffw_norm_2", "pre_feedforward_layernorm_2"),
        ("post_ffw_norm_1", "post_feedforward_layernorm_1"),
        ("post_ffw_norm_2", "post_feedforward_layernorm_2"),
    ],
    wide: true,
    finish: gemma4,
    ..PLAIN
};

/// What a layer takes from the embedding of the token for it.
const OWN: [(&str, &str); 3] = [
    ("inp_gate", "per_layer_input_gate"),
    ("proj", "per_layer_projection"),
    ("post_norm", "post_per_layer_input_norm"),
];

/// Files of before they said it: layers from this one on share keys.
const FIRST_SHARED: u64 = 20;

fn layers(config: &Config) -> u64 {
    config.get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(0)
}

/// Tokens that have embeddings for each layer.
fn own_tokens(has: &Shapes, config: &mut Config) {
    if let Some([rows, _]) = has.get("per_layer_token_embd.weight") {
        config.insert("vocab_size_per_layer_input".into(), (*rows).into());
    }
}

fn gemma3n(meta: &Meta, has: &Shapes, config: &mut Config) -> Result<()> {
    sliding(meta, config)?;
    own_tokens(has, config);
    let shared = layers(config).saturating_sub(FIRST_SHARED);
    config.entry("num_kv_shared_layers").or_insert(shared.into());
    config.entry("rope_theta").or_insert(json!(1e6));
    if let Some([rank, _]) = has.get("blk.0.laurel_l.weight") {
        config.insert("laurel_rank".into(), (*rank).into());
    }
    if let Some(cuts) = meta.list(&meta.own("activation_sparsity_scale"))? {
        let parts = cuts.into_iter().map(below).collect::<Result<Value>>()?;
        config.insert("activation_sparsity_pattern".into(), parts);
    }
    let mut text = config.clone();
    text.insert("model_type".into(), "gemma3n_text".into());
    config.insert("text_config".into(), text.into());
    Ok(())
}

/// The part of a normal distribution that is less than `x` deviations above its mean; to five digits, as configs name it.
fn below(x: f64) -> Result<Value> {
    let y = Array::from_vec(vec![(x / std::f64::consts::SQRT_2) as f32], &[1]);
    let part = 0.5 + 0.5 * f64::from(ops::erf(&y)?.to_vec::<f32>()?[0]);
    Ok(json!((part * 1e5).round() / 1e5))
}

fn gemma4(meta: &Meta, has: &Shapes, config: &mut Config) -> Result<()> {
    let wrong = |key: &str, what: &str| meta.error(format!("{} {what}", meta.own(key)));
    if !config.contains_key("head_dim") {
        return Err(wrong("attention.key_length_swa", "is missing; the file is no whole model"));
    }
    sliding(meta, config)?;
    own_tokens(has, config);
    let full: Vec<bool> = match config.get("layer_types") {
        Some(Value::Array(kinds)) => kinds.iter().map(|k| k == "full_attention").collect(),
        _ => {
            return Err(wrong("attention.sliding_window_pattern", "is missing or no list; the file is no whole model"));
        }
    };
    if full.len() as u64 != layers(config) {
        return Err(wrong("attention.sliding_window_pattern", "is not one for each layer"));
    }
    // Later layers, which share keys, may have products of twice the width.
    config.entry("num_kv_shared_layers").or_insert(0.into());
    config.entry("hidden_size_per_layer_input").or_insert(0.into());
    let shared = config["num_kv_shared_layers"].as_u64().unwrap_or(0) as usize;
    let mut double = false;
    if let Some(Value::Array(each)) = config.get("intermediate_size").cloned() {
        let first = each.first().and_then(Value::as_u64).unwrap_or(0);
        let own = full.len().saturating_sub(shared);
        let wide = |(i, n): (usize, &Value)| n.as_u64() == Some(if i < own { first } else { 2 * first });
        if each.len() != full.len() || !each.iter().enumerate().all(wide) {
            return Err(wrong(
                "feed_forward_length",
                "is neither one for all layers nor twice as much where keys are shared",
            ));
        }
        double = true;
        config.insert("intermediate_size".into(), first.into());
    }
    config.insert("use_double_wide_mlp".into(), double.into());
    if let Some(Value::Array(each)) = config.get("num_key_value_heads").cloned() {
        for (key, kind) in [("num_key_value_heads", false), ("num_global_key_value_heads", true)] {
            let mut of_kind = each.iter().zip(&full).filter(|(_, full)| **full == kind).map(|(n, _)| n);
            let first = of_kind.next().cloned().unwrap_or(Value::Null);
            if each.len() != full.len() || of_kind.any(|n| *n != first) {
                return Err(wrong("attention.head_count_kv", "differs between layers of one kind"));
            }
            config.insert(key.into(), first);
        }
    }
    let values = |i: usize| has.contains_key(&format!("blk.{i}.attn_v.weight")[..]);
    let keys_alone = (0..full.len().saturating_sub(shared)).any(|i| full[i] && !values(i));
    config.insert("attention_k_eq_v".into(), keys_alone.into());
    config.insert("enable_moe_block".into(), has.contains_key("blk.0.ffn_gate_inp.weight").into());
    let (base, local) = (meta.own("rope.freq_base"), meta.own("rope.freq_base_swa"));
    let mut near = json!({"rope_type": "default", "rope_theta": meta.number(&local)?.unwrap_or(1e4)});
    let head = config["head_dim"].as_f64().unwrap_or(0.0);
    if let Some(turned) = meta.number(&meta.own("rope.dimension_count_swa"))?.filter(|&n| n < head) {
        near["partial_rotary_factor"] = json!(turned / head);
    }
    let far = json!({
        "rope_type": "proportional", "rope_theta": meta.number(&base)?.unwrap_or(1e6), "partial_rotary_factor": 1.0,
    });
    config.insert("rope_parameters".into(), json!({"full_attention": far, "sliding_attention": near}));
    Ok(())
}

/// Factors of wavelengths in layers without a window: 1 where a pair of rows is turned, and so large where it is not that it stands
/// still.
///
/// # Errors
/// Other factors.
pub(super) fn turned(meta: &Meta, config: &mut Config, factors: &[f64]) -> Result<()> {
    let count = factors.iter().take_while(|&&f| f == 1.0).count();
    if !factors[count..].iter().all(|&f| f >= 1e20) {
        return Err(meta.error("rope_freqs.weight scales positions in a way that Gemma 4 does not".into()));
    }
    let part = count as f64 / factors.len().max(1) as f64;
    config["rope_parameters"]["full_attention"]["partial_rotary_factor"] = json!(part);
    Ok(())
}

/// Tensors that files have as one: the two products before an expert's gate, and the matrices of a stack.
///
/// # Errors
/// Sizes that do not fit.
pub(super) fn apart(name: String, a: Array) -> Result<Vec<(String, Array)>> {
    let Some((place, leaf)) = name.rsplit_once('.') else { return Ok(vec![(name, a)]) };
    if let Some(place) = place.strip_suffix("switch_glu.gate_up_proj") {
        let halves = ops::split(&a, 2, -2)?;
        let named = |(half, part): (&Array, &str)| {
            Ok((format!("{place}switch_glu.{part}.{leaf}"), ops::contiguous(half, false)?))
        };
        return halves.iter().zip(["gate_proj", "up_proj"]).map(named).collect();
    }
    if place.ends_with(".altup_projections") || place.ends_with(".altup_unembed_projections") {
        if a.ndim() != 3 || a.dim(0) == 0 {
            return Err(Error::shape(format!("[load] {name}: a stack of matrices is needed, not {:?}", a.shape())));
        }
        let all = ops::split(&a, a.dim(0), 0)?;
        let named = |(i, part): (usize, &Array)| Ok((format!("{place}.{i}.{leaf}"), ops::squeeze(part, 0)?));
        return all.iter().enumerate().map(named).collect();
    }
    Ok(vec![(name, a)])
}
