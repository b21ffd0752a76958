//! Mixtral: a Llama with experts.

use super::common::{Common, boxed};
use super::sanitize::stack_experts;
use super::{Architecture, all_alike, drop_tied_head, parse};
use crate::blocks::{Mixture, Product, Router};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    #[serde(flatten)]
    common: Common,
    #[serde(default = "eight")]
    num_local_experts: usize,
    #[serde(default = "two")]
    num_experts_per_tok: usize,
}

fn eight() -> usize {
    8
}

fn two() -> usize {
    2
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["mixtral"],
    sanitize: |config, tensors| {
        drop_tied_head(parse::<Args>(config)?.common.tie_word_embeddings, tensors);
        stack_experts(tensors, "switch_mlp", &[])
    },
    quantize: all_alike,
    load: |config, at| {
        let mut a: Args = parse(config)?;
        a.common.rope_theta = a.common.rope_theta.or(Some(1e6));
        let sizes = [a.num_local_experts, a.common.hidden_size, a.common.intermediate_size];
        boxed(a.common.decoder(at, |at, _| {
            let experts = Mixture::load(&at.at("block_sparse_moe"), sizes, Router::top(a.num_experts_per_tok))?;
            Ok((a.common.attention(at, [false; 2], false)?, Product::Sparse { block_sparse_moe: experts }))
        })?)
    },
};
