//! GPT-J: attention and product side by side behind one norm, neighbouring features turned.

use super::classic::{Classic, Inputs};
use super::{Architecture, Settings, gpt2};
use crate::blocks::Rope;
use lapis_nn::activations::gelu_approx;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    sanitize: |_, tensors| {
        tensors.retain(|name, _| !name.ends_with(".attn.bias"));
        let place = |name: String| match name.strip_prefix("transformer.") {
            Some(rest) => format!("model.{rest}"),
            None => name,
        };
        *tensors = std::mem::take(tensors).into_iter().map(|(name, a)| (place(name), a)).collect();
        Ok(())
    },
    ..Architecture::plain(&["gptj"], |config, at| {
        let defaults = json!({
            "n_embd": 4096, "vocab_size": 50400, "layer_norm_epsilon": 1e-5, "n_positions": 2048, "n_head": 16,
            "rotary_dim": 64, "n_layer": 28,
        });
        let s = Settings::new(config, defaults);
        let mut c = gpt2::read(&s)?;
        c.heads.rope = Some(Rope::new(s.need("rotary_dim")?, 1e4, true, None, None)?);
        let names = &mut c.names;
        (names.positions, names.head) = (None, Some("lm_head"));
        (names.inputs, names.output) = (Inputs::Apart(["q_proj", "k_proj", "v_proj"]), "out_proj");
        (names.up, names.down, names.norms) = ("fc_in", "fc_out", ("ln_1", None));
        Classic { bias: [false, false, true, true], activation: gelu_approx, parallel: true, ..c }.load(at)
    })
};
