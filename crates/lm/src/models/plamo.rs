//! PLaMo: attention and product side by side; heads of keys are shared in turns, not in groups.

use super::Architecture;
use super::common::boxed;
use super::dense::Dense;
use super::settings::wrong;
use crate::batch::Batch;
use crate::blocks::{Backbone, FrameNames, Heads, Layered, Mlp, Named, NamedBlock, Norm};
use crate::weights::At;
use lapis::{Array, Result, ops};
use lapis_nn::{Layer, Linear, Module};
use serde_json::json;

/// Attention whose query head `i` looks at the head `i % keys` of keys.
#[derive(Module, Clone)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    #[plain]
    heads: Heads,
}

impl Attention {
    fn load(at: &At, width: usize, heads: Heads) -> Result<Attention> {
        let (q, k) = (heads.count * heads.width, heads.keys * heads.width);
        Ok(Attention {
            q_proj: at.linear("q_proj", width, q, false)?,
            k_proj: at.linear("k_proj", width, k, false)?,
            v_proj: at.linear("v_proj", width, k, false)?,
            o_proj: at.linear("o_proj", q, width, false)?,
            heads,
        })
    }
}

impl Layered for Attention {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let (rows, keys, width) = (x.dim(0) as i64, self.heads.keys as i64, self.heads.width as i64);
        // From turns to groups, and back.
        let swap = |x: &Array, first: i64| {
            let turned = ops::transpose(&ops::reshape(x, &[rows, first, -1, width])?, Some(&[0, 2, 1, 3]))?;
            ops::reshape(&turned, &[rows, -1])
        };
        let q = swap(&self.q_proj.forward(x)?, self.heads.count as i64 / keys)?;
        let (k, v) = (self.k_proj.forward(x)?, self.v_proj.forward(x)?);
        let y = self.heads.attend([&q, &k, &v], None, layer, batch)?;
        self.o_proj.forward(&swap(&y, keys)?)
    }
}

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["plamo"], |config, at| {
    let mut d = Dense::read(config, json!({}))?;
    let shared: usize = d.settings.get("n_shared_head")?.unwrap_or(8);
    let count = d.heads[0].count;
    if shared == 0 || count % shared != 0 {
        return Err(wrong("n_shared_head", format!("num_attention_heads, {count}, is no multiple of {shared}")));
    }
    d.heads.iter_mut().for_each(|heads| heads.keys = count / shared);
    let norm = |at: &At, name: &str| Norm::rms(at, name, d.width, d.eps);
    let names = FrameNames { layers: "layers.layers", ..FrameNames::model("norm") };
    let all = [d.vocabulary, d.width, d.heads.len()];
    boxed(Backbone::load(at, names, all, Some(false), norm, |at, i| {
        Ok(NamedBlock {
            mixer: Named("self_attn", Attention::load(&at.at("self_attn"), d.width, d.heads[i].clone())?),
            product: Named("mlp", Mlp::load(&at.at("mlp"), d.width, d.inner, false, d.activation)?),
            before: Named("norm", norm(&at, "norm")?),
            between: None,
            parallel: true,
        })
    })?)
});
