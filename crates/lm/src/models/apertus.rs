//! Apertus: norms of each head, and plain products behind xIELU, whose slopes are learned.

use super::dense::{Dense, Over};
use super::{Architecture, drop_tied_head};
use crate::batch::Batch;
use crate::blocks::{Attention, Decoder, Layered, Norm};
use crate::weights::At;
use lapis::{Array, Result, ops};
use lapis_nn::activations::softplus;
use lapis_nn::{Layer, Linear, Module, Param};
use serde_json::{Value, json};

/// `x > 0`: `a x^2 + b x`; else `(expm1(min(x, eps)) - x) c + b x`, with `a`, `c` above zero, and `c` above `b`.
#[derive(Module, Clone)]
struct XIelu {
    alpha_p: Param,
    alpha_n: Param,
    beta: Param,
    eps: Param,
}

impl XIelu {
    fn forward(&self, x: &Array) -> Result<Array> {
        let beta = self.beta.value();
        let up = softplus(self.alpha_p.value())?;
        let down = ops::add(softplus(self.alpha_n.value())?, beta)?;
        let line = ops::multiply(x, beta)?;
        let right = ops::add(ops::multiply(ops::square(x)?, up)?, &line)?;
        let left = ops::subtract(ops::expm1(&ops::minimum(x, self.eps.value())?)?, x)?;
        let left = ops::add(ops::multiply(&left, down)?, line)?;
        ops::select(&ops::greater(x, 0.0)?, right, left)
    }
}

#[derive(Module, Clone)]
struct Mlp {
    up_proj: Linear,
    down_proj: Linear,
    act_fn: XIelu,
}

#[derive(Module, Clone)]
struct Block {
    self_attn: Attention,
    mlp: Mlp,
    attention_layernorm: Norm,
    feedforward_layernorm: Norm,
}

impl Layered for Block {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let x = ops::add(x, self.self_attn.forward(&self.attention_layernorm.forward(x)?, layer, batch)?)?;
        let inner = self.mlp.up_proj.forward(&self.feedforward_layernorm.forward(&x)?)?;
        ops::add(&x, self.mlp.down_proj.forward(&self.mlp.act_fn.forward(&inner)?)?)
    }
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    sanitize: |config, tensors| {
        for (_, alpha) in tensors.iter_mut().filter(|(k, _)| k.ends_with("alpha_p") || k.ends_with("alpha_n")) {
            if alpha.ndim() > 0 && alpha.size() == 1 {
                *alpha = ops::reshape(alpha, &[] as &[i64])?;
            }
        }
        drop_tied_head(config.get("tie_word_embeddings") == Some(&Value::Bool(true)), tensors);
        Ok(())
    },
    ..Architecture::plain(&["apertus"], |config, at| {
        let mut d = Dense::read(config, json!({}))?;
        d.head_norms = Over::Each;
        let norm = |at: &At, name: &str| Norm::rms(at, name, d.width, d.eps);
        let sizes = [d.vocabulary, d.width, d.heads.len()];
        Ok(Box::new(Decoder::load(at, sizes, d.tied, norm, |at, i| {
            let mlp = at.at("mlp");
            let act = mlp.at("act_fn");
            Ok(Block {
                self_attn: d.attention(&at.at("self_attn"), &d.heads[i])?,
                mlp: Mlp {
                    up_proj: mlp.linear("up_proj", d.width, d.inner, d.mlp_bias)?,
                    down_proj: mlp.linear("down_proj", d.inner, d.width, d.mlp_bias)?,
                    act_fn: XIelu {
                        alpha_p: act.param("alpha_p", &[])?,
                        alpha_n: act.param("alpha_n", &[])?,
                        beta: act.param("beta", &[])?,
                        eps: act.param("eps", &[])?,
                    },
                },
                attention_layernorm: norm(&at, "attention_layernorm")?,
                feedforward_layernorm: norm(&at, "feedforward_layernorm")?,
            })
        })?))
    })
};
