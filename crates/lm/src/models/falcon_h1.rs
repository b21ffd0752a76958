//! Falcon H1: Mamba 2 and attention side by side in every layer. Checkpoints of the makers have factors beside the
//! weights; converted ones have them in the weights.

use super::common::{Common, boxed, multiple};
use super::sanitize::move_conv;
use super::{Architecture, Config, all_alike, drop_tied_head, parse};
use crate::batch::Batch;
use crate::blocks::{Attention, Backbone, FrameNames, Layered, Mamba2, MambaSizes, Mlp, Norm};
use crate::weights::At;
use lapis::io::Arrays;
use lapis::{Array, Result, ops};
use lapis_nn::activations::silu;
use lapis_nn::{Layer, Module};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    mamba: Mamba,
    #[serde(flatten)]
    factors: Factors,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    projectors_bias: bool,
}

#[derive(Deserialize)]
struct Mamba {
    mamba_d_ssm: usize,
    mamba_d_conv: usize,
    mamba_d_state: usize,
    mamba_n_groups: usize,
    mamba_n_heads: usize,
    #[serde(default = "yes")]
    mamba_conv_bias: bool,
    #[serde(default = "yes")]
    mamba_norm_before_gate: bool,
    #[serde(default)]
    mamba_proj_bias: bool,
    #[serde(default)]
    mamba_rms_norm: bool,
}

/// What the makers multiply with, where a checkpoint has them beside the weights.
#[derive(Deserialize)]
struct Factors {
    #[serde(default = "one")]
    attention_in_multiplier: f64,
    #[serde(default = "one")]
    attention_out_multiplier: f64,
    #[serde(default = "one")]
    embedding_multiplier: f64,
    #[serde(default = "one")]
    key_multiplier: f64,
    #[serde(default = "one")]
    lm_head_multiplier: f64,
    #[serde(default = "ones")]
    mlp_multipliers: [f64; 2],
    #[serde(default = "one")]
    ssm_in_multiplier: f64,
    #[serde(default = "ones")]
    ssm_multipliers: [f64; 5],
    #[serde(default = "one")]
    ssm_out_multiplier: f64,
}

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

fn ones<const N: usize>() -> [f64; N] {
    [1.0; N]
}

fn args(config: &Config) -> Result<Args> {
    let mut a: Args = parse(config)?;
    a.common.tie_word_embeddings |= !config.contains_key("tie_word_embeddings");
    a.common.rope_theta = a.common.rope_theta.or(Some(1e11));
    Ok(a)
}

impl Args {
    fn sizes(&self) -> Result<MambaSizes> {
        let m = &self.mamba;
        multiple("mamba_d_ssm", m.mamba_d_ssm, "mamba_n_heads", m.mamba_n_heads)?;
        multiple("mamba_n_heads", m.mamba_n_heads, "mamba_n_groups", m.mamba_n_groups)?;
        Ok(MambaSizes {
            width: self.common.hidden_size,
            heads: [m.mamba_n_heads, m.mamba_d_ssm / m.mamba_n_heads],
            state: m.mamba_d_state,
            groups: m.mamba_n_groups,
            kernel: m.mamba_d_conv,
            limit: [0.0, f64::INFINITY],
            bias: [m.mamba_proj_bias, m.mamba_conv_bias, self.projectors_bias],
            together: if m.mamba_rms_norm { m.mamba_d_ssm / m.mamba_n_groups } else { 0 },
            early: m.mamba_norm_before_gate,
            eps: self.common.rms_norm_eps,
        })
    }

    /// What the `rows` outputs of the projection into Mamba are multiplied with: gates, rows, what is written, what is
    /// read, steps.
    fn mamba_outputs(&self, rows: usize) -> Option<Array> {
        let m = &self.mamba;
        let both = m.mamba_n_groups * m.mamba_d_state;
        let sizes = [m.mamba_d_ssm, m.mamba_d_ssm, both, both, m.mamba_n_heads];
        if sizes.iter().sum::<usize>() != rows {
            return None;
        }
        let pairs = sizes.into_iter().zip(self.factors.ssm_multipliers);
        let all: Vec<f32> = pairs.flat_map(|(n, factor)| std::iter::repeat_n(factor as f32, n)).collect();
        Some(Array::from_vec(all, &[rows]))
    }

    /// What the inputs and outputs of the layer at a place are multiplied with.
    fn factors(&self, layer: &str) -> [f64; 2] {
        let f = &self.factors;
        match layer.rsplit('.').next().unwrap_or_default() {
            "embed_tokens" => [1.0, f.embedding_multiplier],
            "lm_head" => [1.0, f.lm_head_multiplier],
            "q_proj" | "v_proj" => [f.attention_in_multiplier, 1.0],
            "k_proj" => [f.attention_in_multiplier, f.key_multiplier],
            "o_proj" => [1.0, f.attention_out_multiplier],
            "in_proj" => [f.ssm_in_multiplier, 1.0],
            "out_proj" => [1.0, f.ssm_out_multiplier],
            "gate_proj" => [1.0, f.mlp_multipliers[0]],
            "down_proj" => [1.0, f.mlp_multipliers[1]],
            _ => [1.0, 1.0],
        }
    }

    /// Puts the factors into the weights.
    fn fold(&self, tensors: &mut Arrays) -> Result<()> {
        for (name, tensor) in tensors.iter_mut().filter(|(_, t)| t.dtype().is_floating()) {
            let Some((layer, leaf)) = name.rsplit_once('.') else { continue };
            let [input, output] = self.factors(layer);
            let factor = match leaf {
                // A packed weight is its codes times scales, plus biases.
                "weight" | "scales" | "biases" => input * output,
                "bias" => output,
                _ => continue,
            };
            if factor != 1.0 {
                *tensor = ops::multiply(&*tensor, factor)?;
            }
            if layer.ends_with(".in_proj")
                && let Some(outputs) = self.mamba_outputs(tensor.shape().first().copied().unwrap_or(0))
            {
                let mut shape = vec![1i64; tensor.ndim()];
                shape[0] = -1;
                *tensor = ops::multiply(&*tensor, ops::astype(&ops::reshape(&outputs, &shape)?, tensor.dtype())?)?;
            }
        }
        Ok(())
    }
}

#[derive(Module, Clone)]
struct Block {
    feed_forward: Mlp,
    mamba: Mamba2,
    self_attn: Attention,
    input_layernorm: Norm,
    pre_ff_layernorm: Norm,
}

impl Layered for Block {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let rows = self.input_layernorm.forward(x)?;
        // Two memories a layer.
        let x = ops::add(x, self.mamba.forward(&rows, 2 * layer, batch)?)?;
        let x = ops::add(x, self.self_attn.forward(&rows, 2 * layer + 1, batch)?)?;
        ops::add(&x, self.feed_forward.forward(&self.pre_ff_layernorm.forward(&x)?)?)
    }
}

fn load(a: &Args, at: &At) -> Result<Backbone<Block>> {
    let (c, sizes) = (&a.common, a.sizes()?);
    let width = c.hidden_size;
    let norm = |at: &At, name: &str| c.norm(at, name, width);
    let all = [c.vocab_size, width, c.num_hidden_layers];
    let head = (!c.tie_word_embeddings).then_some(false);
    let mut model = Backbone::load(at, FrameNames::model("final_layernorm"), all, head, norm, |at, _| {
        Ok(Block {
            feed_forward: Mlp::load(&at.at("feed_forward"), width, c.intermediate_size, a.mlp_bias, silu)?,
            mamba: Mamba2::load(&at.at("mamba"), sizes)?,
            self_attn: Attention::load(&at.at("self_attn"), width, c.heads()?, [c.attention_bias; 2])?,
            input_layernorm: norm(&at, "input_layernorm")?,
            pre_ff_layernorm: norm(&at, "pre_ff_layernorm")?,
        })
    })?;
    if c.tie_word_embeddings {
        // The table has the factor of embeddings in it, and the head has another.
        model.logit_scale = a.factors.lm_head_multiplier / a.factors.embedding_multiplier;
    }
    Ok(model)
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["falcon_h1"],
    sanitize: |config, tensors| {
        let a = args(config)?;
        drop_tied_head(a.common.tie_word_embeddings, tensors);
        // Convolutions that are not moved are the sign of a checkpoint of the makers.
        if move_conv(tensors, "conv1d")? { a.fold(tensors) } else { Ok(()) }
    },
    quantize: all_alike,
    load: |config, at| boxed(load(&args(config)?, at)?),
};
