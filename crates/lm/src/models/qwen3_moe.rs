//! Qwen 3 with experts.

use super::common::{Common, boxed, eight_bits};
use super::sanitize::stack_experts;
use super::{Architecture, drop_tied_head, parse};
use crate::blocks::{Mixture, Product, Router};
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
    norm_topk_prob: bool,
}

fn one() -> usize {
    1
}

impl Sparse {
    /// The products of layer `i`; `with` adds what every token goes through.
    pub(super) fn product(
        &self,
        common: &Common,
        at: &At,
        i: usize,
        with: impl Fn(&At, Mixture) -> Result<Mixture>,
    ) -> Result<Product> {
        let step = self.decoder_sparse_step.max(1);
        if self.num_experts == 0 || self.mlp_only_layers.contains(&i) || !(i + 1).is_multiple_of(step) {
            return common.dense(at);
        }
        let (at, sizes) = (at.at("mlp"), [self.num_experts, common.hidden_size, self.moe_intermediate_size]);
        let router = Router::softmax(self.num_experts_per_tok, self.norm_topk_prob);
        Ok(Product::Experts { mlp: with(&at, Mixture::load(&at, sizes, router)?)? })
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
            Ok((common.attention(at, [common.attention_bias; 2], true)?, sparse.product(&common, at, i, |_, m| Ok(m))?))
        })?)
    },
};
