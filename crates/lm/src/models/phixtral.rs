//! Phixtral: Phi 2 with experts, attention and experts side by side.

use super::Architecture;
use super::common::{boxed, multiple};
use super::sanitize::stack_experts;
use super::settings::{Settings, wrong};
use crate::blocks::{
    Backbone, FrameNames, Gate, Heads, Mixture, Named, NamedAttention, NamedBlock, NamedInputs, Norm, PlainExperts,
    Pool, Rope, Router, Shared,
};
use crate::weights::At;
use lapis_nn::activations::gelu_approx;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    sanitize: |_, tensors| {
        let names =
            std::mem::take(tensors).into_iter().map(|(name, a)| (name.replace(".moe.mlp.", ".moe.experts."), a));
        tensors.extend(names);
        stack_experts(tensors, "switch_mlp", &[])
    },
    ..Architecture::plain(&["phixtral", "phi-msft"], |config, at| {
        let s = Settings::new(
            config,
            json!({
                "num_vocab": 51200, "model_dim": 2560, "num_heads": 32, "num_layers": 32, "rotary_dim": 32,
                "num_experts_per_tok": 2, "num_local_experts": 4,
            }),
        );
        let size = |key: &str| match s.need::<usize>(key)? {
            n if (1..1 << 24).contains(&n) => Ok(n),
            n => Err(wrong(key, format!("{n} is not a size"))),
        };
        let (width, count) = (size("model_dim")?, size("num_heads")?);
        multiple("model_dim", width, "num_heads", count)?;
        let rope = Rope::new(size("rotary_dim")?, 1e4, false, None, None)?;
        let heads = Heads::new(count, count, width / count, Some(rope));
        let (experts, chosen) = (size("num_local_experts")?, size("num_experts_per_tok")?);
        let names = FrameNames {
            body: "",
            table: "transformer.embd.wte",
            layers: "transformer.h",
            norm: "lm_head.ln",
            head: "lm_head.linear",
        };
        let norm = |at: &At, name: &str| Norm::layer(at, name, width, 1e-5, true);
        let all = [size("num_vocab")?, width, size("num_layers")?];
        boxed(Backbone::load(at, names, all, Some(true), norm, |at, _| {
            let (place, inputs) = (at.at("moe"), NamedInputs::Together("Wqkv"));
            let bias = [true; 2];
            let switch_mlp =
                PlainExperts::load(&place.at("switch_mlp"), [experts, width, 4 * width], true, gelu_approx)?;
            Ok(NamedBlock {
                mixer: Named(
                    "mixer",
                    NamedAttention::load(&at.at("mixer"), width, inputs, "out_proj", heads.clone(), bias)?,
                ),
                product: Named(
                    "moe",
                    Mixture {
                        gate: Gate::Plain { gate: place.linear("gate", width, experts, false)? },
                        pool: Pool::Plain { switch_mlp },
                        shared: Shared::None,
                        router: Router::top(chosen),
                    },
                ),
                before: Named("ln", norm(&at, "ln")?),
                between: None,
                parallel: true,
            })
        })?)
    })
};
