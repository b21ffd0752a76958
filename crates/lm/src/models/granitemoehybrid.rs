//! Granite's mixtures: of Granite 4, Mamba 2 and attention, a gated product or experts beside one; of Granite 3,
//! attention and experts. Factors everywhere.

use super::common::{Common, boxed, eight_bits};
use super::mamba2::limits;
use super::sanitize::{halves, move_conv, replace};
use super::{Architecture, drop_tied_head, parse};
use crate::blocks::{Attention, FusedMlp, Gate, InnerGate, Mamba2, MambaSizes, Mixer, Mixture, Mlp, Product, Router};
use crate::weights::At;
use lapis::{Error, Result};
use lapis_nn::activations::silu;
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    #[serde(flatten)]
    common: Common,
    embedding_multiplier: f64,
    attention_multiplier: f64,
    logits_scaling: f64,
    residual_multiplier: f64,
    /// All of attention where there is none.
    layer_types: Option<Vec<String>>,
    num_local_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    shared_intermediate_size: Option<usize>,
    #[serde(flatten)]
    mamba: Mamba,
    #[serde(default)]
    mlp_bias: bool,
    position_embedding_type: Option<String>,
    tie_word_embeddings: Option<bool>,
}

#[derive(Deserialize)]
struct Mamba {
    mamba_n_heads: Option<usize>,
    mamba_d_head: Option<usize>,
    #[serde(default)]
    mamba_proj_bias: bool,
    mamba_d_state: Option<usize>,
    mamba_d_conv: Option<usize>,
    mamba_n_groups: Option<usize>,
    #[serde(default)]
    mamba_conv_bias: bool,
    time_step_limit: Option<[Option<f64>; 2]>,
}

fn need(n: Option<usize>, key: &str) -> Result<usize> {
    n.ok_or_else(|| Error::value(format!("[load] config.json: {key}: missing")))
}

impl Args {
    fn tied(&self) -> bool {
        self.tie_word_embeddings.unwrap_or(true)
    }

    fn experts(&self) -> Option<usize> {
        self.num_local_experts.filter(|n| *n > 0)
    }

    fn mixer(&self, at: &At, i: usize) -> Result<Mixer> {
        let (c, m) = (&self.common, &self.mamba);
        let kind = match &self.layer_types {
            Some(kinds) => kinds.get(i).map(String::as_str),
            None => Some("attention"),
        };
        match kind {
            Some("attention") => {
                let mut heads = c.heads()?;
                heads.scale = self.attention_multiplier;
                if self.position_embedding_type.as_deref() == Some("nope") {
                    heads.rope = None;
                }
                let self_attn = Attention::load(&at.at("self_attn"), c.hidden_size, heads, [c.attention_bias; 2])?;
                Ok(Mixer::Attention { self_attn })
            }
            Some("mamba") => {
                let heads = [need(m.mamba_n_heads, "mamba_n_heads")?, need(m.mamba_d_head, "mamba_d_head")?];
                let limit = m.time_step_limit.or(Some([Some(0.001), Some(100.0)]));
                let sizes = MambaSizes {
                    width: c.hidden_size,
                    heads,
                    state: need(m.mamba_d_state, "mamba_d_state")?,
                    groups: need(m.mamba_n_groups, "mamba_n_groups")?,
                    kernel: need(m.mamba_d_conv, "mamba_d_conv")?,
                    limit: limits(limit),
                    bias: [m.mamba_proj_bias, m.mamba_conv_bias, m.mamba_proj_bias],
                    together: heads[0] * heads[1],
                    early: false,
                    eps: c.rms_norm_eps,
                };
                Ok(Mixer::Mamba { mamba: Mamba2::load(&at.at("mamba"), sizes)? })
            }
            other => {
                let what = other.unwrap_or("nothing");
                Err(Error::value(format!("[load] config.json: layer_types: {what:?} is no kind of layer")))
            }
        }
    }

    fn product(&self, at: &At) -> Result<Product> {
        let (width, inner) = (self.common.hidden_size, self.common.intermediate_size);
        let Some(experts) = self.experts() else {
            return Ok(Product::Dense { mlp: Mlp::load(&at.at("mlp"), width, inner, self.mlp_bias, silu)? });
        };
        let place = at.at("block_sparse_moe");
        let layer = place.at("router").linear("layer", width, experts, false)?;
        let router = Router::top(need(self.num_experts_per_tok, "num_experts_per_tok")?);
        let gate = Gate::Inner { router: InnerGate { layer } };
        let block_sparse_moe = Mixture::behind(gate, &place, [experts, width, inner], router)?;
        Ok(match self.shared_intermediate_size {
            None | Some(0) => Product::Sparse { block_sparse_moe },
            Some(shared) => {
                let shared_mlp = FusedMlp::load(&at.at("shared_mlp"), width, shared)?;
                Product::Beside { shared_mlp, block_sparse_moe }
            }
        })
    }
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["granitemoehybrid"],
    sanitize: |config, tensors| {
        let a: Args = parse(config)?;
        drop_tied_head(a.tied(), tensors);
        move_conv(tensors, "conv1d")?;
        let (from, to, axis) = match a.experts() {
            Some(_) => ("block_sparse_moe", "block_sparse_moe.switch_mlp", 1),
            None => ("shared_mlp", "mlp", 0),
        };
        let [gate, up, down] = ["gate_proj", "up_proj", "down_proj"].map(|n| format!("{to}.{n}.weight"));
        replace(tensors, &format!("{from}.input_linear.weight"), [&gate, &up], |w| halves(w, axis))?;
        replace(tensors, &format!("{from}.output_linear.weight"), [&down], |w| Ok([w.clone()]))
    },
    quantize: |path| eight_bits(path, &["router.layer"]),
    load: |config, at| {
        let mut a: Args = parse(config)?;
        a.common.tie_word_embeddings = a.tied();
        let mut model = a.common.decoder(at, |at, i| Ok((a.mixer(at, i)?, a.product(at)?)))?;
        model.embedding_scale = a.embedding_multiplier;
        model.logit_scale = 1.0 / a.logits_scaling;
        for layer in &mut model.model.layers {
            layer.residual = a.residual_multiplier;
        }
        boxed(model)
    },
};

pub(super) const GRANITE3: Architecture = Architecture {
    names: &["granitemoe"],
    quantize: |path| eight_bits(path, &["router.layer", "self_attn.o_proj", "mlp.down_proj", "lm_head"]),
    ..ARCHITECTURE
};
