//! InternLM 2: a Llama by other names, whose projection to queries, keys and values is one.

use super::Architecture;
use super::classic::{Classic, Inputs, Names};
use super::dense::Dense;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["internlm2"], |config, at| {
    let d = Dense::read(config, json!({ "max_position_embeddings": 32768, "tie_word_embeddings": false }))?;
    let names = Names {
        body: "model",
        table: "tok_embeddings",
        positions: None,
        layers: "layers",
        norm: "norm",
        head: if d.tied { None } else { Some("output") },
        attention: "attention",
        inputs: Inputs::Grouped("wqkv"),
        output: "wo",
        mlp: "feed_forward",
        gate: Some("w1"),
        up: "w3",
        down: "w2",
        norms: ("attention_norm", Some("ffn_norm")),
    };
    let bias = d.settings.get("bias")?.unwrap_or(true);
    Classic { bias: [bias, bias, false, false], ..d.classic(names) }.load(at)
});
