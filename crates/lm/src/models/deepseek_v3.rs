//! DeepSeek V2 and V3: latent attention, absorbed in V3, and experts in groups.

use super::common::{Common, boxed, multiple};
use super::sanitize::{drop_beyond, split_kv_b, stack_experts};
use super::{Architecture, Config, Model, all_alike, parse};
use crate::blocks::{
    BareGate, Gate, Latent, LatentSizes, Mixer, Mixture, Product, Rope, Router, Rule, Shared, yarn_score_gain,
};
use crate::weights::At;
use lapis::io::Arrays;
use lapis::{Error, Result};
use serde::Deserialize;

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
    n_routed_experts: Option<usize>,
    n_shared_experts: Option<usize>,
    #[serde(default = "one")]
    num_experts_per_tok: usize,
    n_group: Option<usize>,
    topk_group: Option<usize>,
    #[serde(default = "factor")]
    routed_scaling_factor: f64,
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
        let Some(n) = self.n_routed_experts else { return common.dense(at) };
        if i < self.first_k_dense_replace || !i.is_multiple_of(self.moe_layer_freq.max(1)) {
            return common.dense(at);
        }
        let router = self.router(n, self.topk_method.as_deref().unwrap_or(method))?;
        let (place, width) = (at.at("mlp"), common.hidden_size);
        let gate = match router.rule {
            Rule::Sigmoid => Gate::biased(&place, width, n)?,
            _ => Gate::Bare { gate: BareGate { weight: place.at("gate").param("weight", &[n, width])? } },
        };
        let mut mlp = Mixture::behind(gate, &place, [n, width, self.moe_intermediate_size], router)?;
        if let Some(shared) = self.n_shared_experts.filter(|n| *n > 0) {
            let shared_experts = common.mlp(&place, "shared_experts", shared * self.moe_intermediate_size)?;
            mlp = mlp.with(Shared::Plain { shared_experts });
        }
        Ok(Product::Experts { mlp })
    }
}

fn load(config: &Config, at: &At, v3: bool) -> Result<Box<dyn Model>> {
    let a: Args = parse(config)?;
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
        eps: 1e-6,
    };
    boxed(c.decoder(at, |at, i| {
        let self_attn = Latent::load(&at.at("self_attn"), sizes.clone(), rope.clone(), v3)?;
        let product = a.grouped.product(c, at, i, if v3 { "noaux_tc" } else { "greedy" })?;
        Ok((Mixer::Latent { self_attn }, product))
    })?)
}

fn sanitize(config: &Config, tensors: &mut Arrays) -> Result<()> {
    drop_beyond(tensors, parse::<Args>(config)?.common.num_hidden_layers);
    stack_experts(tensors, "switch_mlp", &[])
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["deepseek_v3", "kimi_k2", "joyai_llm_flash"],
    sanitize: |config, tensors| {
        let a: Args = parse(config)?;
        sanitize(config, tensors)?;
        split_kv_b(tensors, a.common.num_attention_heads, a.qk_nope_head_dim, a.kv_lora_rank)
    },
    quantize: all_alike,
    load: |config, at| load(config, at, true),
};

pub(super) const V2: Architecture =
    Architecture { names: &["deepseek_v2"], sanitize, quantize: all_alike, load: |config, at| load(config, at, false) };
