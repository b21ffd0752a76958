//! EXAONE 3: a Llama by other names.

use super::Architecture;
use super::classic::{Inputs, Names};
use super::dense::Dense;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["exaone"], |config, at| {
    let mut d = Dense::read(config, json!({ "num_hidden_layers": config.get("num_layers") }))?;
    d.eps = d.settings.positive("layer_norm_epsilon")?;
    let names = Names {
        body: "transformer",
        table: "wte",
        positions: None,
        layers: "h",
        norm: "ln_f",
        head: if d.tied { None } else { Some("lm_head") },
        attention: "attn.attention",
        inputs: Inputs::Apart(["q_proj", "k_proj", "v_proj"]),
        output: "out_proj",
        mlp: "mlp",
        gate: Some("c_fc_0"),
        up: "c_fc_1",
        down: "c_proj",
        norms: ("ln_1", Some("ln_2")),
    };
    d.classic(names).load(at)
});
