//! ERNIE 4.5 with experts: neighbours turned by positions, experts from some layer on, beside products for every token.

use super::common::{Common, boxed};
use super::sanitize::stack_experts;
use super::settings::wrong;
use super::{Architecture, all_alike, drop_tied_head, parse};
use crate::blocks::Attention;
use crate::blocks::{
    Gate, GatedExperts, Heads, Mixer, Mixture, Mlp, Pool, Product, Rope, Router, Rule, Shared, swiglu,
};
use crate::weights::At;
use lapis::Result;
use lapis_nn::activations::silu;
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    #[serde(flatten)]
    common: Common,
    #[serde(default)]
    use_bias: bool,
    moe_num_experts: usize,
    #[serde(default = "one")]
    moe_k: usize,
    #[serde(default = "one")]
    moe_layer_interval: usize,
    #[serde(default)]
    moe_layer_start_index: Place,
    moe_layer_end_index: Option<Place>,
    #[serde(default)]
    moe_intermediate_size: usize,
    #[serde(default)]
    moe_num_shared_experts: usize,
    #[serde(default = "softmax")]
    moe_gate_act: String,
}

/// A layer, or one for text and one for pictures.
#[derive(Deserialize)]
#[serde(untagged)]
enum Place {
    One(usize),
    All(Vec<usize>),
}

impl Default for Place {
    fn default() -> Place {
        Place::One(0)
    }
}

impl Place {
    fn first(&self) -> usize {
        match self {
            Place::One(n) => *n,
            Place::All(all) => all.iter().copied().min().unwrap_or(0),
        }
    }

    fn last(&self) -> usize {
        match self {
            Place::One(n) => *n,
            Place::All(all) => all.iter().copied().max().unwrap_or(usize::MAX),
        }
    }
}

fn one() -> usize {
    1
}

fn softmax() -> String {
    "softmax".into()
}

impl Args {
    /// Whether layer `i` has experts.
    fn is_sparse(&self, i: usize) -> bool {
        let last = self.moe_layer_end_index.as_ref().map_or(usize::MAX, Place::last);
        (i + 1).is_multiple_of(self.moe_layer_interval.max(1))
            && (self.moe_layer_start_index.first()..=last).contains(&i)
    }

    fn mlp(&self, at: &At, inner: usize) -> Result<Mlp> {
        Mlp::load(at, self.common.hidden_size, inner, self.use_bias, silu)
    }

    fn mixture(&self, at: &At) -> Result<Mixture> {
        let c = &self.common;
        let inner = if self.moe_intermediate_size > 0 { self.moe_intermediate_size } else { c.intermediate_size };
        let sizes = [self.moe_num_experts, c.hidden_size, inner];
        let router = match self.moe_gate_act.as_str() {
            // The best of a softmax, made to add up to one, are a softmax of the best.
            "softmax" => Router::top(self.moe_k),
            "sigmoid" => Router { rule: Rule::Sigmoid, ..Router::softmax(self.moe_k, true) },
            other => return Err(wrong("moe_gate_act", format!("{other:?}; softmax and sigmoid are known"))),
        };
        let shared = match self.moe_num_shared_experts {
            0 => Shared::None,
            n if n > 1 << 12 => return Err(wrong("moe_num_shared_experts", format!("{n} is too many"))),
            n => Shared::Plain { shared_experts: self.mlp(&at.at("shared_experts"), n * inner)? },
        };
        Ok(Mixture {
            gate: Gate::Plain { gate: at.linear("gate", c.hidden_size, self.moe_num_experts, false)? },
            pool: Pool::Gated { switch_mlp: GatedExperts::load(&at.at("switch_mlp"), sizes, self.use_bias, swiglu)? },
            shared,
            router,
        })
    }
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["ernie4_5_moe"],
    sanitize: |config, tensors| {
        drop_tied_head(parse::<Args>(config)?.common.tie_word_embeddings, tensors);
        let others = ["mtp_block.", "mtp_linear_proj.", "mtp_hidden_norm.", "mtp_emb_norm.", "e_score_correction_bias"];
        tensors.retain(|name, _| !others.iter().any(|other| name.contains(other)));
        stack_experts(tensors, "switch_mlp", &[])
    },
    quantize: all_alike,
    load: |config, at| {
        let a: Args = parse(config)?;
        let c = &a.common;
        if c.base() <= 1.0 {
            return Err(wrong("rope_theta", format!("{} is not above 1", c.base())));
        }
        boxed(c.decoder(at, |at, i| {
            let heads = Heads { rope: Some(Rope::plain(c.head(), c.base(), true)), ..c.heads()? };
            let self_attn = Attention::load(&at.at("self_attn"), c.hidden_size, heads, [a.use_bias; 2])?;
            let place = at.at("mlp");
            let product = match a.is_sparse(i) {
                true => Product::Experts { mlp: a.mixture(&place)? },
                false => Product::Dense { mlp: a.mlp(&place, c.intermediate_size)? },
            };
            Ok((Mixer::Attention { self_attn }, product))
        })?)
    },
};
