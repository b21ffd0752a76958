//! Which model a file is of: a fingerprint, in the metadata `0.lapis`, that a damaged or foreign file does not match.

use crate::batch::Sequence;
use crate::models::Model;
use lapis::{Dtype, Result, ops};
use serde_json::{Value, json};

/// The model, its dtype, and the tokens that it has read.
pub(super) struct Origin {
    model: String,
    adapter: Option<String>,
    dtype: String,
    pub(super) tokens: Vec<u32>,
}

impl Origin {
    /// Of a model whose memories look like `outline`.
    pub(super) fn of(model: &dyn Model, outline: &Sequence, tokens: &[u32]) -> Result<Origin> {
        Ok(Origin {
            model: fingerprint(model)?,
            adapter: crate::adapter::digest(model.module())?,
            dtype: outline.arrays().next().map_or(String::new(), |a| a.dtype().to_string()),
            tokens: tokens.to_vec(),
        })
    }

    pub(super) fn to_text(&self) -> String {
        let Origin { model, adapter, dtype, tokens } = self;
        json!({
            "version": 1, "model": model, "adapter": adapter, "dtype": dtype, "token_count": tokens.len(), "tokens": tokens,
        })
        .to_string()
    }

    pub(super) fn from_text(text: &str) -> std::result::Result<Origin, String> {
        let bad = |what: &str| format!("0.lapis in the metadata: {what}; the file is damaged");
        let all: Value = serde_json::from_str(text).map_err(|e| bad(&e.to_string()))?;
        if all["version"].as_u64() != Some(1) {
            return Err(format!("written in version {}, this lapis reads version 1", all["version"]));
        }
        let word = |key: &str| all[key].as_str().map(str::to_string);
        let token = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let tokens = all["tokens"].as_array().and_then(|t| t.iter().map(token).collect::<Option<Vec<u32>>>());
        let tokens = tokens.ok_or_else(|| bad("tokens are missing"))?;
        if all["token_count"].as_u64() != Some(tokens.len() as u64) {
            return Err(bad(&format!("token_count is {}, there are {} tokens", all["token_count"], tokens.len())));
        }
        Ok(Origin {
            model: word("model").ok_or_else(|| bad("model is missing"))?,
            adapter: word("adapter"),
            dtype: word("dtype").ok_or_else(|| bad("dtype is missing"))?,
            tokens,
        })
    }

    /// Whether a file of this origin is for the model of `own`.
    pub(super) fn check(&self, own: &Origin) -> std::result::Result<(), String> {
        let none = || "none".to_string();
        let adapters = [&self.adapter, &own.adapter].map(|a| a.clone().unwrap_or_else(none));
        for (what, file, model) in [
            ("dtype", &self.dtype, &own.dtype),
            ("adapter", &adapters[0], &adapters[1]),
            ("fingerprint", &self.model, &own.model),
        ] {
            if file != model {
                return Err(format!("written for another model: its {what} is {file}, that of this model {model}"));
            }
        }
        Ok(())
    }
}

/// Values of tensors up to this size are part of the fingerprint: norms and biases, which differ from model to model.
const SMALL: usize = 8192;

/// Names and shapes of all parameters, and the values of the small ones, by FNV-1a.
fn fingerprint(model: &dyn Model) -> Result<String> {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bytes: &[u8]| {
        for &b in bytes {
            hash = (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
        }
    };
    for (name, array) in model.module().parameters() {
        add(name.as_bytes());
        add(lapis::shape::show(array.shape()).as_bytes());
        if array.size() <= SMALL {
            for value in ops::astype(&array, Dtype::Float32)?.to_vec::<f32>()? {
                add(&value.to_le_bytes());
            }
        }
    }
    Ok(format!("{hash:016x}"))
}
