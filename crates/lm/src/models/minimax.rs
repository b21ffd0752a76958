//! MiniMax M2: norms of all heads at once, partly turned heads, experts behind sigmoids.

use super::common::{Common, boxed, eight_bits};
use super::sanitize::{drop_beyond, stack_experts};
use super::{Architecture, drop_tied_head, parse};
use crate::blocks::{Gate, Mixture, Product, Rope, Router, Rule};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    #[serde(flatten)]
    common: Common,
    num_experts_per_tok: usize,
    num_local_experts: usize,
    rotary_dim: usize,
    #[serde(default = "yes")]
    use_qk_norm: bool,
}

fn yes() -> bool {
    true
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["minimax", "minimax_m2"],
    sanitize: |config, tensors| {
        let c = parse::<Args>(config)?.common;
        drop_tied_head(c.tie_word_embeddings, tensors);
        drop_beyond(tensors, c.num_hidden_layers);
        stack_experts(tensors, "switch_mlp", &[])
    },
    quantize: |path| eight_bits(path, &["block_sparse_moe.gate"]),
    load: |config, at| {
        let a: Args = parse(config)?;
        let (c, n, width) = (&a.common, a.num_local_experts, a.common.hidden_size);
        let rope = Rope::new(a.rotary_dim, c.base(), false, None, None)?;
        boxed(c.decoder(at, |at, _| {
            let moe = at.at("block_sparse_moe");
            let mut heads = c.heads()?;
            heads.rope = Some(rope.clone());
            let mixer = match a.use_qk_norm {
                true => c.attention_whole(at, heads, [false; 2])?,
                false => c.attention_of(at, heads, [false; 2], false)?,
            };
            let gate = Gate::Beside {
                gate: moe.linear("gate", width, n, false)?,
                e_score_correction_bias: moe.param("e_score_correction_bias", &[n])?,
            };
            let router = Router { rule: Rule::Sigmoid, ..Router::softmax(a.num_experts_per_tok, true) };
            let block_sparse_moe = Mixture::behind(gate, &moe, [n, width, c.intermediate_size], router)?;
            Ok((mixer, Product::Sparse { block_sparse_moe }))
        })?)
    },
};
