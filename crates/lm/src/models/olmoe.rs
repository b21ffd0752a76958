//! OLMoE: norms of all heads at once, experts behind a softmax.

use super::common::{Common, boxed};
use super::sanitize::stack_experts;
use super::{Architecture, Config, all_alike, drop_tied_head, parse};
use crate::blocks::{Mixture, Product, Router};
use lapis::Result;
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    #[serde(flatten)]
    common: Common,
    num_experts: usize,
    num_experts_per_tok: usize,
    #[serde(default)]
    norm_topk_prob: bool,
}

/// Unlike in other families the table is the head unless the config says otherwise.
fn args(config: &Config) -> Result<Args> {
    let mut a: Args = parse(config)?;
    a.common.tie_word_embeddings |= !config.contains_key("tie_word_embeddings");
    Ok(a)
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["olmoe"],
    sanitize: |config, tensors| {
        drop_tied_head(args(config)?.common.tie_word_embeddings, tensors);
        stack_experts(tensors, "switch_mlp", &[])
    },
    quantize: all_alike,
    load: |config, at| {
        let a = args(config)?;
        let c = &a.common;
        boxed(c.decoder(at, |at, _| {
            let sizes = [a.num_experts, c.hidden_size, c.intermediate_size];
            let mlp = Mixture::load(&at.at("mlp"), sizes, Router::softmax(a.num_experts_per_tok, a.norm_topk_prob))?;
            Ok((c.attention_whole(at, c.heads()?, [c.attention_bias; 2])?, Product::Experts { mlp }))
        })?)
    },
};
