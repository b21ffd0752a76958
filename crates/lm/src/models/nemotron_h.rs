//! Nemotron H: layers of Mamba 2, attention, squares or experts, as a pattern says.

use super::common::{boxed, multiple};
use super::mamba2::{Block, Part, limits};
use super::sanitize::{drop_beyond, move_conv, stack_experts};
use super::{Architecture, all_alike, parse};
use crate::blocks::{
    Attention, Backbone, FrameNames, Gate, Heads, Mamba2, MambaSizes, Mixture, Norm, PlainExperts, Pool, Router, Rule,
    Shared, Squared,
};
use crate::weights::At;
use lapis::{Error, Result};
use lapis_nn::activations::relu2;
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    vocab_size: usize,
    hidden_size: usize,
    #[serde(default)]
    intermediate_size: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    #[serde(default)]
    attention_bias: bool,
    mamba_num_heads: usize,
    mamba_head_dim: usize,
    #[serde(default)]
    mamba_proj_bias: bool,
    ssm_state_size: usize,
    conv_kernel: usize,
    n_groups: usize,
    #[serde(default)]
    mlp_bias: bool,
    layer_norm_epsilon: f64,
    #[serde(default)]
    use_conv_bias: bool,
    time_step_limit: Option<[Option<f64>; 2]>,
    hybrid_override_pattern: Option<Pattern>,
    #[serde(alias = "layer_types")]
    layers_block_type: Option<Vec<String>>,
    #[serde(flatten)]
    experts: Experts,
}

#[derive(Deserialize)]
struct Experts {
    moe_intermediate_size: Option<usize>,
    moe_shared_expert_intermediate_size: Option<usize>,
    moe_latent_size: Option<usize>,
    n_group: Option<usize>,
    topk_group: Option<usize>,
    n_routed_experts: Option<usize>,
    n_shared_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    norm_topk_prob: Option<bool>,
    routed_scaling_factor: Option<f64>,
}

/// A letter for each layer: in one string, or each of its own.
#[derive(Deserialize)]
#[serde(untagged)]
enum Pattern {
    Together(String),
    Apart(Vec<String>),
}

impl Args {
    fn pattern(&self) -> Result<Vec<char>> {
        let letter = |kind: &String| match kind.as_str() {
            "full_attention" | "attention" => Ok('*'),
            "linear_attention" | "mamba" | "conv" => Ok('M'),
            "moe" => Ok('E'),
            "mlp" => Ok('-'),
            other => Err(Error::unsupported(format!("[load] config.json: layers_block_type: {other:?} is not known"))),
        };
        match (&self.hybrid_override_pattern, &self.layers_block_type) {
            (Some(Pattern::Together(all)), _) => Ok(all.chars().collect()),
            (Some(Pattern::Apart(all)), _) => Ok(all.iter().flat_map(|s| s.chars()).collect()),
            (None, Some(kinds)) => kinds.iter().map(letter).collect(),
            (None, None) => Err(Error::value("[load] config.json: hybrid_override_pattern: missing")),
        }
    }

    fn mamba(&self) -> Result<MambaSizes> {
        let inner = self.mamba_num_heads * self.mamba_head_dim;
        multiple("mamba_num_heads", self.mamba_num_heads, "n_groups", self.n_groups)?;
        Ok(MambaSizes {
            width: self.hidden_size,
            heads: [self.mamba_num_heads, self.mamba_head_dim],
            state: self.ssm_state_size,
            groups: self.n_groups,
            kernel: self.conv_kernel,
            limit: limits(self.time_step_limit),
            bias: [self.mamba_proj_bias, self.use_conv_bias, self.mamba_proj_bias],
            together: inner / self.n_groups,
            early: false,
            eps: self.layer_norm_epsilon,
        })
    }

    fn part(&self, at: &At, letter: char) -> Result<Part> {
        let width = self.hidden_size;
        match letter {
            'M' => Ok(Part::Mamba(Mamba2::load(at, self.mamba()?)?)),
            '*' => {
                let head = self.head_dim.unwrap_or(width / self.num_attention_heads.max(1));
                let heads = Heads::new(self.num_attention_heads, self.num_key_value_heads, head, None);
                Ok(Part::Attention(Attention::load(at, width, heads, [self.attention_bias; 2])?))
            }
            '-' => Ok(Part::Squared(Squared::load(at, width, self.intermediate_size, self.mlp_bias)?)),
            'E' => Ok(Part::Experts(self.mixture(at)?)),
            other => {
                let text = format!("[load] config.json: hybrid_override_pattern: {other:?} is no kind of layer");
                Err(Error::unsupported(text))
            }
        }
    }

    fn mixture(&self, at: &At) -> Result<Mixture> {
        let (e, width) = (&self.experts, self.hidden_size);
        let need = |n: Option<usize>, key: &str| {
            n.ok_or_else(|| {
                Error::value(format!("[load] config.json: {key}: missing, but there are layers of experts"))
            })
        };
        let n = need(e.n_routed_experts, "n_routed_experts")?;
        let inner = need(e.moe_intermediate_size, "moe_intermediate_size")?;
        let groups = [e.n_group.unwrap_or(1), e.topk_group.unwrap_or(1)];
        multiple("n_routed_experts", n, "n_group", groups[0])?;
        let chosen = need(e.num_experts_per_tok, "num_experts_per_tok")?;
        let router = Router {
            rule: Rule::Sigmoid,
            scale: e.routed_scaling_factor.unwrap_or(1.0),
            groups: Some(groups),
            ..Router::softmax(chosen, e.norm_topk_prob.unwrap_or(true))
        };
        let experts = |narrow| PlainExperts::load(&at.at("switch_mlp"), [n, narrow, inner], false, relu2);
        let pool = match e.moe_latent_size {
            None => Pool::Plain { switch_mlp: experts(width)? },
            Some(narrow) => Pool::Latent {
                fc1_latent_proj: at.linear("fc1_latent_proj", width, narrow, self.mlp_bias)?,
                switch_mlp: experts(narrow)?,
                fc2_latent_proj: at.linear("fc2_latent_proj", narrow, width, self.mlp_bias)?,
            },
        };
        let shared = match e.n_shared_experts {
            None | Some(0) => Shared::None,
            Some(_) => {
                let inner = need(e.moe_shared_expert_intermediate_size, "moe_shared_expert_intermediate_size")?;
                let shared_experts = Squared::load(&at.at("shared_experts"), width, inner, self.mlp_bias)?;
                Shared::Squared { shared_experts }
            }
        };
        Ok(Mixture { gate: Gate::biased(at, width, n)?, pool, shared, router })
    }
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["nemotron_h"],
    sanitize: |_, tensors| {
        drop_beyond(tensors, usize::MAX);
        move_conv(tensors, "conv1d")?;
        stack_experts(tensors, "switch_mlp", &[("up_proj", "fc1"), ("down_proj", "fc2")])
    },
    quantize: all_alike,
    load: |config, at| {
        let a: Args = parse(config)?;
        let pattern = a.pattern()?;
        let all = [a.vocab_size, a.hidden_size, pattern.len()];
        let norm = |at: &At, name: &str| Norm::rms(at, name, a.hidden_size, a.layer_norm_epsilon);
        boxed(Backbone::load(at, FrameNames::MAMBA, all, Some(false), norm, |at, i| {
            Ok(Block { norm: norm(&at, "norm")?, mixer: a.part(&at.at("mixer"), pattern[i])? })
        })?)
    },
};
