//! Qwen 1: a Llama by other names, whose projection to queries, keys and values is one.

use super::Architecture;
use super::classic::{Classic, Inputs, Names};
use super::dense::Dense;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["qwen"], |config, at| {
    let defaults = json!({
        "hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 24, "max_position_embeddings": 8192,
        "layer_norm_epsilon": 1e-6, "intermediate_size": 11008, "vocab_size": 151936,
        "head_dim": config.get("kv_channels"), "rope_theta": config.get("rotary_emb_base"),
    });
    let mut d = Dense::read(config, defaults)?;
    d.eps = d.settings.positive("layer_norm_epsilon")?;
    let names = Names {
        body: "transformer",
        table: "wte",
        positions: None,
        layers: "h",
        norm: "ln_f",
        head: Some("lm_head"),
        attention: "attn",
        inputs: Inputs::Together("c_attn"),
        output: "c_proj",
        mlp: "mlp",
        gate: Some("w2"),
        up: "w1",
        down: "c_proj",
        norms: ("ln_1", Some("ln_2")),
    };
    let bias = !d.settings.get("no_bias")?.unwrap_or(true);
    Classic { bias: [true, bias, bias, bias], inner: d.inner / 2, ..d.classic(names) }.load(at)
});
