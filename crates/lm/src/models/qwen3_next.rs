//! Qwen 3 Next: gated delta nets, now and then gated attention, experts beside a gated shared one.

use super::common::{Common, boxed, eight_bits};
use super::qwen3_moe::Sparse;
use super::sanitize::{drop_beyond, move_conv, split_experts, stack_experts};
use super::{Architecture, Packing, drop_tied_head, parse};
use crate::blocks::{Decoder, DeltaNet, DeltaSizes, GatedAttention, Hybrid, Mixer};
use crate::weights::At;
use lapis::io::Arrays;
use lapis::{Result, ops};
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct Args {
    #[serde(flatten)]
    pub(super) common: Common,
    #[serde(flatten)]
    sparse: Sparse,
    #[serde(flatten)]
    delta: Delta,
}

/// Which layers are delta nets, and their sizes.
#[derive(Deserialize)]
struct Delta {
    linear_num_value_heads: usize,
    linear_num_key_heads: usize,
    linear_key_head_dim: usize,
    linear_value_head_dim: usize,
    linear_conv_kernel_dim: usize,
    #[serde(default = "four")]
    full_attention_interval: usize,
}

fn four() -> usize {
    4
}

impl Delta {
    /// What looks at other tokens in layer `i`.
    fn mixer(&self, c: &Common, at: &At, i: usize) -> Result<Mixer> {
        if (i + 1).is_multiple_of(self.full_attention_interval.max(1)) {
            let (at, eps) = (at.at("self_attn"), c.rms_norm_eps);
            let self_attn = GatedAttention::load(&at, c.hidden_size, c.heads()?, c.attention_bias, eps)?;
            return Ok(Mixer::Gated { self_attn });
        }
        let sizes = DeltaSizes {
            width: c.hidden_size,
            keys: [self.linear_num_key_heads, self.linear_key_head_dim],
            values: [self.linear_num_value_heads, self.linear_value_head_dim],
            kernel: self.linear_conv_kernel_dim,
            eps: c.rms_norm_eps,
        };
        Ok(Mixer::Delta { linear_attn: DeltaNet::load(&at.at("linear_attn"), sizes)? })
    }
}

/// Norms that a raw checkpoint stores less one.
const NORMS: [&str; 5] = [
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    "model.norm.weight",
    ".q_norm.weight",
    ".k_norm.weight",
];

/// Names and layouts of a raw checkpoint to ours.
pub(super) fn sanitize_delta(tensors: &mut Arrays, layers: usize) -> Result<()> {
    drop_beyond(tensors, layers);
    stack_experts(tensors, "switch_mlp", &[])?;
    split_experts(tensors)?;
    // Convolutions that are not moved are the sign of a raw checkpoint.
    if move_conv(tensors, "conv1d")? {
        for (name, norm) in tensors.iter_mut() {
            if NORMS.iter().any(|end| name.ends_with(end)) {
                *norm = ops::add(&*norm, 1.0)?;
            }
        }
    }
    Ok(())
}

impl Args {
    /// The model at a place in the names.
    pub(super) fn load(&self, at: &At) -> Result<Decoder<Hybrid>> {
        let c = &self.common;
        c.decoder(at, |at, i| Ok((self.delta.mixer(c, at, i)?, self.sparse.shared(c, at, i)?)))
    }
}

pub(super) fn packing(path: &str) -> Packing {
    eight_bits(path, &["mlp.gate", "shared_expert_gate"])
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["qwen3_next"],
    sanitize: |config, tensors| {
        let c = parse::<Args>(config)?.common;
        drop_tied_head(c.tie_word_embeddings, tensors);
        sanitize_delta(tensors, c.num_hidden_layers)
    },
    quantize: packing,
    load: |config, at| boxed(parse::<Args>(config)?.load(at)?),
};
