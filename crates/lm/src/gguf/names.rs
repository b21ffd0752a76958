//! Names of tensors: those of GGUF to those of checkpoints.

use super::families::Family;
use super::{Meta, unsupported};
use lapis::Result;

/// The names of a Llama and of what is built like one. Parts of a layer have no `blk.N.` before them.
const USUAL: &[(&str, &str)] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.switch_mlp.gate_proj"),
    ("ffn_up_exps", "mlp.switch_mlp.up_proj"),
    ("ffn_down_exps", "mlp.switch_mlp.down_proj"),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];

/// What configs say already.
const LEFT_OUT: [&str; 4] = ["rope_freqs", "rope_factors_long", "rope_factors_short", "attn_rot_embd"];

/// The name in a file of a tensor of a checkpoint.
pub(super) fn back(family: &Family, path: &str) -> Option<String> {
    let inside = path.strip_prefix(family.layers).and_then(|rest| rest.strip_prefix('.')?.split_once('.'));
    let (layer, part) = match inside {
        Some((layer, part)) if layer.parse::<usize>().is_ok() => (Some(layer), part),
        _ => (None, path),
    };
    let find = |table: &[(&'static str, &str)], name: &str| table.iter().find(|n| n.1 == name).map(|n| n.0);
    let stem = || {
        let (stem, leaf) = part.rsplit_once('.')?;
        let found = find(family.names, stem).or_else(|| find(USUAL, stem))?;
        Some(format!("{found}.{leaf}"))
    };
    let found = find(family.names, part).map(str::to_string).or_else(stem)?;
    Some(layer.map_or(found.clone(), |n| format!("blk.{n}.{found}")))
}

/// The name of a tensor in a checkpoint; none for what is no part of a model.
///
/// # Errors
/// A name that is not known.
pub(super) fn translate(family: &Family, meta: &Meta, name: &str) -> Result<Option<String>> {
    let (layer, part) = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) if layer.parse::<usize>().is_ok() => (Some(layer), part),
        _ => (None, name),
    };
    let (stem, leaf) = part.rsplit_once('.').unwrap_or((part, ""));
    if LEFT_OUT.contains(&stem) {
        return Ok(None);
    }
    // Experts that are not stacked: `ffn_gate.3`.
    let (stem, expert) = match stem.rsplit_once('.') {
        Some((stem, e)) if layer.is_some() && e.parse::<usize>().is_ok() => (format!("{stem}_exps"), Some(e)),
        _ => (stem.to_string(), None),
    };
    let find = |table: &[(&str, &'static str)], name: &str| table.iter().find(|n| n.0 == name).map(|n| n.1);
    let whole = find(family.names, part).map(str::to_string);
    let named = || {
        let found = find(family.names, &stem).or_else(|| find(USUAL, &stem))?;
        let found = match expert {
            Some(e) => found.replace("switch_mlp.", &format!("experts.{e}.")),
            None => found.to_string(),
        };
        Some(format!("{found}.{leaf}"))
    };
    match (whole.or_else(named), layer) {
        (Some(found), Some(layer)) => Ok(Some(format!("{}.{layer}.{found}", family.layers))),
        (Some(found), None) => Ok(Some(found)),
        (None, _) => {
            let arch = meta.arch();
            Err(unsupported(meta, format!("tensor {name} is not known in a model of architecture {arch:?}")))
        }
    }
}
