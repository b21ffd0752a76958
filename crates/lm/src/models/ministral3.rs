//! Ministral 3: a Llama whose queries grow with their position; and Mistral 3 and Pixtral, which have it or a Llama
//! inside.

use super::dense::Dense;
use super::wrapped::{Wrapped, text, unwrap_text};
use super::{Architecture, Config};
use crate::blocks::{Block, Decoder, Growth};
use crate::weights::At;
use lapis::{Error, Result};
use serde_json::{Value, json};

pub(super) const ARCHITECTURE: Architecture =
    Architecture::plain(&["ministral3"], |config, at| Ok(Box::new(load(config, at)?)));

pub(super) const MISTRAL3: Architecture = Architecture {
    sanitize: unwrap_text,
    ..Architecture::plain(&["mistral3", "llava", "pixtral"], |config, at| {
        let text = text(config, json!({ "tie_word_embeddings": false, "num_attention_heads": 32 }))?;
        let at = at.at("language_model");
        let language_model = match text.get("model_type").and_then(Value::as_str) {
            Some("ministral3") => load(&text, &at)?,
            Some("mistral4") => {
                return Err(Error::unsupported("[load] text_config: model_type mistral4 is not read yet"));
            }
            _ => Dense::read(&text, json!({}))?.load(&at)?,
        };
        Ok(Box::new(Wrapped { language_model }))
    })
};

fn load(config: &Config, at: &At) -> Result<Decoder<Block>> {
    let mut d = Dense::read(config, json!({}))?;
    let rope = d.settings.block("rope_parameters")?;
    let growth = Growth {
        beta: rope.need("llama_4_scaling_beta")?,
        context: rope.positive("original_max_position_embeddings")?,
        first: 0,
    };
    d.heads.iter_mut().for_each(|heads| heads.growth = Some(growth));
    d.bias = [false; 2];
    d.mlp_bias = false;
    d.load(at)
}
