//! Ring and Ling with linear attention: most layers fade, the last of each group looks at everything, with all keys and
//! values or with latent ones.

use super::bailing_moe::{Args, packing};
use super::common::boxed;
use super::sanitize::{drop_beyond, split_kv_b};
use super::settings::wrong;
use super::{Architecture, Config, Packing, parse};
use crate::batch::Batch;
use crate::blocks::{Fading, FadingSizes, Latent, LatentSizes, Layered, NamedAttention, Rope, yarn_score_gain};
use crate::weights::At;
use lapis::{Array, Error, Result};
use lapis_nn::Module;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Hybrid {
    #[serde(flatten)]
    args: Args,
    layer_group_size: usize,
    group_norm_size: usize,
    #[serde(default)]
    rope_traditional: bool,
}

/// Latent attention.
#[derive(Deserialize)]
struct Short {
    kv_lora_rank: usize,
    q_lora_rank: Option<usize>,
    qk_rope_head_dim: usize,
    qk_nope_head_dim: usize,
    v_head_dim: usize,
    rope_interleave: Option<bool>,
}

/// What looks at other tokens.
#[derive(Module, Clone)]
enum Mixer {
    All(NamedAttention),
    Latent(Latent),
    Fading(Fading),
}

impl Layered for Mixer {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        match self {
            Mixer::All(part) => part.forward(x, layer, batch),
            Mixer::Latent(part) => part.forward(x, layer, batch),
            Mixer::Fading(part) => part.forward(x, layer, batch),
        }
    }
}

impl Hybrid {
    /// Whether layer `i` looks at everything.
    fn everything(&self, i: usize) -> Result<bool> {
        let (group, layers) = (self.layer_group_size, self.args.common.num_hidden_layers);
        if group == 0 {
            return Err(wrong("layer_group_size", "it is 0"));
        }
        Ok((i + 1).is_multiple_of(group) || i >= layers / group * group)
    }

    /// The layer `at` fades at the speed of the layer of number `place`.
    fn fading(&self, at: &At, place: usize, head: usize, traditional: bool) -> Result<Mixer> {
        let (a, c) = (&self.args, &self.args.common);
        let rope =
            Rope::new(c.turned(head)?, c.base(), traditional, c.rope_scaling.as_ref(), c.max_position_embeddings)?;
        let last = c.num_hidden_layers.saturating_sub(1).max(1);
        let sizes = FadingSizes {
            width: c.hidden_size,
            heads: [c.num_attention_heads, head],
            groups: self.group_norm_size,
            bias: [a.use_qkv_bias, a.use_bias],
            norms: a.use_qk_norm,
            rope,
            speed: 1.0 - place as f64 / last as f64 + 1e-5,
            eps: c.rms_norm_eps,
        };
        Ok(Mixer::Fading(Fading::load(&at.at("attention"), sizes)?))
    }
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["bailing_moe_linear"],
    sanitize: |config, tensors| parse::<Args>(config)?.sanitize(tensors),
    quantize: packing,
    load: |config, at| {
        let h: Hybrid = parse(config)?;
        let c = &h.args.common;
        boxed(h.args.load(at, |at, i| {
            if h.everything(i)? {
                return h.args.attention(at, h.rope_traditional).map(Mixer::All);
            }
            // Heads of these layers are as wide as the model divided by them, whatever is said of others.
            h.fading(at, i.saturating_sub(1), c.hidden_size / c.num_attention_heads.max(1), h.rope_traditional)
        })?)
    },
};

/// With what the makers' code says where the config is silent.
fn short(config: &Config) -> Result<(Hybrid, Short)> {
    let named =
        |name: &str| config.get("architectures").and_then(Value::as_array).is_some_and(|a| a.iter().any(|v| v == name));
    if named("BailingMoeV3ForCausalLM") {
        return Err(Error::unsupported("[load] config.json: architectures: BailingMoeV3ForCausalLM is not read yet"));
    }
    let mut config = config.clone();
    for (key, value) in [
        ("partial_rotary_factor", Value::from(0.5)),
        ("score_function", Value::from("sigmoid")),
        ("norm_topk_prob", Value::from(true)),
        ("use_qk_norm", Value::from(true)),
        ("moe_router_enable_expert_bias", Value::from(true)),
    ] {
        config.entry(key).or_insert(value);
    }
    // The width of shared experts is that of all of them together.
    let size = |key: &str| config.get(key).and_then(Value::as_u64).unwrap_or(0);
    let (all, each, n) =
        (size("moe_shared_expert_intermediate_size"), size("moe_intermediate_size"), size("num_shared_experts"));
    if n > 0 {
        let inner = if all > 0 { all } else { each.saturating_mul(n) };
        config.insert("moe_shared_expert_intermediate_size".into(), inner.into());
        config.insert("num_shared_experts".into(), 1.into());
    }
    Ok((parse(&config)?, parse(&config)?))
}

/// With latent attention.
pub(super) const LATENT: Architecture = Architecture {
    names: &["bailing_hybrid"],
    sanitize: |config, tensors| {
        let (h, s) = short(config)?;
        let c = &h.args.common;
        drop_beyond(tensors, c.num_hidden_layers);
        h.args.sanitize(tensors)?;
        split_kv_b(tensors, c.num_attention_heads, s.qk_nope_head_dim, s.kv_lora_rank)
    },
    quantize: |path| match path.ends_with("attention.embed_q") || path.ends_with("attention.unembed_out") {
        true => Packing::Never,
        false => packing(path),
    },
    load: |config, at| {
        let (h, s) = short(config)?;
        let c = &h.args.common;
        let scaling = c.rope_scaling.as_ref();
        let traditional = s.rope_interleave.unwrap_or(true);
        let rope = Rope::new(s.qk_rope_head_dim, c.base(), traditional, scaling, c.max_position_embeddings)?;
        let sizes = LatentSizes {
            width: c.hidden_size,
            heads: c.num_attention_heads,
            queries: s.q_lora_rank,
            latent: s.kv_lora_rank,
            plain: s.qk_nope_head_dim,
            turned: s.qk_rope_head_dim,
            value: s.v_head_dim,
            scale: ((s.qk_nope_head_dim + s.qk_rope_head_dim) as f64).powf(-0.5) * yarn_score_gain(scaling),
            bias: h.args.use_qkv_bias,
            output: "dense",
            eps: c.rms_norm_eps,
        };
        boxed(h.args.load(at, |at, i| {
            if !h.everything(i)? {
                return h.fading(at, i, c.head(), false);
            }
            Ok(Mixer::Latent(Latent::load(&at.at("attention"), sizes.clone(), Some(rope.clone()), true)?))
        })?)
    },
};
