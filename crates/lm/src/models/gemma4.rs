//! Gemma 4: heads of two widths behind windows and without, keys that later layers share, an embedding of each token for
//! each layer, experts beside the product.

use super::common::eight_bits;
use super::gemma_common::{Look, PerLayer, capped, owners, scaled, sharing};
use super::sanitize::{halves, replace};
use super::settings::wrong;
use super::wrapped::{Wrapped, text, unwrap_text};
use super::{Architecture, Config, Model, Settings, drop_tied_head};
use crate::batch::Batch;
use crate::blocks::{GatedExperts, Heads, Mlp, Rope, Router, mix};
use crate::weights::At;
use lapis::io::Arrays;
use lapis::ops::fast::rms_norm;
use lapis::{Array, Error, Result, ops};
use lapis_nn::activations::gelu_approx;
use lapis_nn::{Embedding, Layer, Linear, Module, Param, RMSNorm};
use serde_json::{Value, json};

pub(super) const TEXT: Architecture = Architecture {
    sanitize,
    quantize: |path| eight_bits(path, &["router.proj"]),
    ..Architecture::plain(&["gemma4_text"], |config, at| Ok(Box::new(Gemma4::load(config, at)?)))
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["gemma4", "gemma4_unified"],
    sanitize: |config, tensors| {
        unwrap_text(config, tensors)?;
        sanitize(&inside(config)?, tensors)
    },
    load: |config, at| {
        let language_model = Gemma4::load(&inside(config)?, &at.at("language_model"))?;
        Ok(Box::new(Wrapped { language_model }))
    },
    ..TEXT
};

fn inside(config: &Config) -> Result<Config> {
    text(config, json!({ "vocab_size": 262144, "num_attention_heads": 8, "num_key_value_heads": 1 }))
}

fn settings(config: &Config) -> Settings {
    Settings::new(
        config,
        json!({
            "hidden_size": 1536, "num_hidden_layers": 35, "intermediate_size": 6144, "num_attention_heads": 8,
            "head_dim": 256, "global_head_dim": 512, "rms_norm_eps": 1e-6, "vocab_size": 262144,
            "vocab_size_per_layer_input": 262144, "num_key_value_heads": 1, "num_kv_shared_layers": 20,
            "hidden_size_per_layer_input": 256, "sliding_window": 512, "sliding_window_pattern": 5,
            "max_position_embeddings": 131072, "final_logit_softcapping": 30.0, "use_double_wide_mlp": true,
            "tie_word_embeddings": true,
            "rope_parameters": {
                "full_attention": { "partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional" },
                "sliding_attention": { "rope_theta": 1e4 },
            },
        }),
    )
}

fn sanitize(config: &Config, tensors: &mut Arrays) -> Result<()> {
    let s = settings(config);
    let (layers, shared) = sharing(&s)?;
    let buffers = ["rotary_emb", "input_max", "input_min", "output_max", "output_min"];
    let number = |name: &str| name.split("layers.").nth(1)?.split('.').next()?.parse::<usize>().ok();
    let keys = [".self_attn.k_proj.", ".self_attn.v_proj.", ".self_attn.k_norm."];
    let unused = |name: &str| {
        keys.iter().any(|k| name.contains(k)) && number(name).is_some_and(|layer| layer >= layers - shared)
    };
    tensors.retain(|name, _| !buffers.iter().any(|b| name.contains(b)) && !unused(name));
    let both = ["experts.switch_glu.gate_proj.weight", "experts.switch_glu.up_proj.weight"];
    replace(tensors, "experts.gate_up_proj", both, |w| halves(w, -2))?;
    replace(tensors, "experts.down_proj", ["experts.switch_glu.down_proj.weight"], |w| Ok([w.clone()]))?;
    drop_tied_head(s.is("tie_word_embeddings")?, tensors);
    Ok(())
}

/// The logits of experts.
#[derive(Module, Clone)]
struct Chooser {
    proj: Linear,
    scale: Param,
    per_expert_scale: Param,
    #[plain]
    router: Router,
    #[plain]
    eps: f64,
}

#[derive(Module, Clone)]
struct Switch {
    switch_glu: GatedExperts,
}

/// Experts beside the product, with norms of their own.
#[derive(Module, Clone)]
struct Experts {
    router: Chooser,
    experts: Switch,
    post_feedforward_layernorm_1: RMSNorm,
    post_feedforward_layernorm_2: RMSNorm,
    pre_feedforward_layernorm_2: RMSNorm,
}

impl Experts {
    /// What the experts and the product make of rows: `dense` is the product's.
    fn add(&self, x: &Array, dense: &Array) -> Result<Array> {
        let r = &self.router;
        let root = (x.dim(1) as f64).powf(-0.5);
        let seen = rms_norm(x, Some(&ops::multiply(r.scale.value(), root)?), r.eps)?;
        let (chosen, weights) = r.router.route(&r.proj.forward(&seen)?, None)?;
        let weights = ops::multiply(&weights, ops::take(r.per_expert_scale.value(), &chosen, 0)?)?;
        let y = self.experts.switch_glu.forward(&self.pre_feedforward_layernorm_2.forward(x)?, &chosen)?;
        let y = self.post_feedforward_layernorm_2.forward(&mix(&y, &ops::astype(&weights, x.dtype())?)?)?;
        ops::add(self.post_feedforward_layernorm_1.forward(dense)?, y)
    }
}

/// What a layer takes from the embedding of the token for it.
#[derive(Module, Clone)]
struct Own {
    per_layer_input_gate: Linear,
    per_layer_projection: Linear,
    post_per_layer_input_norm: RMSNorm,
}

#[derive(Module, Clone)]
struct Block {
    self_attn: Look,
    mlp: Mlp,
    input_layernorm: RMSNorm,
    post_attention_layernorm: RMSNorm,
    pre_feedforward_layernorm: RMSNorm,
    post_feedforward_layernorm: RMSNorm,
    #[flatten]
    experts: Option<Experts>,
    #[flatten]
    own: Option<Own>,
    layer_scalar: Param,
}

impl Block {
    fn forward(&self, x: &Array, own: Option<&Array>, layer: usize, batch: &mut Batch) -> Result<Array> {
        let y = self.self_attn.forward(&self.input_layernorm.forward(x)?, layer, batch)?;
        let x = ops::add(x, self.post_attention_layernorm.forward(&y)?)?;
        let mut y = self.mlp.forward(&self.pre_feedforward_layernorm.forward(&x)?)?;
        if let Some(experts) = &self.experts {
            y = experts.add(&x, &y)?;
        }
        let mut x = ops::add(&x, self.post_feedforward_layernorm.forward(&y)?)?;
        if let (Some(o), Some(own)) = (&self.own, own) {
            let gate = gelu_approx(&o.per_layer_input_gate.forward(&x)?)?;
            let y = o.per_layer_projection.forward(&ops::multiply(&gate, own)?)?;
            x = ops::add(&x, o.post_per_layer_input_norm.forward(&y)?)?;
        }
        ops::multiply(&x, self.layer_scalar.value())
    }
}

#[derive(Module, Clone)]
struct Body {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RMSNorm,
    #[flatten]
    per_layer: Option<PerLayer>,
}

#[derive(Module, Clone)]
struct Gemma4 {
    model: Body,
    lm_head: Option<Linear>,
    #[plain]
    cap: Option<f64>,
}

impl Gemma4 {
    fn load(config: &Config, at: &At) -> Result<Gemma4> {
        let s = settings(config);
        let (layers, shared) = sharing(&s)?;
        let (width, inner): (usize, usize) = (s.need("hidden_size")?, s.need("intermediate_size")?);
        let (vocabulary, eps): (usize, f64) = (s.need("vocab_size")?, s.need("rms_norm_eps")?);
        let pattern: usize = s.need("sliding_window_pattern")?;
        let kinds = s.kinds(layers, Some(pattern))?;
        let owners = owners(&kinds, shared)?;
        let own_width: usize = s.get("hidden_size_per_layer_input")?.unwrap_or(0);
        let tied = s.is("tie_word_embeddings")?;
        let body = at.at("model");
        let norm = |at: &At, name: &str| at.rms_norm(name, width, eps);
        let layer = |at: At, i: usize| {
            let wide = s.is("use_double_wide_mlp")? && shared > 0 && i >= layers - shared;
            let shares = i >= layers - shared;
            let own = match own_width {
                0 => None,
                n => Some(Own {
                    per_layer_input_gate: at.linear("per_layer_input_gate", width, n, false)?,
                    per_layer_projection: at.linear("per_layer_projection", n, width, false)?,
                    post_per_layer_input_norm: norm(&at, "post_per_layer_input_norm")?,
                }),
            };
            let inner = if wide { 2 * inner } else { inner };
            Ok(Block {
                self_attn: look(&s, &at.at("self_attn"), &kinds[i], owners[i], shares)?,
                mlp: Mlp::load(&at.at("mlp"), width, inner, false, gelu_approx)?,
                input_layernorm: norm(&at, "input_layernorm")?,
                post_attention_layernorm: norm(&at, "post_attention_layernorm")?,
                pre_feedforward_layernorm: norm(&at, "pre_feedforward_layernorm")?,
                post_feedforward_layernorm: norm(&at, "post_feedforward_layernorm")?,
                experts: if s.is("enable_moe_block")? { Some(experts(&s, &at, width, eps)?) } else { None },
                own,
                layer_scalar: at.param("layer_scalar", &[1])?,
            })
        };
        let per_layer = || {
            let tokens: usize = s.need("vocab_size_per_layer_input")?;
            PerLayer::load(&body, tokens, width, own_width, layers, eps)
        };
        Ok(Gemma4 {
            model: Body {
                embed_tokens: body.embedding("embed_tokens", vocabulary, width)?,
                layers: body.list("layers", layers, layer)?,
                norm: norm(&body, "norm")?,
                per_layer: (own_width > 0).then(per_layer).transpose()?,
            },
            lm_head: (!tied).then(|| at.linear("lm_head", width, vocabulary, false)).transpose()?,
            cap: s.get::<f64>("final_logit_softcapping")?.filter(|&cap| cap > 0.0),
        })
    }
}

/// Attention of a layer of a kind.
fn look(s: &Settings, at: &At, kind: &str, owner: usize, shares: bool) -> Result<Look> {
    let (width, count): (usize, usize) = (s.need("hidden_size")?, s.need("num_attention_heads")?);
    let full = kind == "full_attention";
    let head: usize = s.get("global_head_dim")?.filter(|&n| n > 0 && full).map_or_else(|| s.need("head_dim"), Ok)?;
    let same = full && s.is("attention_k_eq_v")?;
    let usual = || s.need("num_key_value_heads");
    let keys: usize = s.get("num_global_key_value_heads")?.filter(|_| same).map_or_else(usual, Ok)?;
    if keys == 0 || !count.is_multiple_of(keys) {
        return Err(wrong("num_attention_heads", format!("{count} is no multiple of {keys} heads of keys")));
    }
    let blocks: Config = s.need("rope_parameters")?;
    let block = blocks.get(kind).and_then(Value::as_object);
    let theta = block.and_then(|b| b.get("rope_theta")).and_then(Value::as_f64).unwrap_or(1e4);
    if theta.is_nan() || theta <= 1.0 {
        return Err(wrong("rope_theta", format!("{theta} is not above 1")));
    }
    let rope = Rope::new(head, theta, s.is("rope_traditional")?, block, s.get("max_position_embeddings")?)?;
    let window: Option<usize> = s.get("sliding_window")?.filter(|&w| w > 0);
    let heads = Heads {
        scale: 1.0,
        window: window.filter(|_| kind == "sliding_attention"),
        ..Heads::new(count, keys, head, Some(rope))
    };
    let eps = s.need("rms_norm_eps")?;
    let project = |name: &str| at.linear(name, width, keys * head, false);
    Ok(Look {
        q_proj: at.linear("q_proj", width, count * head, false)?,
        k_proj: (!shares).then(|| project("k_proj")).transpose()?,
        v_proj: (!shares && !same).then(|| project("v_proj")).transpose()?,
        o_proj: at.linear("o_proj", count * head, width, false)?,
        q_norm: at.rms_norm("q_norm", head, eps)?,
        k_norm: (!shares).then(|| at.rms_norm("k_norm", head, eps)).transpose()?,
        heads,
        owner,
        eps,
    })
}

fn experts(s: &Settings, at: &At, width: usize, eps: f64) -> Result<Experts> {
    let (n, inner): (usize, usize) = (s.need("num_experts")?, s.need("moe_intermediate_size")?);
    let (router, norm) = (at.at("router"), |name: &str| at.rms_norm(name, width, eps));
    let join = |gate: &Array, up: &Array| ops::multiply(gelu_approx(gate)?, up);
    Ok(Experts {
        router: Chooser {
            proj: router.linear("proj", width, n, false)?,
            scale: router.param("scale", &[width])?,
            per_expert_scale: router.param("per_expert_scale", &[n])?,
            router: Router::top(s.need("top_k_experts")?),
            eps,
        },
        experts: Switch {
            switch_glu: GatedExperts::load(&at.at("experts").at("switch_glu"), [n, width, inner], false, join)?,
        },
        post_feedforward_layernorm_1: norm("post_feedforward_layernorm_1")?,
        post_feedforward_layernorm_2: norm("post_feedforward_layernorm_2")?,
        pre_feedforward_layernorm_2: norm("pre_feedforward_layernorm_2")?,
    })
}

impl Model for Gemma4 {
    fn hidden(&self, tokens: &Array, batch: &mut Batch) -> Result<Array> {
        let m = &self.model;
        let x = m.embed_tokens.forward(tokens)?;
        let mut x = scaled(&x, (x.dim(1) as f64).sqrt())?;
        let own = m.per_layer.as_ref().map(|p| p.forward(&x, tokens)).transpose()?;
        let shared = m.layers.iter().enumerate().filter(|(i, l)| l.self_attn.owner != *i);
        shared.for_each(|(_, l)| batch.share(l.self_attn.owner));
        for (i, layer) in m.layers.iter().enumerate() {
            let place = |e: Error| Error::new(e.kind(), format!("layer {i}: {e}"));
            x = layer.forward(&x, own.as_ref().map(|all| &all[i]), i, batch).map_err(place)?;
        }
        m.norm.forward(&x)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let y = match &self.lm_head {
            Some(head) => head.forward(hidden)?,
            None => self.model.embed_tokens.as_linear(hidden)?,
        };
        capped(y, self.cap)
    }

    fn module(&self) -> &dyn Module {
        self
    }

    fn module_mut(&mut self) -> &mut dyn Module {
        self
    }

    fn depth(&self) -> usize {
        self.model.layers.len()
    }
}
