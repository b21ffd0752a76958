//! Llama, Mistral, and what differs from them by the names and defaults of a few settings.

use super::Architecture;
use super::dense::Dense;
use crate::blocks::Mlp;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture =
    Architecture::plain(&["llama", "mistral", "iquestcoder", "xverse"], |config, at| {
        Ok(Box::new(Dense::read(config, json!({}))?.load(at)?))
    });

pub(super) const ERNIE: Architecture = Architecture::plain(&["ernie4_5"], |config, at| {
    let mut d = Dense::read(config, json!({ "rope_traditional": true, "tie_word_embeddings": false }))?;
    let bias = d.settings.is("use_bias")?;
    (d.bias, d.mlp_bias) = ([bias; 2], bias);
    Ok(Box::new(d.load(at)?))
});

pub(super) const GLM: Architecture = Architecture::plain(&["glm"], |config, at| {
    let mut d = Dense::read(config, json!({ "rope_traditional": true }))?;
    d.bias[1] = false;
    d.mlp = Mlp::fused;
    Ok(Box::new(d.load(at)?))
});

pub(super) const HELIUM: Architecture = Architecture::plain(&["helium"], |config, at| {
    let mut d = Dense::read(config, json!({ "rope_traditional": true, "tie_word_embeddings": false }))?;
    d.bias[1] = false;
    Ok(Box::new(d.load(at)?))
});

pub(super) const INTERNLM3: Architecture = Architecture::plain(&["internlm3"], |config, at| {
    let mut d = Dense::read(config, json!({ "max_position_embeddings": 32768, "tie_word_embeddings": false }))?;
    d.bias = [d.settings.is("qkv_bias")?; 2];
    d.mlp_bias = d.settings.is("bias")?;
    Ok(Box::new(d.load(at)?))
});

/// Layers that predict further tokens are left out.
pub(super) const MIMO: Architecture = Architecture {
    sanitize: |_, tensors| {
        tensors.retain(|name, _| !name.starts_with("model.mtp_layers."));
        Ok(())
    },
    ..Architecture::plain(&["mimo"], |config, at| {
        let mut d = Dense::read(config, json!({ "max_position_embeddings": 32768, "tie_word_embeddings": false }))?;
        d.bias = [true, false];
        Ok(Box::new(d.load(at)?))
    })
};

pub(super) const SEED_OSS: Architecture = Architecture::plain(&["seed_oss"], |config, at| {
    let mut d = Dense::read(config, json!({}))?;
    d.bias[1] = d.settings.is("attention_out_bias")?;
    Ok(Box::new(d.load(at)?))
});

pub(super) const TELECHAT3: Architecture = Architecture::plain(&["telechat3"], |config, at| {
    Ok(Box::new(Dense::read(config, json!({ "tie_word_embeddings": false }))?.load(at)?))
});
