//! GLM 4.5 and others of plain attention with the experts of DeepSeek V3: Solar Open, dots.llm1, EXAONE MoE.

use super::common::{Common, boxed};
use super::deepseek_v3::Grouped;
use super::sanitize::{drop_beyond, replace, stack_experts};
use super::{Architecture, all_alike, drop_tied_head, parse};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    grouped: Grouped,
    #[serde(default)]
    use_qk_norm: bool,
    layer_types: Option<Vec<String>>,
    sliding_window: Option<usize>,
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["glm4_moe", "solar_open"],
    sanitize: |config, tensors| {
        drop_beyond(tensors, parse::<Args>(config)?.common.num_hidden_layers);
        stack_experts(tensors, "switch_mlp", &[])
    },
    quantize: all_alike,
    load: |config, at| {
        let Args { common: c, grouped, use_qk_norm, .. } = parse(config)?;
        boxed(c.decoder(at, |at, i| {
            Ok((c.attention(at, [c.attention_bias, false], use_qk_norm)?, grouped.product(&c, at, i, "noaux_tc")?))
        })?)
    },
};

pub(super) const DOTS: Architecture = Architecture {
    names: &["dots1"],
    sanitize: |config, tensors| {
        drop_tied_head(parse::<Args>(config)?.common.tie_word_embeddings, tensors);
        stack_experts(tensors, "experts", &[])
    },
    quantize: all_alike,
    load: |config, at| {
        let Args { common: c, grouped, .. } = parse(config)?;
        boxed(c.decoder(at, |at, i| {
            let product = grouped.product_in(&c, at, i, "noaux_tc", "experts")?;
            Ok((c.attention(at, [false; 2], true)?, product))
        })?)
    },
};

/// Layers that see all keys have no positions, where others see a window.
pub(super) const EXAONE: Architecture = Architecture {
    names: &["exaone_moe"],
    sanitize: |config, tensors| {
        let c = parse::<Args>(config)?.common;
        drop_tied_head(c.tie_word_embeddings, tensors);
        drop_beyond(tensors, c.num_hidden_layers);
        let ours = ["mlp.gate.e_score_correction_bias"];
        replace(tensors, "mlp.e_score_correction_bias", ours, |b| Ok([b.clone()]))?;
        stack_experts(tensors, "switch_mlp", &[])
    },
    quantize: all_alike,
    load: |config, at| {
        let mut a: Args = parse(config)?;
        if !config.contains_key("routed_scaling_factor") {
            a.grouped.routed_scaling_factor = 2.5;
        }
        let c = &mut a.common;
        c.rope_theta = c.inner("rope_theta").or(c.rope_theta).or(Some(1e6));
        let kinds = a.layer_types.as_deref().unwrap_or_default();
        let slides = |i: usize| kinds.get(i).is_some_and(|k| k == "sliding_attention");
        let any = (0..kinds.len()).any(slides);
        let c = &a.common;
        boxed(c.decoder(at, |at, i| {
            let mut heads = c.heads()?;
            if slides(i) {
                heads.window = a.sliding_window;
            } else if any {
                heads.rope = None;
            }
            Ok((c.attention_of(at, heads, [false; 2], true)?, a.grouped.product(c, at, i, "noaux_tc")?))
        })?)
    },
};
