//! GLM 4.5: partly turned heads, experts as those of DeepSeek V3.

use super::common::{Common, boxed};
use super::deepseek_v3::Grouped;
use super::sanitize::{drop_beyond, stack_experts};
use super::{Architecture, all_alike, parse};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    grouped: Grouped,
    #[serde(default)]
    use_qk_norm: bool,
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["glm4_moe"],
    sanitize: |config, tensors| {
        drop_beyond(tensors, parse::<Args>(config)?.common.num_hidden_layers);
        stack_experts(tensors, "switch_mlp", &[])
    },
    quantize: all_alike,
    load: |config, at| {
        let Args { common: c, grouped, use_qk_norm } = parse(config)?;
        boxed(c.decoder(at, |at, i| {
            Ok((c.attention(at, [c.attention_bias, false], use_qk_norm)?, grouped.product(&c, at, i, "noaux_tc")?))
        })?)
    },
};
