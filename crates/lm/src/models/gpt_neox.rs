//! GPT-NeoX and Pythia: attention and product side by side, a part of each head turned.

use super::classic::{Classic, Inputs, Names};
use super::{Architecture, Config, Settings};
use crate::blocks::{Heads, Rope};
use lapis::Result;
use lapis::io::Arrays;
use lapis_nn::activations::gelu_approx;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    sanitize,
    ..Architecture::plain(&["gpt_neox"], |config, at| {
        let s = Settings::new(config, json!({ "partial_rotary_factor": config.get("rotary_pct") }));
        let (width, count): (usize, usize) = (s.need("hidden_size")?, s.need("num_attention_heads")?);
        let rope: Rope = s.rope(width / count, "full_attention", "rotary_emb_base", 1e4)?;
        Classic {
            names: Names {
                body: "model",
                table: "embed_in",
                positions: None,
                layers: "h",
                norm: "final_layer_norm",
                head: Some("model.embed_out"),
                attention: "attention",
                inputs: Inputs::Grouped("query_key_value"),
                output: "dense",
                mlp: "mlp",
                gate: None,
                up: "dense_h_to_4h",
                down: "dense_4h_to_h",
                norms: ("input_layernorm", Some("post_attention_layernorm")),
            },
            vocabulary: s.need("vocab_size")?,
            width,
            inner: 4 * width,
            layers: s.need("num_hidden_layers")?,
            positions: 0,
            heads: Heads::new(count, count, width / count, Some(rope)),
            rms: false,
            eps: s.positive("layer_norm_eps")?,
            bias: [true, true, true, false],
            activation: gelu_approx,
            parallel: s.get("use_parallel_residual")?.unwrap_or(true),
        }
        .load(at)
    })
};

/// Checkpoints of Hugging Face have other names, and buffers of masks.
fn sanitize(_: &Config, tensors: &mut Arrays) -> Result<()> {
    tensors.retain(|name, _| !name.ends_with(".attention.bias"));
    let place = |name: String| {
        let name = name.strip_prefix("model.").unwrap_or(&name);
        let name = match name.strip_prefix("gpt_neox.") {
            Some(name) => name.replacen("layers.", "h.", 1),
            None => name.to_string(),
        };
        format!("model.{name}")
    };
    *tensors = std::mem::take(tensors).into_iter().map(|(name, a)| (place(name), a)).collect();
    Ok(())
}
