//! MiniCPM: a Llama with factors of embeddings, residuals and logits.

use super::Architecture;
use super::dense::Dense;
use crate::blocks::Residual;
use serde_json::{Value, json};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    // The head is stored only where it is not the table.
    sanitize: |config, tensors| {
        let tied = config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false);
        for part in ["weight", "scales", "biases"] {
            let table = tensors.get(&format!("model.embed_tokens.{part}")).cloned();
            if let (false, Some(table)) = (tied, table) {
                tensors.entry(format!("lm_head.{part}")).or_insert(table);
            }
        }
        Ok(())
    },
    ..Architecture::plain(&["minicpm"], |config, at| {
        let mut d = Dense::read(config, json!({ "rope_theta": 1e6, "tie_word_embeddings": false }))?;
        d.bias = [false; 2];
        d.mlp_bias = false;
        d.embedding_scale = d.settings.need("scale_emb")?;
        d.residual = Residual::Scaled(d.settings.need::<f64>("scale_depth")? / (d.heads.len() as f64).sqrt());
        if !d.tied {
            d.logit_scale = d.settings.positive("dim_model_base")? / d.width as f64;
        }
        Ok(Box::new(d.load(at)?))
    })
};
