//! GPT-2 and GPT BigCode: a table of positions, norms by mean and variance, products without gates.

use super::classic::{Classic, Inputs, Names};
use super::settings::wrong;
use super::{Architecture, Config, Settings};
use crate::blocks::Heads;
use lapis::io::Arrays;
use lapis::{Array, Result, ops};
use lapis_nn::activations::{gelu, gelu_approx};
use serde_json::Value;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    sanitize,
    ..Architecture::plain(&["gpt2"], |config, at| {
        let mut c = read(&Settings::new(config, Value::Null))?;
        c.activation = gelu_approx;
        c.load(at)
    })
};

pub(super) const BIGCODE: Architecture = Architecture::plain(&["gpt_bigcode"], |config, at| {
    let s = Settings::new(config, Value::Null);
    let mut c = read(&s)?;
    if s.get("multi_query")?.unwrap_or(true) {
        c.heads.keys = 1;
    }
    let attention = s.get("attention_bias")?.unwrap_or(true);
    c.bias = [attention, attention, s.get("mlp_bias")?.unwrap_or(true), false];
    c.names.body = "transformer";
    c.names.head = if s.get("tie_word_embeddings")?.unwrap_or(true) { None } else { Some("lm_head") };
    c.load(at)
});

/// From the keys of GPT-2.
pub(super) fn read(s: &Settings) -> Result<Classic> {
    let (width, count): (usize, usize) = (s.need("n_embd")?, s.need("n_head")?);
    if width % count != 0 {
        return Err(wrong("n_embd", format!("{width} is no multiple of n_head, {count}")));
    }
    Ok(Classic {
        names: Names {
            body: "model",
            table: "wte",
            positions: Some("wpe"),
            layers: "h",
            norm: "ln_f",
            head: None,
            attention: "attn",
            inputs: Inputs::Together("c_attn"),
            output: "c_proj",
            mlp: "mlp",
            gate: None,
            up: "c_fc",
            down: "c_proj",
            norms: ("ln_1", Some("ln_2")),
        },
        vocabulary: s.need("vocab_size")?,
        width,
        inner: s.get("n_inner")?.unwrap_or(4 * width),
        layers: s.need("n_layer")?,
        positions: s.need("n_positions")?,
        heads: Heads::new(count, count, width / count, None),
        rms: false,
        eps: s.positive("layer_norm_epsilon")?,
        bias: [true, true, true, false],
        activation: gelu,
        parallel: false,
    })
}

/// Checkpoints of Hugging Face have no `model.`, buffers of masks, and matrices the other way round.
fn sanitize(_: &Config, tensors: &mut Arrays) -> Result<()> {
    const TURNED: [&str; 4] = ["attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"];
    tensors.retain(|name, _| !name.ends_with(".attn.bias"));
    let place = |(name, a): (String, Array)| {
        if name.starts_with("model.") || name.starts_with("lm_head.") {
            return Ok((name, a));
        }
        let name = name.strip_prefix("transformer.").unwrap_or(&name);
        let a = if TURNED.iter().any(|t| name.ends_with(t)) { ops::transpose(&a, None)? } else { a };
        Ok((format!("model.{name}"), a))
    };
    *tensors = std::mem::take(tensors).into_iter().map(place).collect::<Result<_>>()?;
    Ok(())
}
