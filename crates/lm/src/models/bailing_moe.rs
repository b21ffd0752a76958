//! Ling and Ring (Bailing): attention under names of its own, experts behind a softmax or sigmoids, beside a shared one.

use super::common::{Common, boxed, eight_bits, multiple};
use super::sanitize::{replace, stack_experts};
use super::{Architecture, Packing, drop_tied_head, parse};
use crate::blocks::{
    Backbone, Feed, FrameNames, Gate, GatedExperts, Layered, Mixture, Mlp, Named, NamedAttention, NamedBlock,
    NamedInputs, Pool, Rope, Router, Rule, Shared, swiglu,
};
use crate::weights::At;
use lapis::io::Arrays;
use lapis::{Dtype, Error, Result, ops};
use lapis_nn::activations::silu;
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct Args {
    #[serde(flatten)]
    pub(super) common: Common,
    #[serde(flatten)]
    sparse: Sparse,
    #[serde(default)]
    pub(super) use_bias: bool,
    #[serde(default)]
    pub(super) use_qkv_bias: bool,
    #[serde(default)]
    pub(super) use_qk_norm: bool,
    #[serde(default)]
    norm_head: bool,
    rotary_dim: Option<usize>,
}

#[derive(Deserialize)]
struct Sparse {
    moe_intermediate_size: usize,
    num_experts: Option<usize>,
    #[serde(default)]
    num_shared_experts: usize,
    num_experts_per_tok: usize,
    norm_topk_prob: bool,
    first_k_dense_replace: usize,
    #[serde(default)]
    moe_router_enable_expert_bias: bool,
    #[serde(default = "one")]
    routed_scaling_factor: f64,
    score_function: Option<String>,
    #[serde(default = "single")]
    n_group: usize,
    #[serde(default = "four")]
    topk_group: usize,
    moe_shared_expert_intermediate_size: Option<usize>,
    #[serde(default = "yes")]
    moe_router_enable_shared_expert: bool,
}

fn one() -> f64 {
    1.0
}

fn single() -> usize {
    1
}

fn four() -> usize {
    4
}

fn yes() -> bool {
    true
}

impl Sparse {
    fn router(&self, experts: usize) -> Result<Router> {
        let rule = match self.score_function.as_deref() {
            None | Some("softmax") => Rule::SoftmaxThenTop,
            Some("sigmoid") => Rule::Sigmoid,
            Some(other) => {
                let what = format!("[load] config.json: score_function: {other:?} is not known");
                return Err(Error::unsupported(what));
            }
        };
        multiple("num_experts", experts, "n_group", self.n_group)?;
        Ok(Router {
            rule,
            scale: self.routed_scaling_factor,
            groups: Some([self.n_group, self.topk_group]),
            best: 2,
            ..Router::softmax(self.num_experts_per_tok, self.norm_topk_prob)
        })
    }
}

impl Args {
    /// The products of layer `i`.
    fn product(&self, at: &At, i: usize) -> Result<Feed> {
        let (s, c) = (&self.sparse, &self.common);
        let (at, width) = (at.at("mlp"), c.hidden_size);
        let mlp = |at: &At, inner: usize| Mlp::load(at, width, inner, self.use_bias, silu);
        let Some(experts) = s.num_experts.filter(|_| i >= s.first_k_dense_replace) else {
            return mlp(&at, c.intermediate_size).map(Feed::Dense);
        };
        let bias = |name| Ok::<_, Error>(Named(name, at.param(name, &[experts])?));
        let gate = Gate::Named {
            gate: Named("gate.gate_proj", at.linear("gate.gate_proj", width, experts, false)?),
            bias: s.moe_router_enable_expert_bias.then(|| bias("gate.expert_bias")).transpose()?,
        };
        let sizes = [experts, width, s.moe_intermediate_size];
        let switch_mlp = GatedExperts::load(&at.at("switch_mlp"), sizes, self.use_bias, swiglu)?;
        let shared = match s.num_shared_experts {
            n if n > 0 && s.moe_router_enable_shared_expert => {
                let each = s.moe_shared_expert_intermediate_size.filter(|n| *n > 0).unwrap_or(s.moe_intermediate_size);
                let inner =
                    each.checked_mul(n).ok_or_else(|| Error::value("[load] num_shared_experts is too large"))?;
                Shared::Plain { shared_experts: mlp(&at.at("shared_experts"), inner)? }
            }
            _ => Shared::None,
        };
        Ok(Feed::Experts(Mixture { gate, pool: Pool::Gated { switch_mlp }, shared, router: s.router(experts)? }))
    }

    /// Queries, keys and values of one projection, with norms of each head if there are any.
    pub(super) fn attention(&self, at: &At, traditional: bool) -> Result<NamedAttention> {
        let (c, at) = (&self.common, at.at("attention"));
        let mut heads = c.heads()?;
        let dims = self.rotary_dim.map_or_else(|| c.turned(c.head()), Ok)?;
        heads.rope = Some(Rope::new(dims, c.base(), traditional, c.rope_scaling.as_ref(), c.max_position_embeddings)?);
        let (inputs, bias) = (NamedInputs::Together("query_key_value"), [self.use_qkv_bias, self.use_bias]);
        let attention = NamedAttention::load(&at, c.hidden_size, inputs, "dense", heads, bias)?;
        if !self.use_qk_norm {
            return Ok(attention);
        }
        let norm = |name| Ok::<_, Error>(Named(name, c.norm(&at, name, c.head())?));
        Ok(attention.with_norms(norm("query_layernorm")?, norm("key_layernorm")?, false))
    }

    /// A model whose layers look at other tokens with `mixer`.
    pub(super) fn load<M: Layered>(
        &self,
        at: &At,
        mixer: impl Fn(&At, usize) -> Result<M>,
    ) -> Result<Backbone<NamedBlock<M, Feed>>> {
        let c = &self.common;
        let norm = |at: &At, name: &str| c.norm(at, name, c.hidden_size);
        let named = |at: &At, name| Ok::<_, Error>(Named(name, norm(at, name)?));
        let names = FrameNames { table: "word_embeddings", ..FrameNames::model("norm") };
        let all = [c.vocab_size, c.hidden_size, c.num_hidden_layers];
        Backbone::load(at, names, all, (!c.tie_word_embeddings).then_some(false), norm, |at, i| {
            Ok(NamedBlock {
                mixer: Named("attention", mixer(&at, i)?),
                product: Named("mlp", self.product(&at, i)?),
                before: named(&at, "input_layernorm")?,
                between: Some(named(&at, "post_attention_layernorm")?),
                parallel: false,
            })
        })
    }

    pub(super) fn sanitize(&self, tensors: &mut Arrays) -> Result<()> {
        drop_tied_head(self.common.tie_word_embeddings, tensors);
        // A router under its own name is the sign of a checkpoint of the makers: rows of their head are divided once.
        let raw = tensors.keys().any(|name| name.ends_with(".mlp.gate.weight"));
        if let (true, Some(head)) = (raw && self.norm_head, tensors.get_mut("lm_head.weight")) {
            let wide = ops::astype(head, Dtype::Float32)?;
            let length = ops::sqrt(&ops::sum(&ops::square(&wide)?, 0, true)?)?;
            *head = ops::astype(&ops::divide(&wide, ops::add(&length, 1e-7)?)?, head.dtype())?;
        }
        stack_experts(tensors, "switch_mlp", &[])?;
        for leaf in ["weight", "scales", "biases", "bias"] {
            let (from, to) = (format!(".mlp.gate.{leaf}"), format!(".mlp.gate.gate_proj.{leaf}"));
            replace(tensors, &from, [&to], |w| Ok([w.clone()]))?;
        }
        Ok(())
    }
}

pub(super) fn packing(path: &str) -> Packing {
    eight_bits(path, &["mlp.gate.gate_proj"])
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["bailing_moe"],
    sanitize: |config, tensors| parse::<Args>(config)?.sanitize(tensors),
    quantize: packing,
    load: |config, at| {
        let a: Args = parse(config)?;
        boxed(a.load(at, |at, _| a.attention(at, false))?)
    },
};
