//! Qwen 2 and 3 with experts.

use super::common::{Common, boxed, eight_bits};
use super::sanitize::{halves, replace, stack_experts};
use super::wrapped::{Wrapped, text, unwrap_text};
use super::{Architecture, all_alike, drop_tied_head, parse};
use crate::blocks::{Decoder, Hybrid, Mixture, Product, Router, Shared};
use crate::weights::At;
use lapis::{Array, Result, ops};
use serde::Deserialize;
use serde_json::json;

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
    load: |config, at| boxed(parse::<Args>(config)?.load(at)?),
};

impl Args {
    fn load(&self, at: &At) -> Result<Decoder<Hybrid>> {
        let c = &self.common;
        c.decoder(at, |at, i| Ok((c.attention(at, [c.attention_bias; 2], true)?, self.sparse.product(c, at, i)?)))
    }
}

/// Inside a model that sees.
pub(super) const VISION: Architecture = Architecture {
    names: &["qwen3_vl_moe"],
    sanitize: |config, tensors| {
        unwrap_text(config, tensors)?;
        let turned = |w: &Array| ops::contiguous(&ops::matrix_transpose(w)?, false);
        let both = ["switch_mlp.gate_proj.weight", "switch_mlp.up_proj.weight"];
        replace(tensors, "experts.gate_up_proj", both, |w| halves(&turned(w)?, -2))?;
        replace(tensors, "experts.down_proj", ["switch_mlp.down_proj.weight"], |w| Ok([turned(w)?]))?;
        stack_experts(tensors, "switch_mlp", &[])
    },
    quantize: |path| eight_bits(path, &["mlp.gate"]),
    load: |config, at| {
        let a: Args = parse(&text(config, json!({}))?)?;
        boxed(Wrapped { language_model: a.load(&at.at("language_model"))? })
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
