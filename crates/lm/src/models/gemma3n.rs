//! Gemma 3n: four streams of rows, of which each layer computes one and foretells the others (AltUp), a narrow way around
//! each layer (Laurel), products of the largest gates alone, keys that later layers share, embeddings for each layer.

use super::gemma_common::{Look, PerLayer, capped, owners, scaled, sharing};
use super::settings::wrong;
use super::wrapped::{OTHERS, text};
use super::{Architecture, Config, Model, Settings};
use crate::batch::Batch;
use crate::blocks::{Heads, Rope};
use crate::weights::At;
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::activations::gelu_approx;
use lapis_nn::{Embedding, Layer, Linear, Module, Param, RMSNorm};
use serde_json::{Value, json};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    sanitize: |_, tensors| {
        tensors.retain(|name, _| !name.split('.').take(3).any(|part| OTHERS.contains(&part)));
        Ok(())
    },
    ..Architecture::plain(&["gemma3n"], |config, at| Ok(Box::new(Gemma3n::load(&text(config, json!({}))?, at)?)))
};

/// A gated product; with `cut`, of gates that are so many deviations above their mean.
#[derive(Module, Clone)]
struct Sparse {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    #[plain]
    cut: Option<f32>,
}

impl Sparse {
    fn forward(&self, x: &Array) -> Result<Array> {
        let mut gate = self.gate_proj.forward(x)?;
        if let Some(cut) = self.cut {
            let (mean, deviation) = (ops::mean(&gate, -1, true)?, ops::std(&gate, -1, true, 0)?);
            let border = ops::add(&mean, scaled(&deviation, f64::from(cut))?)?;
            gate = ops::maximum(ops::subtract(&gate, border)?, 0.0)?;
        }
        self.down_proj.forward(&ops::multiply(gelu_approx(&gate)?, self.up_proj.forward(x)?)?)
    }
}

/// Foretells streams from one another, and corrects them by what a layer made of one.
#[derive(Module, Clone)]
struct AltUp {
    correct_output_scale: Param,
    correction_coefs: Linear,
    prediction_coefs: Linear,
    modality_router: Linear,
    router_norm: RMSNorm,
    /// The stream that layers compute.
    #[plain]
    active: usize,
    #[plain]
    clip: Option<f64>,
    #[plain]
    scales: bool,
}

impl AltUp {
    fn modalities(&self, x: &Array) -> Result<Array> {
        let rows = scaled(&self.router_norm.forward(x)?, 1.0 / x.dim(1) as f64)?;
        ops::tanh(&ops::astype(&self.modality_router.forward(&rows)?, Dtype::Float32)?)
    }

    /// Rows times a matrix of coefficients, in f32.
    fn coefficients(&self, layer: &Linear, x: &Array) -> Result<Array> {
        let mut w = ops::astype(&layer.weight.numbers()?, Dtype::Float32)?;
        if let Some(clip) = self.clip {
            w = ops::clip(&w, Some(&-clip), Some(&clip))?;
        }
        ops::matmul(x, &ops::transpose(&w, None)?)
    }

    /// Column `i` of rows, as a column.
    fn column(all: &Array, i: usize) -> Result<Array> {
        ops::slice(all, &[(None, None, 1), (Some(i as i64), Some(i as i64 + 1), 1)])
    }

    fn predict(&self, streams: &[Array]) -> Result<Vec<Array>> {
        let n = streams.len();
        let all = self.coefficients(&self.prediction_coefs, &self.modalities(&streams[self.active])?)?;
        let wide: Vec<Array> = streams.iter().map(|x| ops::astype(x, Dtype::Float32)).collect::<Result<_>>()?;
        let one = |i: usize| {
            let mut sum = ops::multiply(&wide[0], AltUp::column(&all, i * n)?)?;
            for (j, x) in wide.iter().enumerate().skip(1) {
                sum = ops::add(&sum, ops::multiply(x, AltUp::column(&all, i * n + j)?)?)?;
            }
            ops::astype(&ops::add(&sum, &wide[i])?, streams[i].dtype())
        };
        (0..n).map(one).collect()
    }

    fn correct(&self, streams: &[Array], computed: &Array) -> Result<Vec<Array>> {
        let all = self.coefficients(&self.correction_coefs, &self.modalities(computed)?)?;
        let all = ops::add(&all, 1.0)?;
        let news = ops::subtract(computed, &streams[self.active])?;
        let one = |(i, x): (usize, &Array)| {
            let y = ops::add(ops::multiply(&news, AltUp::column(&all, i)?)?, x)?;
            ops::astype(&y, computed.dtype())
        };
        streams.iter().enumerate().map(one).collect()
    }
}

#[derive(Module, Clone)]
struct Laurel {
    linear_left: Linear,
    linear_right: Linear,
    post_laurel_norm: RMSNorm,
}

#[derive(Module, Clone)]
struct Block {
    self_attn: Look,
    mlp: Sparse,
    input_layernorm: RMSNorm,
    post_attention_layernorm: RMSNorm,
    pre_feedforward_layernorm: RMSNorm,
    post_feedforward_layernorm: RMSNorm,
    altup: AltUp,
    laurel: Laurel,
    per_layer_input_gate: Linear,
    per_layer_projection: Linear,
    post_per_layer_input_norm: RMSNorm,
}

impl Block {
    fn forward(&self, streams: &[Array], own: &Array, layer: usize, batch: &mut Batch) -> Result<Vec<Array>> {
        let foretold = self.altup.predict(streams)?;
        let x = &foretold[self.altup.active];
        let rows = self.input_layernorm.forward(x)?;
        let narrow = self.laurel.linear_right.forward(&self.laurel.linear_left.forward(&rows)?)?;
        let around = ops::add(&rows, self.laurel.post_laurel_norm.forward(&narrow)?)?;
        let y = self.post_attention_layernorm.forward(&self.self_attn.forward(&rows, layer, batch)?)?;
        let x = scaled(&ops::add(ops::add(x, y)?, around)?, 0.5f64.sqrt())?;
        let y = self.mlp.forward(&self.pre_feedforward_layernorm.forward(&x)?)?;
        let y = ops::add(&x, self.post_feedforward_layernorm.forward(&y)?)?;
        let mut all = self.altup.correct(&foretold, &y)?;
        let mut first = all[self.altup.active].clone();
        if self.altup.scales {
            first = ops::multiply(&first, self.altup.correct_output_scale.value())?;
        }
        let gate = gelu_approx(&self.per_layer_input_gate.forward(&first)?)?;
        let y = self.per_layer_projection.forward(&ops::multiply(&gate, own)?)?;
        let y = self.post_per_layer_input_norm.forward(&y)?;
        for x in all.iter_mut().skip(1) {
            *x = ops::add(&*x, &y)?;
        }
        Ok(all)
    }
}

#[derive(Module, Clone)]
struct Body {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    #[flatten]
    per_layer: PerLayer,
    altup_projections: Vec<Linear>,
    altup_unembed_projections: Vec<Linear>,
    norm: RMSNorm,
    /// Tokens that have embeddings for layers.
    #[plain]
    own_tokens: usize,
    #[plain]
    cap: Option<f64>,
}

#[derive(Module, Clone)]
struct Outer {
    language_model: Body,
}

#[derive(Module, Clone)]
struct Gemma3n {
    model: Outer,
}

/// A number for all layers, or a list with one a layer.
fn of_layer(s: &Settings, key: &str, layer: usize) -> Result<f64> {
    let value: Value = s.need(key)?;
    let number = match &value {
        Value::Array(all) => all.get(layer).and_then(Value::as_f64),
        v => v.as_f64(),
    };
    number.ok_or_else(|| wrong(key, format!("no number for layer {layer}")))
}

/// `sqrt(2) erfinv(2 p - 1)`: how many deviations above the mean the part `p` of a normal distribution ends.
fn quantile(p: f64) -> Result<f32> {
    let x = Array::from_vec(vec![(2.0 * p - 1.0) as f32], &[1]);
    Ok(ops::erfinv(&x)?.to_vec::<f32>()?[0] * std::f32::consts::SQRT_2)
}

impl Gemma3n {
    fn load(config: &Config, at: &At) -> Result<Gemma3n> {
        let s = Settings::new(
            config,
            json!({
                "hidden_size": 2048, "num_hidden_layers": 35, "intermediate_size": 16384, "num_attention_heads": 8,
                "head_dim": 256, "rms_norm_eps": 1e-6, "vocab_size": 262400, "num_key_value_heads": 2,
                "num_kv_shared_layers": 15, "vocab_size_per_layer_input": 262144, "sliding_window": 512,
                "max_position_embeddings": 32768, "rope_local_base_freq": 1e4, "rope_theta": 1e6,
                "final_logit_softcapping": 30.0, "hidden_size_per_layer_input": 256, "altup_num_inputs": 4,
                "altup_coef_clip": 120.0, "altup_correct_scale": true, "altup_active_idx": 0, "laurel_rank": 64,
                "activation_sparsity_pattern": 0.0,
            }),
        );
        let (layers, shared) = sharing(&s)?;
        let streams: usize = s.need("altup_num_inputs")?;
        let active: usize = s.need("altup_active_idx")?;
        if active >= streams || streams > 64 {
            return Err(wrong("altup_active_idx", format!("{active} of {streams} streams (up to 64)")));
        }
        let kinds = s.kinds(layers, Some(5))?;
        let owners = owners(&kinds, shared)?;
        let (width, vocabulary): (usize, usize) = (s.need("hidden_size")?, s.need("vocab_size")?);
        let (eps, own): (f64, usize) = (s.need("rms_norm_eps")?, s.need("hidden_size_per_layer_input")?);
        let own_tokens: usize = s.need("vocab_size_per_layer_input")?;
        let norm = |at: &At, name: &str| at.rms_norm(name, width, eps);
        let rank: usize = s.need("laurel_rank")?;
        let body = at.at("model").at("language_model");
        let layer = |at: At, i: usize| {
            let (mlp, altup, laurel) = (at.at("mlp"), at.at("altup"), at.at("laurel"));
            let inner = of_layer(&s, "intermediate_size", i)?;
            if !(1.0..1e9).contains(&inner) {
                return Err(wrong("intermediate_size", format!("{inner} is not a size")));
            }
            let (inner, sparsity) = (inner as usize, of_layer(&s, "activation_sparsity_pattern", i)?);
            if !(0.0..1.0).contains(&sparsity) {
                return Err(wrong("activation_sparsity_pattern", format!("{sparsity} is not between 0 and 1")));
            }
            Ok(Block {
                self_attn: look(&s, &at.at("self_attn"), &kinds[i], owners[i], owners[i] != i)?,
                mlp: Sparse {
                    gate_proj: mlp.linear("gate_proj", width, inner, false)?,
                    up_proj: mlp.linear("up_proj", width, inner, false)?,
                    down_proj: mlp.linear("down_proj", inner, width, false)?,
                    cut: (sparsity > 0.0).then(|| quantile(sparsity)).transpose()?,
                },
                input_layernorm: norm(&at, "input_layernorm")?,
                post_attention_layernorm: norm(&at, "post_attention_layernorm")?,
                pre_feedforward_layernorm: norm(&at, "pre_feedforward_layernorm")?,
                post_feedforward_layernorm: norm(&at, "post_feedforward_layernorm")?,
                altup: AltUp {
                    correct_output_scale: altup.param("correct_output_scale", &[width])?,
                    correction_coefs: altup.linear("correction_coefs", streams, streams, false)?,
                    prediction_coefs: altup.linear("prediction_coefs", streams, streams * streams, false)?,
                    modality_router: altup.linear("modality_router", width, streams, false)?,
                    router_norm: norm(&altup, "router_norm")?,
                    active,
                    clip: s.get("altup_coef_clip")?,
                    scales: s.is("altup_correct_scale")?,
                },
                laurel: Laurel {
                    linear_left: laurel.linear("linear_left", width, rank, false)?,
                    linear_right: laurel.linear("linear_right", rank, width, false)?,
                    post_laurel_norm: norm(&laurel, "post_laurel_norm")?,
                },
                per_layer_input_gate: at.linear("per_layer_input_gate", width, own, false)?,
                per_layer_projection: at.linear("per_layer_projection", own, width, false)?,
                post_per_layer_input_norm: norm(&at, "post_per_layer_input_norm")?,
            })
        };
        let square = |name: &str| {
            let at = body.at(name);
            (0..streams - 1).map(|i| at.linear(&i.to_string(), width, width, false)).collect::<Result<Vec<_>>>()
        };
        let language_model = Body {
            embed_tokens: body.embedding("embed_tokens", vocabulary, width)?,
            layers: body.list("layers", layers, layer)?,
            per_layer: PerLayer::load(&body, own_tokens, width, own, layers, eps)?,
            altup_projections: square("altup_projections")?,
            altup_unembed_projections: square("altup_unembed_projections")?,
            norm: norm(&body, "norm")?,
            own_tokens,
            cap: s.get::<f64>("final_logit_softcapping")?.filter(|&cap| cap > 0.0),
        };
        Ok(Gemma3n { model: Outer { language_model } })
    }
}

/// Attention of a layer of a kind; of one that shares keys, the file may have projections all the same.
fn look(s: &Settings, at: &At, kind: &str, owner: usize, shares: bool) -> Result<Look> {
    let (width, count): (usize, usize) = (s.need("hidden_size")?, s.need("num_attention_heads")?);
    let (head, keys): (usize, usize) = (s.need("head_dim")?, s.need("num_key_value_heads")?);
    if keys == 0 || !count.is_multiple_of(keys) {
        return Err(wrong("num_attention_heads", format!("{count} is no multiple of {keys} heads of keys")));
    }
    let sliding = kind == "sliding_attention";
    let key = if sliding { "rope_local_base_freq" } else { "rope_theta" };
    let theta: f64 = s.need(key)?;
    if theta.is_nan() || theta <= 1.0 {
        return Err(wrong(key, format!("{theta} is not above 1")));
    }
    let rope = Rope::new(head, theta, false, None, None)?;
    let window: Option<usize> = s.get("sliding_window")?.filter(|&w| w > 0 && sliding);
    let eps = s.need("rms_norm_eps")?;
    let there = |name: &str| !shares || at.at(name).has("weight");
    let project = |name: &str| there(name).then(|| at.linear(name, width, keys * head, false)).transpose();
    Ok(Look {
        q_proj: at.linear("q_proj", width, count * head, false)?,
        k_proj: project("k_proj")?,
        v_proj: project("v_proj")?,
        o_proj: at.linear("o_proj", count * head, width, false)?,
        q_norm: at.rms_norm("q_norm", head, eps)?,
        k_norm: there("k_norm").then(|| at.rms_norm("k_norm", head, eps)).transpose()?,
        heads: Heads { scale: 1.0, window, ..Heads::new(count, keys, head, Some(rope)) },
        owner,
        // mlx-lm's norm of values has an eps of its own.
        eps: 1e-5,
    })
}

/// The root of the mean square of each row.
fn magnitude(x: &Array) -> Result<Array> {
    ops::sqrt(&ops::mean(&ops::square(x)?, -1, true)?)
}

impl Model for Gemma3n {
    fn hidden(&self, tokens: &Array, batch: &mut Batch) -> Result<Array> {
        let m = &self.model.language_model;
        let x = m.embed_tokens.forward(tokens)?;
        let x = scaled(&x, (x.dim(1) as f64).sqrt())?;
        // Tokens beyond the table of the layers are as the first.
        let inside = ops::less(tokens, m.own_tokens as i32)?;
        let own = ops::select(&inside, tokens, ops::zeros_like(tokens, None)?)?;
        let own = m.per_layer.forward(&x, &own)?;
        let target = magnitude(&x)?;
        let like = |y: Array| -> Result<Array> {
            let factor = ops::divide(&target, magnitude(&y)?)?;
            ops::multiply(&y, factor)
        };
        let mut streams = vec![x.clone()];
        for project in &m.altup_projections {
            streams.push(like(project.forward(&x)?)?);
        }
        let shared = m.layers.iter().enumerate().filter(|(i, l)| l.self_attn.owner != *i);
        shared.for_each(|(_, l)| batch.share(l.self_attn.owner));
        for (i, layer) in m.layers.iter().enumerate() {
            let place = |e: Error| Error::new(e.kind(), format!("layer {i}: {e}"));
            streams = layer.forward(&streams, &own[i], i, batch).map_err(place)?;
        }
        let target = magnitude(&streams[0])?;
        for (x, project) in streams.iter_mut().skip(1).zip(&m.altup_unembed_projections) {
            let y = project.forward(x)?;
            *x = ops::multiply(&y, ops::divide(&target, magnitude(&y)?)?)?;
        }
        m.norm.forward(&ops::mean(&ops::stack(&streams, 0)?, 0, false)?)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let m = &self.model.language_model;
        capped(m.embed_tokens.as_linear(hidden)?, m.cap)
    }

    fn module(&self) -> &dyn Module {
        self
    }

    fn module_mut(&mut self) -> &mut dyn Module {
        self
    }

    fn depth(&self) -> usize {
        self.model.language_model.layers.len()
    }
}
