//! The numbers of a config by their keys. What is wrong with one is told with its name.

use super::Config;
use crate::blocks::Rope;
use lapis::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A config with the defaults of a family.
#[derive(Clone)]
pub(crate) struct Settings {
    own: Config,
    defaults: Config,
}

/// An error that names a key.
pub(crate) fn wrong(key: &str, what: impl std::fmt::Display) -> Error {
    Error::value(format!("[load] config.json: {key}: {what}"))
}

fn read<T: DeserializeOwned>(block: &Config, key: &str) -> Result<Option<T>> {
    block.get(key).map(|v| T::deserialize(v).map_err(|e| wrong(key, e))).transpose()
}

impl Settings {
    /// A config; keys that it lacks, or that are null, are as in `defaults`, an object.
    pub(crate) fn new(config: &Config, defaults: Value) -> Settings {
        let mut own = config.clone();
        own.retain(|_, v| !v.is_null());
        let mut defaults = match defaults {
            Value::Object(all) => all,
            _ => Config::new(),
        };
        defaults.retain(|_, v| !v.is_null());
        Settings { own, defaults }
    }

    /// A setting, if it is there.
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        if self.own.contains_key(key) { read(&self.own, key) } else { read(&self.defaults, key) }
    }

    /// A setting that must be there.
    pub(crate) fn need<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        self.get(key)?.ok_or_else(|| wrong(key, "missing"))
    }

    /// A switch; off when it is not there.
    pub(crate) fn is(&self, key: &str) -> Result<bool> {
        Ok(self.get(key)?.unwrap_or(false))
    }

    /// A number above zero.
    pub(crate) fn positive(&self, key: &str) -> Result<f64> {
        let x: f64 = self.need(key)?;
        if x > 0.0 { Ok(x) } else { Err(wrong(key, format!("{x} is not above zero"))) }
    }

    /// The settings inside one that is a block.
    pub(crate) fn block(&self, key: &str) -> Result<Settings> {
        Ok(Settings::new(&self.need(key)?, Value::Null))
    }

    /// The block of rope settings for layers of a kind: `rope_scaling`, else `rope_parameters`, which may hold a block
    /// for each kind.
    fn rope_block(&self, kind: &str) -> Result<Option<Config>> {
        if let Some(block) = self.get::<Config>("rope_scaling")? {
            return Ok(Some(block));
        }
        let block = self.get::<Config>("rope_parameters")?;
        match block.as_ref().and_then(|b| b.get(kind)) {
            Some(Value::Object(own)) => Ok(Some(own.clone())),
            _ => Ok(block),
        }
    }

    /// Positions of heads of this width in layers of a kind (`full_attention`, `sliding_attention`): the base is
    /// under `key`, the part of a head that is turned under `partial_rotary_factor`.
    pub(crate) fn rope(&self, width: usize, kind: &str, key: &str, base: f64) -> Result<Rope> {
        let mut block = self.rope_block(kind)?;
        let inside = block.clone().unwrap_or_default();
        let number = |name: &str, inner: &str| -> Result<Option<f64>> {
            let own = read(&self.own, name)?.or(read(&inside, inner)?);
            Ok(own.or(read(&self.defaults, name)?))
        };
        let theta = number(key, "rope_theta")?.unwrap_or(base);
        if theta.is_nan() || theta <= 1.0 {
            return Err(wrong(key, format!("{theta} is not above 1")));
        }
        let part = number("partial_rotary_factor", "partial_rotary_factor")?.unwrap_or(1.0);
        if !(part > 0.0 && part <= 1.0) {
            return Err(wrong("partial_rotary_factor", format!("{part} is not between 0 and 1")));
        }
        const CONTEXT: &str = "original_max_position_embeddings";
        if let (Some(block), Some(context)) = (&mut block, self.own.get(CONTEXT).or(self.defaults.get(CONTEXT))) {
            block.entry(CONTEXT).or_insert_with(|| context.clone());
        }
        let dims = (width as f64 * part) as usize;
        Rope::new(dims, theta, self.is("rope_traditional")?, block.as_ref(), self.get("max_position_embeddings")?)
    }

    /// As [`Settings::rope`], whatever is said of scaling for all layers.
    pub(crate) fn plain_rope(&self, width: usize, kind: &str, key: &str, base: f64) -> Result<Rope> {
        let mut plain = self.clone();
        plain.own.shift_remove("rope_scaling");
        if let Some(Value::Object(block)) = plain.own.get_mut("rope_parameters") {
            block.retain(|k, _| k == kind || k == "rope_theta");
        }
        plain.rope(width, kind, key, base)
    }

    /// The kind of each of `layers` layers: as `layer_types` says, else a window for all but every `pattern`th.
    pub(crate) fn kinds(&self, layers: usize, pattern: Option<usize>) -> Result<Vec<String>> {
        let Some(mut kinds) = self.get::<Vec<String>>("layer_types")? else {
            let window = |i: usize| pattern.is_some_and(|p| p > 0 && !i.is_multiple_of(p));
            let kind = |i| if window(i) { "sliding_attention" } else { "full_attention" };
            return Ok((1..=layers).map(|i| kind(i).to_string()).collect());
        };
        if kinds.len() < layers {
            return Err(wrong("layer_types", format!("{} kinds for {layers} layers", kinds.len())));
        }
        kinds.truncate(layers);
        Ok(kinds)
    }

    /// Which of `layers` layers look at a window alone; see [`Settings::kinds`].
    pub(crate) fn sliding(&self, layers: usize, pattern: Option<usize>) -> Result<Vec<bool>> {
        Ok(self.kinds(layers, pattern)?.iter().map(|kind| kind == "sliding_attention").collect())
    }
}

/// Sizes that no model can do without.
const SIZES: [(&str, u64); 14] = [
    ("vocab_size", 1 << 31),
    ("hidden_size", 1 << 24),
    ("intermediate_size", 1 << 28),
    ("num_hidden_layers", 1 << 14),
    ("num_layers", 1 << 14),
    ("num_attention_heads", 1 << 20),
    ("num_key_value_heads", 1 << 20),
    ("head_dim", 1 << 20),
    ("max_position_embeddings", 1 << 40),
    ("sliding_window_pattern", 1 << 31),
    ("n_embd", 1 << 24),
    ("n_head", 1 << 20),
    ("n_layer", 1 << 14),
    ("n_positions", 1 << 31),
];

/// Sizes of parts that not every model has: whole numbers up to 2^24.
const PARTS: [&str; 48] = [
    "a_low_rank_dim",
    "altup_num_inputs",
    "block_ff_dim",
    "conv_L_cache",
    "conv_kernel",
    "decay_low_rank_dim",
    "gate_low_rank_dim",
    "global_head_dim",
    "hidden_size_per_layer_input",
    "kv_lora_rank",
    "laurel_rank",
    "linear_conv_kernel_dim",
    "linear_key_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_value_head_dim",
    "mamba_d_conv",
    "mamba_d_head",
    "mamba_d_ssm",
    "mamba_d_state",
    "mamba_expand",
    "mamba_head_dim",
    "mamba_n_groups",
    "mamba_n_heads",
    "mamba_num_heads",
    "moe_intermediate_size",
    "moe_latent_size",
    "moe_shared_expert_intermediate_size",
    "n_groups",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts",
    "num_global_key_value_heads",
    "num_heads",
    "num_kv_shared_layers",
    "num_local_experts",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "rotary_dim",
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "ssm_state_size",
    "state_size",
    "top_k_experts",
    "v_head_dim",
    "v_low_rank_dim",
    "vocab_size_per_layer_input",
];

/// Checks what holds for the config of any architecture, so that no model divides by zero.
///
/// # Errors
/// A size that is none, heads that do not divide; by its key.
pub(crate) fn check(config: &Config) -> Result<()> {
    for (key, most) in SIZES {
        match config.get(key) {
            Some(v @ Value::Number(n)) if !n.as_u64().is_some_and(|n| (1..=most).contains(&n)) => {
                return Err(wrong(key, format!("{v} is not a size from 1 to {most}")));
            }
            _ => {}
        }
    }
    for key in PARTS {
        if let Some(v @ Value::Number(n)) = config.get(key)
            && n.as_u64().is_none_or(|n| n > 1 << 24)
        {
            return Err(wrong(key, format!("{v} is not a size up to {}", 1 << 24)));
        }
    }
    for key in ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "layernorm_epsilon"] {
        if let Some(v @ Value::Number(n)) = config.get(key)
            && n.as_f64().is_none_or(|n| n.is_nan() || n < 0.0)
        {
            return Err(wrong(key, format!("{v} is below zero")));
        }
    }
    let size = |key: &str| config.get(key).and_then(Value::as_u64);
    let divides = |[a, b]: [&str; 2]| match (size(a), size(b)) {
        (Some(n), Some(d)) if n % d != 0 => Err(wrong(a, format!("{n} is no multiple of {b}, {d}"))),
        _ => Ok(()),
    };
    divides(["num_attention_heads", "num_key_value_heads"])?;
    divides(["n_embd", "n_head"])?;
    if size("head_dim").is_none() && !config.contains_key("kv_lora_rank") {
        divides(["hidden_size", "num_attention_heads"])?;
    }
    match config.get("text_config") {
        Some(Value::Object(text)) => check(text),
        _ => Ok(()),
    }
}
