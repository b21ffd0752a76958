//! Gemma 3: as Gemma 2 without caps, with norms of each head and five layers behind a window to one without.

use super::dense::{Dense, Kind, Order, Over};
use super::wrapped::{Wrapped, text, unwrap_text};
use super::{Architecture, Config};
use crate::blocks::{Block, Decoder, Residual};
use crate::weights::At;
use lapis::Result;
use lapis_nn::activations::gelu_approx;
use serde_json::json;

pub(super) const TEXT: Architecture =
    Architecture::plain(&["gemma3_text"], |config, at| Ok(Box::new(load(config, at)?)));

pub(super) const ARCHITECTURE: Architecture = Architecture {
    sanitize: unwrap_text,
    ..Architecture::plain(&["gemma3"], |config, at| {
        let defaults = json!({ "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4 });
        let text = text(config, defaults)?;
        Ok(Box::new(Wrapped { language_model: load(&text, &at.at("language_model"))? }))
    })
};

fn load(config: &Config, at: &At) -> Result<Decoder<Block>> {
    let defaults = json!({
        "hidden_size": 1152, "num_hidden_layers": 26, "intermediate_size": 6912, "num_attention_heads": 4,
        "head_dim": 256, "rms_norm_eps": 1e-6, "vocab_size": 262144, "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256.0, "sliding_window": 512, "sliding_window_pattern": 6,
        "max_position_embeddings": 32768,
    });
    let mut d = Dense::read(config, defaults)?;
    let (s, width) = (&d.settings, d.heads[0].width);
    let full = s.rope(width, "full_attention", "rope_theta", 1e6)?;
    let local = s.plain_rope(width, "sliding_attention", "rope_local_base_freq", 1e4)?;
    d.slide(s.get("sliding_window_pattern")?, |heads, sliding| {
        heads.rope = Some(if sliding { local.clone() } else { full.clone() });
    })?;
    d.scale_scores(d.settings.positive("query_pre_attn_scalar")?.powf(-0.5));
    d.norm = Kind::RmsPlusOne;
    d.order = Order::Around;
    d.head_norms = Over::Each;
    d.activation = gelu_approx;
    d.residual = Residual::Clipped;
    d.embedding_scale = as_bfloat16((d.width as f64).sqrt());
    d.tied = !at.at("lm_head").has("weight");
    d.load(at)
}

/// Rounded to bf16, ties to even.
fn as_bfloat16(x: f64) -> f64 {
    let bits = (x as f32).to_bits();
    f64::from(f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000))
}
