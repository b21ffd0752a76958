//! GPT-2: a table of positions, norms by mean and variance, products without gates.

use super::{Architecture, Config, Model, Settings};
use crate::batch::Batch;
use crate::blocks::{Heads, Mlp, Norm};
use crate::weights::At;
use lapis::io::Arrays;
use lapis::{Array, Result, ops};
use lapis_nn::activations::gelu_approx;
use lapis_nn::{Embedding, Layer, Linear, Module};
use serde_json::Value;

pub(super) const ARCHITECTURE: Architecture = Architecture { sanitize, ..Architecture::plain(&["gpt2"], load) };

#[derive(Module, Clone)]
struct Gpt2 {
    model: Layers,
}

#[derive(Module, Clone)]
struct Layers {
    wte: Embedding,
    wpe: Embedding,
    h: Vec<Block>,
    ln_f: Norm,
}

#[derive(Module, Clone)]
struct Block {
    attn: Attention,
    mlp: Mlp,
    ln_1: Norm,
    ln_2: Norm,
}

#[derive(Module, Clone)]
struct Attention {
    c_attn: Linear,
    c_proj: Linear,
    #[plain]
    heads: Heads,
}

impl Model for Gpt2 {
    fn hidden(&self, tokens: &Array, batch: &mut Batch) -> Result<Array> {
        let model = &self.model;
        let mut x = ops::add(model.wte.forward(tokens)?, model.wpe.forward(&batch.positions())?)?;
        for (i, layer) in model.h.iter().enumerate() {
            let attn = &layer.attn;
            let (q, k, v) = attn.heads.split(&attn.c_attn.forward(&layer.ln_1.forward(&x)?)?)?;
            let y = attn.c_proj.forward(&attn.heads.attend([&q, &k, &v], None, i, batch)?)?;
            x = ops::add(x, y)?;
            x = ops::add(&x, layer.mlp.forward(&layer.ln_2.forward(&x)?)?)?;
        }
        model.ln_f.forward(&x)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        self.model.wte.as_linear(hidden)
    }

    fn module(&self) -> &dyn Module {
        self
    }

    fn module_mut(&mut self) -> &mut dyn Module {
        self
    }

    fn depth(&self) -> usize {
        self.model.h.len()
    }
}

fn load(config: &Config, at: &At) -> Result<Box<dyn Model>> {
    let s = Settings::new(config, Value::Null);
    let (width, count): (usize, usize) = (s.need("n_embd")?, s.need("n_head")?);
    let eps = s.positive("layer_norm_epsilon")?;
    let norm = |at: &At, name: &str| Norm::layer(at, name, width, eps, true);
    let at = at.at("model");
    let block = |at: At, _| {
        let attn = at.at("attn");
        Ok(Block {
            attn: Attention {
                c_attn: attn.linear("c_attn", width, 3 * width, true)?,
                c_proj: attn.linear("c_proj", width, width, true)?,
                heads: Heads::new(count, count, width / count, None),
            },
            mlp: Mlp::plain(&at.at("mlp"), width, s.get("n_inner")?.unwrap_or(4 * width), true, gelu_approx)?,
            ln_1: norm(&at, "ln_1")?,
            ln_2: norm(&at, "ln_2")?,
        })
    };
    Ok(Box::new(Gpt2 {
        model: Layers {
            wte: at.embedding("wte", s.need("vocab_size")?, width)?,
            wpe: at.embedding("wpe", s.need("n_positions")?, width)?,
            h: at.list("h", s.need("n_layer")?, block)?,
            ln_f: norm(&at, "ln_f")?,
        },
    }))
}

/// Checkpoints of Hugging Face have no `model.`, buffers of masks, and matrices the other way round.
fn sanitize(_: &Config, tensors: &mut Arrays) -> Result<()> {
    const TURNED: [&str; 4] = ["attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"];
    tensors.retain(|name, _| !name.ends_with(".attn.bias") && !name.starts_with("lm_head."));
    let place = |(name, a): (String, Array)| {
        if name.starts_with("model.") {
            return Ok((name, a));
        }
        let name = name.strip_prefix("transformer.").unwrap_or(&name);
        let a = if TURNED.iter().any(|t| name.ends_with(t)) { ops::transpose(&a, None)? } else { a };
        Ok((format!("model.{name}"), a))
    };
    *tensors = std::mem::take(tensors).into_iter().map(place).collect::<Result<_>>()?;
    Ok(())
}
