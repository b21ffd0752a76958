//! BitNet b1.58: a Llama of ternary weights, with norms inside its parts and squares for its gates. Its packed weights
//! are put in MLX's form when a checkpoint is opened.

use super::common::boxed;
use super::dense::Dense;
use super::{Architecture, drop_tied_head};
use crate::blocks::{Backbone, FrameNames, Named, NamedAttention, NamedBlock, NamedGate, NamedInputs, NamedMlp, Norm};
use crate::weights::At;
use lapis_nn::activations::relu2;
use serde_json::{Value, json};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    sanitize: |config, tensors| {
        drop_tied_head(config.get("tie_word_embeddings") != Some(&Value::Bool(false)), tensors);
        Ok(())
    },
    ..Architecture::plain(&["bitnet"], |config, at| {
        let d = Dense::read(config, json!({}))?;
        let norm = |at: &At, name: &str| Norm::rms(at, name, d.width, d.eps);
        let all = [d.vocabulary, d.width, d.heads.len()];
        let head = (!d.tied).then_some(false);
        boxed(Backbone::load(at, FrameNames::model("norm"), all, head, norm, |at, i| {
            let (heads, inputs) = (d.heads[i].clone(), NamedInputs::Apart(["q_proj", "k_proj", "v_proj"]));
            let inner = heads.count * heads.width;
            let (place, mlp) = (at.at("self_attn"), at.at("mlp"));
            let attention = NamedAttention::load(&place, d.width, inputs, "o_proj", heads, d.bias)?;
            let gate = NamedGate::Apart("gate_proj");
            let product = NamedMlp::load(&mlp, [d.width, d.inner], gate, ["up_proj", "down_proj"], d.mlp_bias, relu2)?;
            let last = |at: &At, name, width| Ok::<_, lapis::Error>(Named(name, Norm::rms(at, name, width, d.eps)?));
            Ok(NamedBlock {
                mixer: Named("self_attn", attention.with_last(last(&place, "attn_sub_norm", inner)?)),
                product: Named("mlp", product.with_last(last(&mlp, "ffn_sub_norm", d.inner)?)),
                before: last(&at, "input_layernorm", d.width)?,
                between: Some(last(&at, "post_attention_layernorm", d.width)?),
                parallel: false,
            })
        })?)
    })
};
