//! Step 3.5: layers behind a window with heads of their own, a gate for each head, experts behind sigmoids beside a
//! shared one, gated products that are clamped.

use super::common::{boxed, eight_bits, multiple};
use super::sanitize::drop_beyond;
use super::settings::wrong;
use super::{Architecture, Config, parse};
use crate::batch::Batch;
use crate::blocks::{
    Backbone, FrameNames, GatedExperts, Heads, Layered, Named, NamedBlock, Norm, Rope, Router, Rule, mix, swiglu,
    swiglu_within,
};
use crate::weights::At;
use lapis::io::Arrays;
use lapis::{Array, Error, Result, ops};
use lapis_nn::{Layer, Linear, Module, Param};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    hidden_size: usize,
    num_hidden_layers: usize,
    vocab_size: usize,
    num_attention_heads: usize,
    num_attention_groups: usize,
    head_dim: usize,
    intermediate_size: usize,
    #[serde(default = "eps")]
    rms_norm_eps: f64,
    rope_theta: Option<Bases>,
    rope_scaling: Option<Config>,
    max_position_embeddings: Option<usize>,
    #[serde(default = "window")]
    sliding_window: usize,
    layer_types: Option<Vec<String>>,
    yarn_only_types: Option<Vec<String>>,
    partial_rotary_factors: Option<Vec<f64>>,
    attention_other_setting: Option<Other>,
    #[serde(default = "yes")]
    use_head_wise_attn_gate: bool,
    #[serde(default = "experts")]
    moe_num_experts: usize,
    #[serde(default = "eight")]
    moe_top_k: usize,
    #[serde(default = "inner")]
    moe_intermediate_size: usize,
    #[serde(default = "inner")]
    share_expert_dim: usize,
    moe_layers_enum: Option<String>,
    #[serde(default = "three")]
    moe_router_scaling_factor: f64,
    #[serde(default = "yes")]
    norm_expert_weight: bool,
    swiglu_limits: Option<Vec<Option<f64>>>,
    swiglu_limits_shared: Option<Vec<Option<f64>>>,
}

/// One base of positions, or one for each layer.
#[derive(Deserialize)]
#[serde(untagged)]
enum Bases {
    One(f64),
    Each(Vec<f64>),
}

/// Heads of layers behind a window.
#[derive(Deserialize)]
struct Other {
    num_attention_heads: usize,
    num_attention_groups: usize,
}

fn eps() -> f64 {
    1e-5
}

fn window() -> usize {
    512
}

fn yes() -> bool {
    true
}

fn experts() -> usize {
    288
}

fn eight() -> usize {
    8
}

fn inner() -> usize {
    1280
}

fn three() -> f64 {
    3.0
}

/// Attention whose heads are gated by one number each.
#[derive(Module, Clone)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Norm,
    k_norm: Norm,
    g_proj: Option<Linear>,
    #[plain]
    heads: Heads,
}

impl Layered for Attention {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let rows = x.dim(0) as i64;
        let each = |x: &Array| ops::reshape(x, &[rows, -1, self.heads.width as i64]);
        let q = self.q_norm.forward(&each(&self.q_proj.forward(x)?)?)?;
        let k = self.k_norm.forward(&each(&self.k_proj.forward(x)?)?)?;
        let mut y = self.heads.attend([&q, &k, &self.v_proj.forward(x)?], None, layer, batch)?;
        if let Some(gate) = &self.g_proj {
            let gate = ops::expand_dims(&ops::sigmoid(&gate.forward(x)?)?, -1)?;
            y = ops::reshape(&ops::multiply(each(&y)?, gate)?, &[rows, -1])?;
        }
        self.o_proj.forward(&y)
    }
}

#[derive(Module, Clone)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    limit: Option<f64>,
}

impl Mlp {
    fn load(at: &At, width: usize, inner: usize, limit: Option<f64>) -> Result<Mlp> {
        Ok(Mlp {
            gate_proj: at.linear("gate_proj", width, inner, false)?,
            up_proj: at.linear("up_proj", width, inner, false)?,
            down_proj: at.linear("down_proj", inner, width, false)?,
            limit,
        })
    }
}

impl Layer for Mlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        let (gate, up) = (self.gate_proj.forward(x)?, self.up_proj.forward(x)?);
        self.down_proj.forward(&match self.limit {
            None => swiglu(&gate, &up)?,
            Some(limit) => swiglu_within(&gate, &up, limit)?,
        })
    }
}

/// Logits of experts, and what is added for the choice.
#[derive(Module, Clone)]
struct Gate {
    gate: Linear,
    router_bias: Param,
}

#[derive(Module, Clone)]
struct Experts {
    gate: Gate,
    switch_mlp: GatedExperts,
    share_expert: Mlp,
    #[plain]
    router: Router,
}

impl Layer for Experts {
    fn forward(&self, x: &Array) -> Result<Array> {
        let (chosen, weights) = self.router.route(&self.gate.gate.forward(x)?, Some(self.gate.router_bias.value()))?;
        ops::add(mix(&self.switch_mlp.forward(x, &chosen)?, &weights)?, self.share_expert.forward(x)?)
    }
}

#[derive(Module, Clone)]
#[expect(clippy::large_enum_variant, reason = "one a layer")]
enum Product {
    Dense(Mlp),
    Experts(Experts),
}

impl Layer for Product {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Product::Dense(mlp) => mlp.forward(x),
            Product::Experts(experts) => experts.forward(x),
        }
    }
}

/// The limit of a layer in a list; 0 is none.
fn limit(list: &Option<Vec<Option<f64>>>, i: usize) -> Option<f64> {
    list.as_ref()?.get(i).copied().flatten().filter(|limit| *limit > 0.0)
}

impl Args {
    fn slides(&self, i: usize) -> bool {
        match self.layer_types.as_deref() {
            None | Some([]) => i.is_multiple_of(2),
            Some(kinds) => kinds.get(i).is_some_and(|kind| kind == "sliding_attention"),
        }
    }

    fn heads(&self, i: usize) -> Result<Heads> {
        let (count, keys) = match &self.attention_other_setting {
            Some(other) if self.slides(i) => (other.num_attention_heads, other.num_attention_groups),
            _ => (self.num_attention_heads, self.num_attention_groups),
        };
        multiple("num_attention_heads", count, "num_attention_groups", keys)?;
        if count > 1 << 20 {
            return Err(wrong("num_attention_heads", format!("{count} is not a size")));
        }
        let base = match &self.rope_theta {
            None => 1e4,
            Some(Bases::One(base)) => *base,
            Some(Bases::Each(all)) => {
                *all.get(i).ok_or_else(|| wrong("rope_theta", format!("{} numbers, none for layer {i}", all.len())))?
            }
        };
        let part = self.partial_rotary_factors.as_ref().and_then(|all| all.get(i)).copied().unwrap_or(1.0);
        if !(part > 0.0 && part <= 1.0) {
            return Err(wrong("partial_rotary_factors", format!("{part} is not between 0 and 1")));
        }
        let kind = self.layer_types.as_ref().and_then(|kinds| kinds.get(i)).map_or("full_attention", String::as_str);
        let scaled = match self.yarn_only_types.as_deref() {
            None | Some([]) => true,
            Some(kinds) => kinds.iter().any(|k| k == kind),
        };
        let scaling = self.rope_scaling.as_ref().filter(|_| scaled);
        let dims = (self.head_dim as f64 * part) as usize;
        let rope = Rope::new(dims, base, false, scaling, self.max_position_embeddings)?;
        let mut heads = Heads::new(count, keys, self.head_dim, Some(rope));
        heads.window = self.slides(i).then_some(self.sliding_window.max(1));
        Ok(heads)
    }

    fn attention(&self, at: &At, i: usize) -> Result<Attention> {
        let (heads, width, at) = (self.heads(i)?, self.hidden_size, at.at("self_attn"));
        let (q, k) = (heads.count * heads.width, heads.keys * heads.width);
        let gate = || at.linear("g_proj", width, heads.count, false);
        Ok(Attention {
            q_proj: at.linear("q_proj", width, q, false)?,
            k_proj: at.linear("k_proj", width, k, false)?,
            v_proj: at.linear("v_proj", width, k, false)?,
            o_proj: at.linear("o_proj", q, width, false)?,
            q_norm: Norm::rms(&at, "q_norm", heads.width, self.rms_norm_eps)?,
            k_norm: Norm::rms(&at, "k_norm", heads.width, self.rms_norm_eps)?,
            g_proj: self.use_head_wise_attn_gate.then(gate).transpose()?,
            heads,
        })
    }

    /// Whether layer `i` has experts.
    fn is_sparse(&self, i: usize) -> Result<bool> {
        let Some(list) = self.moe_layers_enum.as_deref().map(str::trim).filter(|list| !list.is_empty()) else {
            return Ok(i > 0);
        };
        let number = |n: &str| n.trim().parse::<usize>().map_err(|_| wrong("moe_layers_enum", format!("{n:?} in it")));
        let all: Vec<usize> = list.split(',').map(number).collect::<Result<_>>()?;
        Ok(all.contains(&i))
    }

    fn product(&self, at: &At, i: usize) -> Result<Product> {
        let (at, width) = (at.at("mlp"), self.hidden_size);
        let shared = limit(&self.swiglu_limits_shared, i);
        if !self.is_sparse(i)? {
            return Mlp::load(&at, width, self.intermediate_size, shared).map(Product::Dense);
        }
        let (n, place) = (self.moe_num_experts, at.at("gate"));
        let gate =
            Gate { gate: place.linear("gate", width, n, false)?, router_bias: place.param("router_bias", &[n])? };
        let experts = GatedExperts::load(&at.at("switch_mlp"), [n, width, self.moe_intermediate_size], false, swiglu)?;
        let router = Router {
            rule: Rule::Sigmoid,
            scale: self.moe_router_scaling_factor,
            ..Router::softmax(self.moe_top_k, self.norm_expert_weight)
        };
        Ok(Product::Experts(Experts {
            gate,
            switch_mlp: experts.with_limit(limit(&self.swiglu_limits, i)),
            share_expert: Mlp::load(&at.at("share_expert"), width, self.share_expert_dim, shared)?,
            router,
        }))
    }
}

/// The makers' names, whose norms are stored less one.
const NAMES: [(&str, &str); 6] = [
    (".moe.gate_proj.", ".mlp.switch_mlp.gate_proj."),
    (".moe.up_proj.", ".mlp.switch_mlp.up_proj."),
    (".moe.down_proj.", ".mlp.switch_mlp.down_proj."),
    (".moe.gate.", ".mlp.gate.gate."),
    (".moe.router_bias", ".mlp.gate.router_bias"),
    (".share_expert.", ".mlp.share_expert."),
];

fn sanitize(config: &Config, tensors: &mut Arrays) -> Result<()> {
    tensors.retain(|name, _| !name.contains(".mtp"));
    drop_beyond(tensors, parse::<Args>(config)?.num_hidden_layers);
    let theirs = |name: &str| NAMES.iter().find(|(from, to)| name.contains(from) && !name.contains(to));
    let raw = tensors.keys().any(|name| theirs(name).is_some());
    for (name, mut tensor) in std::mem::take(tensors) {
        if raw && name.ends_with(".weight") && name.contains("norm") {
            tensor = ops::add(&tensor, 1.0)?;
        }
        let name = theirs(&name).map_or(name.clone(), |(from, to)| name.replace(from, to));
        tensors.insert(name, tensor);
    }
    Ok(())
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["step3p5"],
    sanitize,
    quantize: |path| eight_bits(path, &["mlp.gate.gate"]),
    load: |config, at| {
        let a: Args = parse(config)?;
        let norm = |at: &At, name: &str| Norm::rms(at, name, a.hidden_size, a.rms_norm_eps);
        let named = |at: &At, name| Ok::<_, Error>(Named(name, norm(at, name)?));
        let all = [a.vocab_size, a.hidden_size, a.num_hidden_layers];
        boxed(Backbone::load(at, FrameNames::model("norm"), all, Some(false), norm, |at, i| {
            Ok(NamedBlock {
                mixer: Named("self_attn", a.attention(&at, i)?),
                product: Named("mlp", a.product(&at, i)?),
                before: named(&at, "input_layernorm")?,
                between: Some(named(&at, "post_attention_layernorm")?),
                parallel: false,
            })
        })?)
    },
};
