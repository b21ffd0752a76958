//! Kimi Linear: delta attention, now and then latent attention without positions; experts beside a shared one.

use super::common::{Common, boxed, eight_bits, multiple};
use super::sanitize::{drop_beyond, move_conv, replace, split_kv_b, stack_experts};
use super::settings::wrong;
use super::{Architecture, drop_tied_head, parse};
use crate::blocks::{Gate, KimiDelta, KimiSizes, Latent, LatentSizes, Mixer, Mixture, Product, Router, Rule, Shared};
use crate::weights::At;
use lapis::io::Arrays;
use lapis::{Array, Result, ops};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    sparse: Sparse,
    linear_attn_config: Delta,
    kv_lora_rank: usize,
    qk_nope_head_dim: Option<usize>,
    qk_rope_head_dim: Option<usize>,
    v_head_dim: Option<usize>,
}

#[derive(Deserialize)]
struct Delta {
    /// Layers by their numbers, the first one is 1.
    kda_layers: Vec<usize>,
    num_heads: usize,
    head_dim: usize,
    #[serde(default = "four")]
    short_conv_kernel_size: usize,
}

#[derive(Deserialize)]
struct Sparse {
    num_experts: usize,
    moe_intermediate_size: usize,
    #[serde(default = "one")]
    num_experts_per_token: usize,
    #[serde(default)]
    num_shared_experts: usize,
    moe_router_activation_func: Option<String>,
    #[serde(default = "yes")]
    moe_renormalize: bool,
    #[serde(default = "factor")]
    routed_scaling_factor: f64,
    #[serde(default)]
    first_k_dense_replace: usize,
    #[serde(default = "one")]
    moe_layer_freq: usize,
    #[serde(default = "one")]
    num_expert_group: usize,
    #[serde(default = "one")]
    topk_group: usize,
}

fn four() -> usize {
    4
}

fn one() -> usize {
    1
}

fn factor() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

impl Args {
    /// Of heads of keys without positions, and of values.
    fn widths(&self) -> [usize; 2] {
        [self.qk_nope_head_dim, self.v_head_dim].map(|n| n.filter(|n| *n > 0).unwrap_or(self.common.head()))
    }

    fn mixer(&self, at: &At, i: usize) -> Result<Mixer> {
        let (c, d, at) = (&self.common, &self.linear_attn_config, at.at("self_attn"));
        if d.kda_layers.contains(&(i + 1)) {
            if [d.num_heads, d.head_dim, d.short_conv_kernel_size].iter().any(|n| !(1..1 << 20).contains(n)) {
                return Err(wrong("linear_attn_config", "num_heads, head_dim or short_conv_kernel_size is no size"));
            }
            let sizes = KimiSizes {
                width: c.hidden_size,
                heads: [d.num_heads, d.head_dim],
                kernel: d.short_conv_kernel_size,
                eps: c.rms_norm_eps,
            };
            return Ok(Mixer::Kimi { self_attn: KimiDelta::load(&at, sizes)? });
        }
        let ([plain, value], turned) = (self.widths(), self.qk_rope_head_dim.unwrap_or(0));
        let sizes = LatentSizes {
            width: c.hidden_size,
            heads: c.num_attention_heads,
            queries: None,
            latent: self.kv_lora_rank,
            plain,
            turned,
            value,
            scale: ((plain + turned) as f64).powf(-0.5),
            bias: false,
            output: "o_proj",
            eps: c.rms_norm_eps,
        };
        Ok(Mixer::Latent { self_attn: Latent::load(&at, sizes, None, true)? })
    }

    fn product(&self, at: &At, i: usize) -> Result<Product> {
        let (c, s) = (&self.common, &self.sparse);
        if s.num_experts == 0 || i < s.first_k_dense_replace || !i.is_multiple_of(s.moe_layer_freq.max(1)) {
            return c.dense(at);
        }
        let (at, n, width) = (at.at("mlp"), s.num_experts, c.hidden_size);
        let rule = match s.moe_router_activation_func.as_deref() {
            None | Some("sigmoid") => Rule::Sigmoid,
            Some("softmax") => Rule::SoftmaxThenTop,
            Some(other) => return Err(wrong("moe_router_activation_func", format!("{other:?} is not known"))),
        };
        multiple("num_experts", n, "num_expert_group", s.num_expert_group)?;
        let router = Router {
            rule,
            scale: s.routed_scaling_factor,
            groups: Some([s.num_expert_group, s.topk_group]),
            best: 2,
            ..Router::softmax(s.num_experts_per_token, s.moe_renormalize)
        };
        let gate = Gate::Beside {
            gate: at.linear("gate", width, n, false)?,
            e_score_correction_bias: at.param("e_score_correction_bias", &[n])?,
        };
        let mut mlp = Mixture::behind(gate, &at, [n, width, s.moe_intermediate_size], router)?;
        if s.num_shared_experts > 0 {
            let inner = s.num_shared_experts.checked_mul(s.moe_intermediate_size);
            let inner = inner.ok_or_else(|| wrong("num_shared_experts", "it is too large"))?;
            mlp = mlp.with(Shared::Plain { shared_experts: c.mlp(&at, "shared_experts", inner)? });
        }
        Ok(Product::Experts { mlp })
    }
}

fn sanitize(a: &Args, tensors: &mut Arrays) -> Result<()> {
    let c = &a.common;
    drop_tied_head(c.tie_word_embeddings, tensors);
    tensors.retain(|name, _| !name.starts_with("model.mtp"));
    drop_beyond(tensors, c.num_hidden_layers);
    let names = std::mem::take(tensors).into_iter().map(|(name, a)| (name.replace(".block_sparse_moe.", ".mlp."), a));
    tensors.extend(names);
    stack_experts(tensors, "switch_mlp", &[])?;
    let same = |a: &Array| Ok([a.clone()]);
    replace(tensors, ".mlp.gate.e_score_correction_bias", [".mlp.e_score_correction_bias"], same)?;
    for part in ["q", "k", "v"] {
        let [from, to] = [format!(".{part}_conv1d.weight"), format!(".{part}_conv.conv.weight")];
        replace(tensors, &from, [&to], same)?;
        move_conv(tensors, &format!(".{part}_conv.conv"))?;
    }
    for (_, bias) in tensors.iter_mut().filter(|(name, a)| name.ends_with(".dt_bias") && a.ndim() > 1) {
        *bias = ops::reshape(&*bias, &[-1])?;
    }
    split_kv_b(tensors, c.num_attention_heads, a.widths()[0], a.kv_lora_rank)
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["kimi_linear"],
    sanitize: |config, tensors| sanitize(&parse(config)?, tensors),
    quantize: |path| eight_bits(path, &["mlp.gate"]),
    load: |config, at| {
        let a: Args = parse(config)?;
        boxed(a.common.decoder(at, |at, i| Ok((a.mixer(at, i)?, a.product(at, i)?)))?)
    },
};
