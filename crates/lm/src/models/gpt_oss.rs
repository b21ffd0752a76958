//! gpt-oss: sinks, windows in every other layer, experts with clipped gates.

use super::common::{Common, boxed, eight_bits};
use super::sanitize::replace;
use super::{Architecture, parse};
use crate::blocks::{Attention, Gate, GatedExperts, Mixer, Mixture, Pool, Product, Router, Shared};
use lapis::{Array, Dtype, Error, Result, ops};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    #[serde(flatten)]
    common: Common,
    num_local_experts: usize,
    #[serde(alias = "experts_per_token")]
    num_experts_per_tok: usize,
    #[serde(default = "window")]
    sliding_window: usize,
    layer_types: Option<Vec<String>>,
}

fn window() -> usize {
    128
}

/// The gate is clipped from above, the other side on both; one is added to that.
fn clipped(gate: &Array, up: &Array) -> Result<Array> {
    const LIMIT: f64 = 7.0;
    let gate = ops::minimum(gate, LIMIT)?;
    let up = ops::clip(up, Some(&-LIMIT), Some(&LIMIT))?;
    let gate = ops::multiply(&gate, ops::sigmoid(&ops::multiply(&gate, 1.702)?)?)?;
    ops::multiply(ops::add(&up, 1.0)?, gate)
}

/// Every other row along the last axis but `after`.
fn interleaved(a: &Array, after: usize) -> Result<[Array; 2]> {
    if a.ndim() <= after {
        return Err(Error::shape(format!("{} axes, expected more than {after}", a.ndim())));
    }
    let every = |start| {
        let mut ranges = vec![(None, None, 1); a.ndim()];
        ranges[a.ndim() - 1 - after] = (Some(start), None, 2);
        ops::contiguous(&ops::slice(a, &ranges)?, false)
    };
    Ok([every(0)?, every(1)?])
}

/// Blocks of bytes (..., groups, 16) to rows of words.
fn words(a: &Array) -> Result<Array> {
    ops::flatten(&ops::view(a, Dtype::Uint32)?, -2, -1)
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["gpt_oss"],
    sanitize: |_, tensors| {
        let weights = ["gate_proj.weight", "up_proj.weight"];
        replace(tensors, "gate_up_proj_blocks", weights, |a| interleaved(&words(a)?, 1))?;
        replace(tensors, "gate_up_proj_scales", ["gate_proj.scales", "up_proj.scales"], |a| interleaved(a, 1))?;
        replace(tensors, "gate_up_proj_bias", ["gate_proj.bias", "up_proj.bias"], |a| interleaved(a, 0))?;
        replace(tensors, "gate_up_proj", weights, |a| interleaved(&ops::matrix_transpose(a)?, 1))?;
        replace(tensors, "down_proj_blocks", ["down_proj.weight"], |a| Ok([words(a)?]))?;
        replace(tensors, "down_proj_scales", ["down_proj.scales"], |a| Ok([a.clone()]))?;
        replace(tensors, "down_proj_bias", ["down_proj.bias"], |a| Ok([a.clone()]))?;
        replace(tensors, "experts.down_proj", ["experts.down_proj.weight"], |a| {
            Ok([ops::contiguous(&ops::matrix_transpose(a)?, false)?])
        })
    },
    quantize: |path| eight_bits(path, &["router"]),
    load: |config, at| {
        let mut a: Args = parse(config)?;
        a.common.rope_theta = a.common.rope_theta.or(Some(150_000.0));
        let (c, experts) = (&a.common, a.num_local_experts);
        boxed(c.decoder(at, |at, i| {
            let (attn, mlp) = (at.at("self_attn"), at.at("mlp"));
            let mut heads = c.heads()?;
            let sliding = match &a.layer_types {
                Some(types) => types.get(i).is_some_and(|t| t == "sliding_attention"),
                None => i % 2 == 0,
            };
            heads.window = sliding.then_some(a.sliding_window);
            let sinks = attn.param("sinks", &[heads.count])?;
            let self_attn = Attention::load(&attn, c.hidden_size, heads, [true; 2])?.with_sinks(sinks);
            let sizes = [experts, c.hidden_size, c.intermediate_size];
            let mlp = Mixture {
                gate: Gate::Router { router: mlp.linear("router", c.hidden_size, experts, true)? },
                pool: Pool::Named { experts: GatedExperts::load(&mlp.at("experts"), sizes, true, clipped)? },
                shared: Shared::None,
                router: Router::top(a.num_experts_per_tok),
            };
            Ok((Mixer::Attention { self_attn }, Product::Experts { mlp }))
        })?)
    },
};
