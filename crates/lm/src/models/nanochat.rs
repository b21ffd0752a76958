//! nanochat: norms without weights everywhere, positions that turn the other way, squares, capped logits.

use super::common::{boxed, multiple};
use super::settings::{Settings, wrong};
use super::{Architecture, Config};
use crate::blocks::{
    Backbone, FrameNames, Heads, Named, NamedAttention, NamedBlock, NamedGate, NamedInputs, NamedMlp, Norm, Rope,
};
use crate::weights::At;
use lapis::Result;
use lapis::io::Arrays;
use lapis_nn::activations::relu2;
use serde_json::{Value, json};

/// Names of `transformers`, and ours.
const NAMES: [(&str, &str); 7] = [
    (".self_attn.q_proj.", ".attn.c_q."),
    (".self_attn.k_proj.", ".attn.c_k."),
    (".self_attn.v_proj.", ".attn.c_v."),
    (".self_attn.o_proj.", ".attn.c_proj."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    ("model.layers.", "transformer.h."),
];

fn sanitize(_: &Config, tensors: &mut Arrays) -> Result<()> {
    let place = |name: String| {
        let Some(rest) = name.strip_prefix("model.") else { return name };
        match rest.strip_prefix("embed_tokens.") {
            Some(leaf) => format!("transformer.wte.{leaf}"),
            None => NAMES.iter().fold(name, |name, (from, to)| name.replace(from, to)),
        }
    };
    *tensors = std::mem::take(tensors).into_iter().map(|(name, a)| (place(name), a)).collect();
    Ok(())
}

pub(super) const ARCHITECTURE: Architecture = Architecture { sanitize, ..Architecture::plain(&["nanochat"], load) };

fn load(config: &Config, at: &At) -> Result<Box<dyn super::Model>> {
    let inside = config.get("rope_parameters").and_then(|block| block.get("rope_theta"));
    let s = Settings::new(
        config,
        json!({
            "hidden_size": 1280, "num_hidden_layers": 20, "num_attention_heads": 10, "num_key_value_heads": 10,
            "vocab_size": 65536, "intermediate_size": 5120, "rope_theta": inside.unwrap_or(&Value::from(1e4)),
            "rms_norm_eps": 1e-5, "final_logit_softcapping": 15.0,
        }),
    );
    let (width, count): (usize, usize) = (s.need("hidden_size")?, s.need("num_attention_heads")?);
    let keys = s.need("num_key_value_heads")?;
    multiple("hidden_size", width, "num_attention_heads", count)?;
    multiple("num_attention_heads", count, "num_key_value_heads", keys)?;
    let base = s.positive("rope_theta")?;
    if base <= 1.0 || (width / count) % 2 != 0 {
        return Err(wrong("rope_theta", format!("{base} is not above 1, or heads of {} are odd", width / count)));
    }
    let heads = Heads::new(count, keys, width / count, Some(Rope::backwards(width / count, base)));
    let inner = s.need("intermediate_size")?;
    let names = FrameNames { body: "transformer", table: "wte", layers: "h", norm: "norm", head: "lm_head" };
    let all = [s.need("vocab_size")?, width, s.need("num_hidden_layers")?];
    let eps: f64 = s.need("rms_norm_eps")?;
    let bare = |name| Named(name, Norm::Bare(eps));
    let mut model = Backbone::load(
        at,
        names,
        all,
        Some(false),
        |_, _| Ok(Norm::Bare(eps)),
        |at, _| {
            let inputs = NamedInputs::Apart(["c_q", "c_k", "c_v"]);
            let attention = NamedAttention::load(&at.at("attn"), width, inputs, "c_proj", heads.clone(), [false; 2])?;
            let (sides, names) = ([width, inner], ["c_fc", "c_proj"]);
            Ok(NamedBlock {
                mixer: Named("attn", attention.with_norms(bare("q_norm"), bare("k_norm"), true)),
                product: Named("mlp", NamedMlp::load(&at.at("mlp"), sides, NamedGate::None, names, false, relu2)?),
                before: bare("before"),
                between: Some(bare("between")),
                parallel: false,
            })
        },
    )?;
    model.first = Some(Norm::Bare(eps));
    model.logit_cap = s.need("final_logit_softcapping")?;
    boxed(model)
}
