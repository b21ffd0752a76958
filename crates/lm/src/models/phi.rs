//! Phi 1 and 2: attention and product side by side behind one norm, a part of each head turned.

use super::Architecture;
use super::classic::{Classic, Inputs, Names};
use super::dense::Dense;
use lapis_nn::activations::gelu_approx;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["phi"], |config, at| {
    let defaults = json!({
        "max_position_embeddings": 2048, "vocab_size": 51200, "hidden_size": 2560, "num_attention_heads": 32,
        "num_hidden_layers": 32, "partial_rotary_factor": 0.4, "intermediate_size": 10240,
    });
    let mut d = Dense::read(config, defaults)?;
    d.layer_norms(true, "layer_norm_eps")?;
    let names = Names {
        body: "model",
        table: "embed_tokens",
        positions: None,
        layers: "layers",
        norm: "final_layernorm",
        head: Some("lm_head"),
        attention: "self_attn",
        inputs: Inputs::Apart(["q_proj", "k_proj", "v_proj"]),
        output: "dense",
        mlp: "mlp",
        gate: None,
        up: "fc1",
        down: "fc2",
        norms: ("input_layernorm", None),
    };
    Classic { rms: false, bias: [true; 4], activation: gelu_approx, parallel: true, ..d.classic(names) }.load(at)
});
