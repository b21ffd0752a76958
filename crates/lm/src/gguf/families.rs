//! Architectures of GGUF files as data: which keys and names they have, and what a config lacks.
//!
//! A key that is not named here says nothing that lapis's models need.

use super::gemma::{GEMMA3N, GEMMA4};
use super::{Meta, unsupported};
use lapis::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::f64::consts::PI;

type Config = Map<String, Value>;
/// Shapes by the names of the file.
pub(super) type Shapes<'a> = BTreeMap<&'a str, &'a [usize]>;

/// An architecture.
pub(super) struct Family {
    /// `general.architecture`.
    pub(super) arch: &'static str,
    /// That of the config.
    pub(super) model_type: &'static str,
    /// Keys, without the architecture before them, and what they are called in the config: beyond the usual ones, or
    /// in their place.
    pub(super) keys: &'static [(&'static str, &'static str)],
    /// Keys that may have a number for each layer.
    pub(super) lists: &'static [&'static str],
    /// Names of tensors beyond the usual ones, or in their place.
    pub(super) names: &'static [(&'static str, &'static str)],
    /// Where layers are.
    pub(super) layers: &'static str,
    /// Rows of queries and keys are in pairs of neighbours.
    pub(super) turned: bool,
    /// Norms have 1 added to them.
    pub(super) plus_one: bool,
    /// Rows do not fit float16.
    pub(super) wide: bool,
    /// What is left to say.
    pub(super) finish: fn(&Meta, &Shapes, &mut Config) -> Result<()>,
}

const KEYS: &[(&str, &str)] = &[
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.layer_norm_epsilon", "layer_norm_eps"),
    ("attention.sliding_window", "sliding_window"),
    ("rope.freq_base", "rope_theta"),
    ("expert_count", "num_experts"),
    ("expert_used_count", "num_experts_per_tok"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
];

/// Without these a file says nothing about its model.
const NEEDED: [&str; 3] = ["embedding_length", "block_count", "attention.head_count"];

const LLAMA: Family = Family {
    arch: "llama",
    model_type: "llama",
    keys: &[],
    lists: &[],
    names: &[],
    layers: "model.layers",
    turned: true,
    plus_one: false,
    wide: false,
    finish: |_, has, config| {
        config.insert("attention_bias".into(), has.contains_key("blk.0.attn_output.bias").into());
        config.insert("mlp_bias".into(), has.contains_key("blk.0.ffn_up.bias").into());
        // llama.cpp calls a Mixtral and a Mistral a Llama.
        config.shift_remove("sliding_window");
        Ok(())
    },
};

/// Like a Llama, but for the turned rows.
pub(super) const PLAIN: Family = Family { turned: false, finish: |_, _, _| Ok(()), ..LLAMA };

const GEMMA: Family = Family { arch: "gemma", model_type: "gemma", plus_one: true, wide: true, ..PLAIN };

/// Names of norms around both parts of a layer.
pub(super) const AROUND: [(&str, &str); 3] = [
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

const ALL: &[Family] = &[
    LLAMA,
    Family {
        model_type: "mixtral",
        keys: &[("expert_count", "num_local_experts")],
        names: &[
            ("ffn_gate_inp", "block_sparse_moe.gate"),
            ("ffn_gate_exps", "block_sparse_moe.switch_mlp.gate_proj"),
            ("ffn_up_exps", "block_sparse_moe.switch_mlp.up_proj"),
            ("ffn_down_exps", "block_sparse_moe.switch_mlp.down_proj"),
        ],
        ..LLAMA
    },
    Family { arch: "qwen2", model_type: "qwen2", ..PLAIN },
    Family { arch: "qwen3", model_type: "qwen3", ..PLAIN },
    Family {
        arch: "qwen2moe",
        model_type: "qwen2_moe",
        finish: |_, has, config| {
            dense_layers(has, config);
            Ok(())
        },
        ..PLAIN
    },
    Family {
        arch: "qwen3moe",
        model_type: "qwen3_moe",
        finish: |_, has, config| {
            dense_layers(has, config);
            config.insert("norm_topk_prob".into(), true.into());
            Ok(())
        },
        ..PLAIN
    },
    GEMMA,
    Family {
        arch: "gemma2",
        model_type: "gemma2",
        keys: &[
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ],
        names: &AROUND,
        finish: |_, _, config| {
            query_scalar(config, 46);
            Ok(())
        },
        ..GEMMA
    },
    Family {
        arch: "gemma3",
        model_type: "gemma3_text",
        keys: &[("rope.freq_base_swa", "rope_local_base_freq")],
        names: &AROUND,
        finish: |meta, _, config| {
            query_scalar(config, 62);
            config.entry("rope_theta").or_insert(json!(1e6));
            sliding(meta, config)
        },
        ..GEMMA
    },
    GEMMA3N,
    GEMMA4,
    Family {
        arch: "phi3",
        model_type: "phi3",
        keys: &[("rope.scaling.original_context_length", "original_max_position_embeddings")],
        names: &[("ffn_up", "mlp.gate_up_proj")],
        finish: |meta, _, config| partial(meta, config),
        ..PLAIN
    },
    Family {
        arch: "starcoder2",
        model_type: "starcoder2",
        keys: &[("attention.layer_norm_epsilon", "norm_epsilon")],
        names: &[("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")],
        ..PLAIN
    },
    Family {
        arch: "gpt2",
        model_type: "gpt2",
        keys: &[
            ("context_length", "n_positions"),
            ("embedding_length", "n_embd"),
            ("block_count", "n_layer"),
            ("feed_forward_length", "n_inner"),
            ("attention.head_count", "n_head"),
            ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
        ],
        names: &[
            ("token_embd", "model.wte"),
            ("position_embd", "model.wpe"),
            ("output_norm", "model.ln_f"),
            ("attn_norm", "ln_1"),
            ("attn_qkv", "attn.c_attn"),
            ("attn_output", "attn.c_proj"),
            ("ffn_norm", "ln_2"),
            ("ffn_up", "mlp.c_fc"),
            ("ffn_down", "mlp.c_proj"),
        ],
        layers: "model.h",
        ..PLAIN
    },
    Family {
        arch: "granite",
        model_type: "granite",
        keys: &[
            ("attention.scale", "attention_multiplier"),
            ("embedding_scale", "embedding_multiplier"),
            ("residual_scale", "residual_multiplier"),
            ("logit_scale", "logits_scaling"),
        ],
        ..LLAMA
    },
    Family { arch: "smollm3", model_type: "smollm3", ..LLAMA },
    Family {
        arch: "olmo2",
        model_type: "olmo2",
        names: &AROUND_SPLIT,
        finish: |meta, _, config| {
            if config.contains_key("sliding_window") {
                config.insert("model_type".into(), "olmo3".into());
            }
            sliding(meta, config)
        },
        ..PLAIN
    },
    Family {
        arch: "stablelm",
        model_type: "stablelm",
        finish: |meta, has, config| {
            partial(meta, config)?;
            config.insert("use_qkv_bias".into(), has.contains_key("blk.0.attn_q.bias").into());
            config.insert("use_parallel_residual".into(), (!has.contains_key("blk.0.ffn_norm.weight")).into());
            Ok(())
        },
        ..PLAIN
    },
    Family {
        arch: "glm4",
        model_type: "glm4",
        names: &[
            ("post_attention_norm", "post_self_attn_layernorm"),
            ("ffn_up", "mlp.gate_up_proj"),
            ("post_ffw_norm", "post_mlp_layernorm"),
        ],
        finish: |meta, has, config| {
            config.insert("attention_bias".into(), has.contains_key("blk.0.attn_q.bias").into());
            partial(meta, config)
        },
        ..PLAIN
    },
    Family {
        arch: "cohere2",
        model_type: "cohere2",
        keys: &[("logit_scale", "logit_scale")],
        finish: |meta, _, config| sliding(meta, config),
        ..PLAIN
    },
    Family { arch: "command-r", model_type: "cohere", keys: &[("logit_scale", "logit_scale")], ..PLAIN },
    Family {
        arch: "gpt-oss",
        model_type: "gpt_oss",
        keys: &[("expert_count", "num_local_experts"), ("expert_feed_forward_length", "intermediate_size")],
        names: &[
            ("attn_sinks.weight", "self_attn.sinks"),
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_gate_inp", "mlp.router"),
            ("ffn_gate_exps", "mlp.experts.gate_proj"),
            ("ffn_up_exps", "mlp.experts.up_proj"),
            ("ffn_down_exps", "mlp.experts.down_proj"),
        ],
        wide: true,
        ..PLAIN
    },
];

/// Norms after both parts of a layer, and none before.
const AROUND_SPLIT: [(&str, &str); 2] = [AROUND[0], AROUND[2]];

/// The family of a file.
///
/// # Errors
/// An architecture that is not known.
pub(super) fn find(meta: &Meta, shapes: &Shapes) -> Result<&'static Family> {
    let arch = meta.arch();
    let sparse = shapes.keys().any(|n| n.contains(".ffn_gate_inp."));
    let fits = |f: &&Family| f.arch == arch && (arch != "llama" || (f.model_type == "mixtral") == sparse);
    if let Some(family) = ALL.iter().find(fits) {
        return Ok(family);
    }
    let mut known: Vec<&str> = ALL.iter().map(|f| f.arch).collect();
    known.dedup();
    let what = match arch {
        "" => "general.architecture is missing: no language model".to_string(),
        _ => format!("architecture {arch:?} is not read from GGUF"),
    };
    let known = known.join(", ");
    Err(unsupported(meta, format!("{what}; known are {known}.\n  Use the model's safetensors checkpoint instead")))
}

/// Types of models whose configs say all that a file does.
const WRITTEN: [(&str, &str); 12] = [
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("granite", "granite"),
    ("llama", "llama"),
    ("mistral", "llama"),
    ("mixtral", "mixtral"),
    ("olmo2", "olmo2"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("qwen3_moe", "qwen3_moe"),
    ("smollm3", "smollm3"),
    ("starcoder2", "starcoder2"),
];

/// The family of a config that is to be written.
///
/// # Errors
/// A type that is not written.
pub(super) fn of_config(config: &Config) -> Result<&'static Family> {
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let own = WRITTEN.iter().find(|w| w.0 == kind).map(|w| w.1);
    ALL.iter().find(|f| Some(f.model_type) == own).ok_or_else(|| {
        let known = WRITTEN.map(|w| w.0).join(", ");
        Error::unsupported(format!("[export_gguf] models of type {kind:?} are not written as GGUF; known are {known}"))
    })
}

impl Family {
    /// `general.architecture`.
    pub(super) fn arch(&self) -> &'static str {
        self.arch
    }

    /// Keys, without the architecture before them, and what they are called in the config.
    pub(super) fn all_keys(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let replaced = |key: &str| self.keys.iter().any(|k| k.0 == key);
        KEYS.iter().filter(move |k| !replaced(k.0)).chain(self.keys).copied()
    }

    /// Whether norms are by mean and variance.
    pub(super) fn centres(&self) -> bool {
        matches!(self.arch, "starcoder2" | "stablelm" | "gpt2")
    }

    /// Whether files say how far layers look.
    pub(super) fn slides(&self) -> bool {
        matches!(self.arch, "gemma2" | "starcoder2")
    }

    /// The config of a file.
    ///
    /// # Errors
    /// Keys that are missing or of another kind.
    pub(super) fn config(&self, meta: &Meta, shapes: &Shapes) -> Result<Config> {
        let mut config = Config::new();
        config.insert("model_type".into(), self.model_type.into());
        if let Some(key) = NEEDED.iter().find(|k| matches!(meta.value(&meta.own(k)), Ok(None))) {
            return Err(meta.error(format!("{} is missing; the file is no whole model", meta.own(key))));
        }
        let replaced = |key: &str| self.keys.iter().any(|k| k.0 == key);
        for (from, to) in KEYS.iter().filter(|k| !replaced(k.0)).chain(self.keys) {
            let Some(value) = meta.value(&meta.own(from))? else { continue };
            if !(value.is_number() || value.is_array() && self.lists.contains(from)) {
                let what = if value.is_array() { "one for each layer, which is not supported" } else { "no number" };
                return Err(meta.error(format!("{} is {what}", meta.own(from))));
            }
            config.insert((*to).into(), value);
        }
        let Some([rows, _]) = shapes.get("token_embd.weight") else {
            return Err(meta.error("token_embd.weight is missing; the file is no whole model".into()));
        };
        config.insert("vocab_size".into(), (*rows).into());
        config.insert("tie_word_embeddings".into(), (!shapes.contains_key("output.weight")).into());
        if let Some(scaling) = scaling(meta)? {
            config.insert("rope_scaling".into(), scaling);
        }
        (self.finish)(meta, shapes, &mut config)?;
        if self.model_type != "gpt2" {
            config.entry("rope_theta").or_insert(json!(10000.0));
        }
        super::vocab::ends(meta, &mut config)?;
        Ok(config)
    }
}

/// Layers without experts.
fn dense_layers(has: &Shapes, config: &mut Config) {
    let layers = config.get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(0);
    let dense = (0..layers.min(1 << 14)).filter(|i| !has.contains_key(&format!("blk.{i}.ffn_gate_inp.weight")[..]));
    let dense: Vec<u64> = dense.collect();
    config.insert("mlp_only_layers".into(), dense.into());
    config.insert("decoder_sparse_step".into(), 1.into());
}

/// What scores are divided by, squared: the width of a head, but in the model of this many layers all rows' width over
/// the number of heads. Files do not say.
fn query_scalar(config: &mut Config, largest: u64) {
    let number = |key: &str| config.get(key).and_then(Value::as_f64);
    let each = number("hidden_size").zip(number("num_attention_heads")).map(|(w, n)| w / n);
    let head = if number("num_hidden_layers") == Some(largest as f64) { each } else { number("head_dim").or(each) };
    if let Some(head) = head {
        config.insert("query_pre_attn_scalar".into(), json!(head));
    }
}

/// Which part of each head is turned.
fn partial(meta: &Meta, config: &mut Config) -> Result<()> {
    let Some(turned) = meta.number(&meta.own("rope.dimension_count"))? else { return Ok(()) };
    let number = |key: &str| config.get(key).and_then(Value::as_f64);
    let each = number("hidden_size").zip(number("num_attention_heads")).map(|(w, n)| w / n);
    if let Some(head) = number("head_dim").or(each).filter(|&h| h > 0.0) {
        config.insert("partial_rotary_factor".into(), json!(turned / head));
    }
    Ok(())
}

/// Which layers look at a window alone, where the file says so.
pub(super) fn sliding(meta: &Meta, config: &mut Config) -> Result<()> {
    let key = meta.own("attention.sliding_window_pattern");
    let kind = |slides: bool| if slides { "sliding_attention" } else { "full_attention" };
    let layers = config.get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(0);
    match meta.value(&key)? {
        None => {}
        Some(Value::Array(each)) => {
            let kinds = each.iter().map(|v| kind(v.as_bool().unwrap_or(v.as_u64().is_some_and(|n| n > 0))));
            config.insert("layer_types".into(), kinds.collect());
        }
        Some(Value::Bool(all)) => {
            config.insert("layer_types".into(), (0..layers.min(1 << 14)).map(|_| kind(all)).collect());
        }
        Some(period) => _ = config.insert("sliding_window_pattern".into(), period),
    }
    Ok(())
}

/// Scaled positions, where numbers say how.
fn scaling(meta: &Meta) -> Result<Option<Value>> {
    let own = |key: &str| meta.own(&format!("rope.scaling.{key}"));
    let factor = match meta.number(&own("factor"))? {
        Some(factor) => Some(factor),
        None => meta.number(&meta.own("rope.scale_linear"))?,
    };
    let kind = meta.text(&own("type")).unwrap_or(if factor.is_some() { "linear" } else { "none" });
    let Some(factor) = factor.filter(|_| kind == "linear" || kind == "yarn") else { return Ok(None) };
    let mut block = json!({"rope_type": kind, "type": kind, "factor": factor});
    for (from, to) in [
        ("original_context_length", "original_max_position_embeddings"),
        ("yarn_beta_fast", "beta_fast"),
        ("yarn_beta_slow", "beta_slow"),
    ] {
        if let Some(value) = meta.value(&own(from))? {
            block[to] = value;
        }
    }
    Ok(Some(block))
}

/// Factors of wavelengths as a block of a config: Llama 3's, whose three numbers are found again, or as they are.
pub(super) fn llama3(config: &Config, factors: &[f64]) -> Value {
    let number = |key: &str| config.get(key).and_then(Value::as_f64);
    let base = number("rope_theta").unwrap_or(10000.0);
    let (n, factor) = (factors.len() as f64, factors.iter().copied().fold(1.0, f64::max));
    for old in (4..24).map(|i| f64::from(1 << i)) {
        let (low, high) = (1.0, 4.0);
        let expected = (0..factors.len()).map(|i| {
            let length = 2.0 * PI * base.powf(i as f64 / n);
            let smooth = ((old / length - low) / (high - low)).clamp(0.0, 1.0);
            1.0 / ((1.0 - smooth) / factor + smooth)
        });
        if expected.zip(factors).all(|(a, b)| (a - b).abs() <= 2e-3 * b) {
            return json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": old as u64,
            });
        }
    }
    let old = number("max_position_embeddings").unwrap_or(8192.0);
    json!({
        "type": "longrope", "long_factor": factors, "short_factor": factors, "long_mscale": 1.0, "short_mscale": 1.0,
        "original_max_position_embeddings": old,
    })
}
