//! DeepSeek V2 and V3: latent attention, absorbed in V3, and experts in groups.

use super::common::{Common, boxed, multiple};
use super::sanitize::{drop_beyond, split_kv_b, stack_experts};
use super::wrapped::{Wrapped, text, unwrap_text};
use super::{Architecture, all_alike, drop_tied_head, parse};
use crate::blocks::{
    BareGate, Decoder, Gate, GatedExperts, Hybrid, Latent, LatentSizes, Mixer, Mixture, Pool, Product, Rope, Router,
    Rule, Shared, swiglu, yarn_score_gain,
};
use crate::weights::At;
use lapis::io::Arrays;
use lapis::{Error, Result};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Args {
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    grouped: Grouped,
    kv_lora_rank: usize,
    q_lora_rank: Option<usize>,
    qk_rope_head_dim: usize,
    qk_nope_head_dim: usize,
    v_head_dim: usize,
}

/// Experts in groups, beside shared ones.
#[derive(Deserialize)]
pub(super) struct Grouped {
    moe_intermediate_size: usize,
    #[serde(alias = "num_experts")]
    n_routed_experts: Option<usize>,
    #[serde(alias = "num_shared_experts")]
    n_shared_experts: Option<usize>,
    /// Says of each layer whether it has experts, instead of the two numbers below.
    is_moe_layer: Option<Vec<bool>>,
    #[serde(default = "one")]
    num_experts_per_tok: usize,
    n_group: Option<usize>,
    topk_group: Option<usize>,
    #[serde(default = "factor")]
    pub(super) routed_scaling_factor: f64,
    #[serde(default = "yes")]
    norm_topk_prob: bool,
    #[serde(default)]
    first_k_dense_replace: usize,
    #[serde(default = "one")]
    moe_layer_freq: usize,
    topk_method: Option<String>,
}

fn one() -> usize {
    1
}

fn factor() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

impl Grouped {
    /// The router of `n` experts, by the method that the config names.
    fn router(&self, n: usize, method: &str) -> Result<Router> {
        let groups = [self.n_group.unwrap_or(1), self.topk_group.unwrap_or(1)];
        multiple("n_routed_experts", n, "n_group", groups[0])?;
        let chosen = self.num_experts_per_tok;
        let router = match method {
            "noaux_tc" => {
                Router { rule: Rule::Sigmoid, groups: Some(groups), ..Router::softmax(chosen, self.norm_topk_prob) }
            }
            "group_limited_greedy" => Router { groups: Some(groups), ..Router::softmax(chosen, false) },
            "greedy" | "gready" => Router::softmax(chosen, false),
            other => {
                return Err(Error::unsupported(format!("[load] config.json: topk_method: {other:?} is not known")));
            }
        };
        Ok(Router { scale: self.routed_scaling_factor, ..router })
    }

    /// The products of layer `i`; experts are chosen by `method` where the config names none.
    pub(super) fn product(&self, common: &Common, at: &At, i: usize, method: &str) -> Result<Product> {
        self.product_in(common, at, i, method, "switch_mlp")
    }

    /// As [`Grouped::product`], with experts in `home`: `switch_mlp` or `experts`.
    pub(super) fn product_in(&self, common: &Common, at: &At, i: usize, method: &str, home: &str) -> Result<Product> {
        let Some(n) = self.n_routed_experts else { return common.dense(at) };
        let sparse = match &self.is_moe_layer {
            Some(list) => list.get(i).copied().unwrap_or(false),
            None => i >= self.first_k_dense_replace && i.is_multiple_of(self.moe_layer_freq.max(1)),
        };
        if !sparse {
            return common.dense(at);
        }
        let router = self.router(n, self.topk_method.as_deref().unwrap_or(method))?;
        let (place, width) = (at.at("mlp"), common.hidden_size);
        let gate = match router.rule {
            Rule::Sigmoid => Gate::biased(&place, width, n)?,
            _ => Gate::Bare { gate: BareGate { weight: place.at("gate").param("weight", &[n, width])? } },
        };
        let all = GatedExperts::load(&place.at(home), [n, width, self.moe_intermediate_size], false, swiglu)?;
        let pool = match home {
            "experts" => Pool::Named { experts: all },
            _ => Pool::Gated { switch_mlp: all },
        };
        let mut mlp = Mixture { gate, pool, shared: Shared::None, router };
        if let Some(shared) = self.n_shared_experts.filter(|n| *n > 0) {
            let shared_experts = common.mlp(&place, "shared_experts", shared * self.moe_intermediate_size)?;
            mlp = mlp.with(Shared::Plain { shared_experts });
        }
        Ok(Product::Experts { mlp })
    }
}

/// A model, absorbed as V3 is or not as V2, with `eps` in the norms of short rows.
fn load(a: &Args, at: &At, v3: bool, eps: f64) -> Result<Decoder<Hybrid>> {
    let (c, scaling) = (&a.common, a.common.rope_scaling.as_ref());
    let rope = Rope::new(a.qk_rope_head_dim, c.base(), true, scaling, c.max_position_embeddings)?;
    let head = (a.qk_nope_head_dim + a.qk_rope_head_dim) as f64;
    let sizes = LatentSizes {
        width: c.hidden_size,
        heads: c.num_attention_heads,
        queries: a.q_lora_rank,
        latent: a.kv_lora_rank,
        plain: a.qk_nope_head_dim,
        turned: a.qk_rope_head_dim,
        value: a.v_head_dim,
        scale: head.powf(-0.5) * yarn_score_gain(scaling),
        bias: c.attention_bias,
        output: "o_proj",
        eps,
    };
    c.decoder(at, |at, i| {
        let self_attn = Latent::load(&at.at("self_attn"), sizes.clone(), Some(rope.clone()), v3)?;
        let product = a.grouped.product(c, at, i, if v3 { "noaux_tc" } else { "greedy" })?;
        Ok((Mixer::Latent { self_attn }, product))
    })
}

fn sanitize(a: &Args, tensors: &mut Arrays) -> Result<()> {
    drop_beyond(tensors, a.common.num_hidden_layers);
    drop_tied_head(a.common.tie_word_embeddings, tensors);
    stack_experts(tensors, "switch_mlp", &[])
}

fn sanitize_v3(a: &Args, tensors: &mut Arrays) -> Result<()> {
    sanitize(a, tensors)?;
    split_kv_b(tensors, a.common.num_attention_heads, a.qk_nope_head_dim, a.kv_lora_rank)
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["deepseek_v3", "kimi_k2", "joyai_llm_flash"],
    sanitize: |config, tensors| sanitize_v3(&parse(config)?, tensors),
    quantize: all_alike,
    load: |config, at| boxed(load(&parse(config)?, at, true, 1e-6)?),
};

pub(super) const V2: Architecture = Architecture {
    names: &["deepseek_v2"],
    sanitize: |config, tensors| sanitize(&parse(config)?, tensors),
    quantize: all_alike,
    load: |config, at| boxed(load(&parse(config)?, at, false, 1e-6)?),
};

/// Inside a model that sees.
pub(super) const KIMI: Architecture = Architecture {
    names: &["kimi_k25", "kimi_vl"],
    sanitize: |config, tensors| {
        unwrap_text(config, tensors)?;
        sanitize_v3(&parse(&text(config, json!({}))?)?, tensors)
    },
    quantize: all_alike,
    load: |config, at| {
        let a: Args = parse(&text(config, json!({}))?)?;
        boxed(Wrapped { language_model: load(&a, &at.at("language_model"), true, 1e-6)? })
    },
};

/// GLM 4.7 Flash.
pub(super) const GLM: Architecture = Architecture {
    names: &["glm4_moe_lite"],
    sanitize: |config, tensors| sanitize_v3(&parse(config)?, tensors),
    quantize: all_alike,
    load: |config, at| {
        let mut a: Args = parse(config)?;
        a.common.rope_theta = a.common.rope_theta.or(a.common.inner("rope_theta")).or(Some(1e6));
        boxed(load(&a, at, true, a.common.rms_norm_eps)?)
    },
};
