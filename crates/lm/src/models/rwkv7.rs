//! RWKV 7: no attention; a matrix for each head that forgets by channel and takes back what it wrote under a key.

use super::common::{boxed, eight_bits, multiple};
use super::{Architecture, Model, Packing, parse};
use crate::batch::Batch;
use crate::blocks::Norm;
use crate::weights::At;
use lapis::ops::fast::layer_norm;
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::activations::relu2;
use lapis_nn::{Embedding, Layer, Linear, Module, Param};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    norm_eps: f64,
    head_dim: usize,
    num_hidden_layers: usize,
    a_low_rank_dim: usize,
    v_low_rank_dim: usize,
    gate_low_rank_dim: usize,
    decay_low_rank_dim: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
}

/// The two layers of a product of low rank.
#[derive(Module, Clone)]
struct Pair {
    #[name = "0"]
    down: Linear,
    #[name = "2"]
    up: Linear,
}

#[derive(Module, Clone)]
struct Lora {
    lora: Pair,
}

impl Lora {
    fn load(at: &At, width: usize, rank: usize, bias: bool) -> Result<Lora> {
        let at = at.at("lora");
        Ok(Lora { lora: Pair { down: at.linear("0", width, rank, false)?, up: at.linear("2", rank, width, bias)? } })
    }

    fn forward(&self, x: &Array, between: fn(&Array) -> Result<Array>) -> Result<Array> {
        self.lora.up.forward(&between(&self.lora.down.forward(x)?)?)
    }
}

fn same(x: &Array) -> Result<Array> {
    Ok(x.clone())
}

/// A norm for each head, by mean and variance: (heads, width).
#[derive(Module, Clone)]
struct HeadNorm {
    weight: Param,
    bias: Param,
}

/// The row before each row of a sequence, remembered in `place`.
fn before(x: &Array, place: usize, batch: &mut Batch) -> Result<Array> {
    batch.each(place, &[x], |rows, slot| {
        let (x, n) = (&rows[0], rows[0].dim(0) as i64);
        let first = match slot.state().and_then(<[Array]>::first) {
            Some(last) => last.clone(),
            None => ops::full(&[1, x.dim(1)], 0.0, Some(x.dtype()))?,
        };
        let all = ops::concatenate(&[first, x.clone()], 0)?;
        slot.set_state(vec![ops::contiguous(&ops::slice(&all, &[(Some(n), None, 1)])?, false)?]);
        ops::slice(&all, &[(None, Some(n), 1)])
    })
}

#[derive(Module, Clone)]
struct TimeMix {
    x_r: Param,
    x_w: Param,
    x_k: Param,
    x_v: Param,
    x_a: Param,
    x_g: Param,
    k_k: Param,
    k_a: Param,
    r_k: Param,
    r_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    g_norm: HeadNorm,
    w_lora: Lora,
    v_lora: Option<Lora>,
    a_lora: Lora,
    g_lora: Lora,
}

impl TimeMix {
    fn load(at: &At, a: &Args, layer: usize) -> Result<TimeMix> {
        let (width, heads) = (a.hidden_size, [a.hidden_size / a.head_dim.max(1), a.head_dim]);
        let mixed = |name: &str| at.param(name, &[1, 1, width]);
        let head = |at: &At, name: &str| at.param(name, &heads);
        let linear = |name: &str| at.linear(name, width, width, false);
        let lora = |name: &str, rank: usize, bias: bool| Lora::load(&at.at(name), width, rank, bias);
        let norm = at.at("g_norm");
        Ok(TimeMix {
            x_r: mixed("x_r")?,
            x_w: mixed("x_w")?,
            x_k: mixed("x_k")?,
            x_v: mixed("x_v")?,
            x_a: mixed("x_a")?,
            x_g: mixed("x_g")?,
            k_k: head(at, "k_k")?,
            k_a: head(at, "k_a")?,
            r_k: head(at, "r_k")?,
            r_proj: linear("r_proj")?,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            o_proj: linear("o_proj")?,
            g_norm: HeadNorm { weight: head(&norm, "weight")?, bias: head(&norm, "bias")? },
            w_lora: lora("w_lora", a.decay_low_rank_dim, true)?,
            v_lora: (layer > 0).then(|| lora("v_lora", a.v_low_rank_dim, true)).transpose()?,
            a_lora: lora("a_lora", a.a_low_rank_dim, true)?,
            g_lora: lora("g_lora", a.gate_low_rank_dim, false)?,
        })
    }

    /// Rows to rows; `first` holds the values of the first layer, and is filled by it.
    fn forward(&self, x: &Array, first: &mut Option<Array>, place: usize, batch: &mut Batch) -> Result<Array> {
        let rows = x.dim(0) as i64;
        let (heads, width) = (self.k_k.dim(0) as i64, self.k_k.dim(1) as i64);
        let split = |x: Array| ops::reshape(&x, &[rows, heads, width]);
        let change = ops::subtract(before(x, place, batch)?, x)?;
        let mixed = |by: &Param| ops::add(x, ops::multiply(&change, ops::reshape(by, &[1, -1])?)?);
        let (xv, last) = (mixed(&self.x_v)?, -1);
        let r = split(self.r_proj.forward(&mixed(&self.x_r)?)?)?;
        let k = split(self.k_proj.forward(&mixed(&self.x_k)?)?)?;
        let rate = split(ops::sigmoid(&self.a_lora.forward(&mixed(&self.x_a)?, same)?)?)?;
        let gate = self.g_lora.forward(&mixed(&self.x_g)?, ops::sigmoid)?;
        let mut v = split(self.v_proj.forward(&xv)?)?;
        match (&self.v_lora, &*first) {
            (Some(lora), Some(first)) => {
                let part = split(ops::sigmoid(&lora.forward(&xv, same)?)?)?;
                v = ops::add(&v, ops::multiply(&ops::subtract(first, &v)?, part)?)?;
            }
            _ => *first = Some(v.clone()),
        }
        let fade = ops::sigmoid(&split(self.w_lora.forward(&mixed(&self.x_w)?, ops::tanh)?)?)?;
        let w = ops::exp(&ops::multiply(ops::astype(&fade, Dtype::Float32)?, -0.606531)?)?;
        let key = ops::multiply(&k, self.k_k.value())?;
        let length = ops::sqrt(&ops::sum(&ops::square(&key)?, last, true)?)?;
        let key = ops::divide(&key, ops::maximum(&length, 1e-7)?)?;
        let k = ops::multiply(&k, ops::add(ops::multiply(ops::subtract(&rate, 1.0)?, self.k_a.value())?, 1.0)?)?;
        let written = ops::multiply(&key, &rate)?;
        let y = batch.each(place + 1, &[&r, &w, &k, &v, &key, &written], |rows, slot| {
            let (y, state) = recur(rows, slot.state().and_then(<[Array]>::first))?;
            slot.set_state(vec![state]);
            ops::astype(&y, x.dtype())
        })?;
        let y = layer_norm(&y, None, None, 64e-5)?;
        let y = ops::add(ops::multiply(&y, self.g_norm.weight.value())?, self.g_norm.bias.value())?;
        let own = ops::sum(&ops::multiply(ops::multiply(&r, &k)?, self.r_k.value())?, last, true)?;
        let y = ops::reshape(&ops::add(&y, ops::multiply(&own, &v)?)?, &[rows, -1])?;
        self.o_proj.forward(&ops::multiply(&y, &gate)?)
    }
}

/// For each row: `S = S diag(w) - (S key) written^T + v k^T`, `y = S r`, in float32, row by row. Inputs (rows, heads,
/// width): r, w, k, v, key, written; the state is (heads, width of values, width of keys).
fn recur(inputs: &[Array], state: Option<&Array>) -> Result<(Array, Array)> {
    let (rows, heads, width) = (inputs[0].dim(0), inputs[0].dim(1), inputs[0].dim(2));
    let mut state = match state {
        Some(state) => state.clone(),
        None => ops::zeros::<f32>(&[heads, width, width])?,
    };
    // Values stand along the rows of the matrix, everything else along its columns.
    let steps = |(i, x): (usize, &Array)| {
        let x = ops::astype(x, Dtype::Float32)?;
        ops::split(&ops::expand_dims(&x, if i == 3 { 3 } else { 2 })?, rows, 0)
    };
    let all: Vec<Vec<Array>> = inputs.iter().enumerate().map(steps).collect::<Result<_>>()?;
    let mut out = Vec::with_capacity(rows);
    for t in 0..rows {
        let part = |i: usize| ops::squeeze(&all[i][t], 0);
        let known = ops::sum(&ops::multiply(&state, part(4)?)?, -1, true)?;
        let change = ops::subtract(ops::multiply(part(3)?, part(2)?)?, ops::multiply(&known, part(5)?)?)?;
        state = ops::add(ops::multiply(&state, part(1)?)?, change)?;
        out.push(ops::sum(&ops::multiply(&state, part(0)?)?, -1, false)?);
    }
    Ok((ops::stack(&out, 0)?, state))
}

#[derive(Module, Clone)]
struct ChannelMix {
    key: Linear,
    value: Linear,
    x_k: Param,
}

impl ChannelMix {
    fn forward(&self, x: &Array, place: usize, batch: &mut Batch) -> Result<Array> {
        let change = ops::subtract(before(x, place, batch)?, x)?;
        let mixed = ops::add(x, ops::multiply(&change, self.x_k.value())?)?;
        self.value.forward(&relu2(&self.key.forward(&mixed)?)?)
    }
}

#[derive(Module, Clone)]
struct Block {
    pre_norm: Option<Norm>,
    attn: TimeMix,
    ffn: ChannelMix,
    attn_norm: Norm,
    ffn_norm: Norm,
}

#[derive(Module, Clone)]
struct Body {
    embeddings: Embedding,
    layers: Vec<Block>,
    norm: Norm,
}

#[derive(Module, Clone)]
struct Rwkv7 {
    model: Body,
    lm_head: Option<Linear>,
}

impl Model for Rwkv7 {
    fn hidden(&self, tokens: &Array, batch: &mut Batch) -> Result<Array> {
        let mut x = self.model.embeddings.forward(tokens)?;
        let mut first = None;
        for (i, layer) in self.model.layers.iter().enumerate() {
            // Three memories a layer.
            let mut step = |x: Array| -> Result<Array> {
                let x = layer.pre_norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))?;
                let y = layer.attn.forward(&layer.attn_norm.forward(&x)?, &mut first, 3 * i, batch)?;
                let x = ops::add(&x, y)?;
                ops::add(&x, layer.ffn.forward(&layer.ffn_norm.forward(&x)?, 3 * i + 2, batch)?)
            };
            x = step(x).map_err(|e| Error::new(e.kind(), format!("layer {i}: {e}")))?;
        }
        self.model.norm.forward(&x)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => self.model.embeddings.as_linear(hidden),
        }
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

fn packing(path: &str) -> Packing {
    match path.contains("lora.2") || path.contains("embeddings") {
        true => eight_bits(path, &[""]),
        false => Packing::Base,
    }
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["rwkv7"],
    sanitize: |config, tensors| {
        let width = parse::<Args>(config)?.head_dim as i64;
        for (name, tensor) in tensors.iter_mut() {
            if ["k_k", "k_a", "g_norm"].iter().any(|part| name.contains(part)) {
                *tensor = ops::reshape(&*tensor, &[-1, width])?;
            }
        }
        Ok(())
    },
    quantize: packing,
    load: |config, at| {
        let a: Args = parse(config)?;
        multiple("hidden_size", a.hidden_size, "head_dim", a.head_dim)?;
        let (width, body) = (a.hidden_size, at.at("model"));
        let norm = |at: &At, name: &str| Norm::layer(at, name, width, a.norm_eps, true);
        let layers = body.list("layers", a.num_hidden_layers, |at, i| {
            let ffn = at.at("ffn");
            Ok(Block {
                pre_norm: (i == 0).then(|| norm(&at, "pre_norm")).transpose()?,
                attn: TimeMix::load(&at.at("attn"), &a, i)?,
                ffn: ChannelMix {
                    key: ffn.linear("key", width, a.intermediate_size, false)?,
                    value: ffn.linear("value", a.intermediate_size, width, false)?,
                    x_k: ffn.param("x_k", &[width])?,
                },
                attn_norm: norm(&at, "attn_norm")?,
                ffn_norm: norm(&at, "ffn_norm")?,
            })
        })?;
        let embeddings = body.embedding("embeddings", a.vocab_size, width)?;
        let model = Body { embeddings, layers, norm: norm(&body, "norm")? };
        let head = |at: &At| at.linear("lm_head", width, a.vocab_size, false);
        boxed(Rwkv7 { model, lm_head: (!a.tie_word_embeddings).then(|| head(at)).transpose()? })
    },
};
