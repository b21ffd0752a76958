//! OLMo 1, by the names of its makers and of `transformers`: norms without weights.

use super::common::{boxed, multiple};
use super::dense::{Dense, Kind};
use super::settings::{Settings, wrong};
use super::{Architecture, Config, Model, drop_tied_head};
use crate::blocks::{
    Backbone, FrameNames, Heads, Named, NamedAttention, NamedBlock, NamedGate, NamedInputs, NamedMlp, Norm, Rope,
};
use crate::weights::At;
use lapis::Result;
use lapis_nn::activations::silu;
use serde_json::json;

/// Added to the variance.
const EPS: f64 = 1e-5;

/// By the names of the makers.
fn load(config: &Config, at: &At) -> Result<Box<dyn Model>> {
    let s = Settings::new(config, json!({ "rope_theta": 1e4 }));
    let size = |key: &str| match s.need::<usize>(key)? {
        n if (1..1 << 24).contains(&n) => Ok(n),
        n => Err(wrong(key, format!("{n} is not a size"))),
    };
    let (width, count) = (size("d_model")?, size("n_heads")?);
    multiple("d_model", width, "n_heads", count)?;
    // Both halves of the product up.
    let ratio: usize = s.get("mlp_ratio")?.unwrap_or(4);
    let inner = s.get("mlp_hidden_size")?.unwrap_or(ratio.min(1 << 10) * width);
    if inner < 2 || inner % 2 != 0 || inner > 1 << 28 {
        return Err(wrong("mlp_hidden_size", format!("{inner} has no two halves")));
    }
    let rope = Rope::new(width / count, s.positive("rope_theta")?, s.is("rope_traditional")?, None, None)?;
    let heads = Heads::new(count, count, width / count, Some(rope));
    let names = FrameNames {
        body: "model.transformer",
        table: "wte",
        layers: "blocks",
        norm: "norm",
        head: "model.transformer.ff_out",
    };
    let head = (!s.is("weight_tying")?).then_some(false);
    let all = [size("embedding_size")?, width, size("n_layers")?];
    let bare = |_: &At, _: &str| Ok(Norm::BareLayer(EPS));
    boxed(Backbone::load(at, names, all, head, bare, |at, _| {
        let inputs = NamedInputs::Together("att_proj");
        let sides = ["ff_proj", "ff_out"];
        Ok(NamedBlock {
            mixer: Named("", NamedAttention::load(&at, width, inputs, "attn_out", heads.clone(), [false; 2])?),
            product: Named("", NamedMlp::load(&at, [width, inner / 2], NamedGate::Second, sides, false, silu)?),
            before: Named("att_norm", Norm::BareLayer(EPS)),
            between: Some(Named("ff_norm", Norm::BareLayer(EPS))),
            parallel: false,
        })
    })?)
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    sanitize: |config, tensors| {
        let s = Settings::new(config, json!({}));
        drop_tied_head(s.is("tie_word_embeddings")?, tensors);
        Ok(())
    },
    ..Architecture::plain(&["olmo"], |config, at| {
        if config.contains_key("d_model") {
            return load(config, at);
        }
        let mut d = Dense::read(config, json!({ "tie_word_embeddings": false }))?;
        (d.norm, d.eps) = (Kind::BareLayer, EPS);
        let clip: Option<f64> = d.settings.get("clip_qkv")?;
        d.heads.iter_mut().for_each(|heads| heads.clip = clip);
        Ok(Box::new(d.load(at)?))
    })
};
