//! Granite: a Llama with factors of embeddings, scores, residuals and logits.

use super::dense::Dense;
use super::{Architecture, Packing};
use crate::blocks::Residual;
use lapis::ops::quantize::Format;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    // So small that scales of four bits would vanish.
    quantize: |path| match Format::affine(8, 64) {
        Ok(wide) if path.ends_with("self_attn.o_proj") || path.ends_with("mlp.down_proj") || path == "lm_head" => {
            Packing::As(wide)
        }
        _ => Packing::Base,
    },
    ..Architecture::plain(&["granite"], |config, at| {
        let mut d = Dense::read(config, json!({}))?;
        d.scale_scores(d.settings.need("attention_multiplier")?);
        d.embedding_scale = d.settings.need("embedding_multiplier")?;
        d.residual = Residual::Scaled(d.settings.need("residual_multiplier")?);
        d.logit_scale = 1.0 / d.settings.positive("logits_scaling")?;
        Ok(Box::new(d.load(at)?))
    })
};
