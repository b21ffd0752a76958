//! Qwen 2 and 3 with experts.

use super::common::{Common, boxed, eight_bits};
use super::sanitize::stack_experts;
use super::{Architecture, all_alike, drop_tied_head, parse};
use crate::blocks::{Mixture, Product, Router, Shared};
use crate::weights::At;
use lapis::Result;
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    sparse: Sparse,
}

/// Which layers have experts, and which experts.
#[derive(Deserialize)]
pub(super) struct Sparse {
    num_experts: usize,
    num_experts_per_tok: usize,
    #[serde(default = "one")]
    decoder_sparse_step: usize,
    #[serde(default)]
    mlp_only_layers: Vec<usize>,
    moe_intermediate_size: usize,
    #[serde(default)]
    shared_expert_intermediate_size: usize,
    #[serde(default)]
    pub(super) norm_topk_prob: bool,
}

fn one() -> usize {
    1
}

impl Sparse {
    /// The products of layer `i`.
    pub(super) fn product(&self, common: &Common, at: &At, i: usize) -> Result<Product> {
        match self.mixture(common, at, i)? {
            Some(mlp) => Ok(Product::Experts { mlp }),
            None => common.dense(at),
        }
    }

    /// The products of layer `i`, experts beside a shared one behind a gate.
    pub(super) fn shared(&self, common: &Common, at: &At, i: usize) -> Result<Product> {
        let Some(mixture) = self.mixture(common, at, i)? else { return common.dense(at) };
        let (at, inner) = (at.at("mlp"), self.shared_expert_intermediate_size);
        let shared_expert = common.mlp(&at, "shared_expert", inner)?;
        let shared_expert_gate = at.linear("shared_expert_gate", common.hidden_size, 1, false)?;
        Ok(Product::Experts { mlp: mixture.with(Shared::Gated { shared_expert, shared_expert_gate }) })
    }

    fn mixture(&self, common: &Common, at: &At, i: usize) -> Result<Option<Mixture>> {
        let step = self.decoder_sparse_step.max(1);
        if self.num_experts == 0 || self.mlp_only_layers.contains(&i) || !(i + 1).is_multiple_of(step) {
            return Ok(None);
        }
        let sizes = [self.num_experts, common.hidden_size, self.moe_intermediate_size];
        let router = Router::softmax(self.num_experts_per_tok, self.norm_topk_prob);
        Mixture::load(&at.at("mlp"), sizes, router).map(Some)
    }
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["qwen3_moe"],
    sanitize: |config, tensors| {
        drop_tied_head(parse::<Args>(config)?.common.tie_word_embeddings, tensors);
        stack_experts(tensors, "switch_mlp", &[])
    },
    quantize: |path| eight_bits(path, &["mlp.gate"]),
    load: |config, at| {
        let Args { common, sparse } = parse(config)?;
        boxed(common.decoder(at, |at, i| {
            Ok((common.attention(at, [common.attention_bias; 2], true)?, sparse.product(&common, at, i)?))
        })?)
    },
};

pub(super) const QWEN2: Architecture =
    Architecture {
        names: &["qwen2_moe"],
        sanitize: |_, tensors| stack_experts(tensors, "switch_mlp", &[]),
        quantize: all_alike,
        load: |config, at| {
            let Args { mut common, mut sparse } = parse(config)?;
            common.rope_theta = common.rope_theta.or(Some(1e6));
            sparse.norm_topk_prob = false;
            boxed(common.decoder(at, |at, i| {
                Ok((common.attention(at, [true, false], false)?, sparse.shared(&common, at, i)?))
            })?)
        },
    };
