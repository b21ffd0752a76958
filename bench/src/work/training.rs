//! A step of training: forward, backward and update of a small transformer.
//!
//! The limit is the peak of f32 multiply-adds, and what counts is the matrix products alone: 6 operations for each
//! weight and token, and those of attention. Everything else is what the step loses.

use super::{Case, uniform};
use crate::limits::Peak;
use crate::measure::{Bench, Limit, Measured, Result};
use lapis::ops::fast::{self, AttentionMask, AttentionOptions};
use lapis::prelude::*;
use lapis::transforms::{checkpoint, value_and_grad};

pub(super) const CASES: &[Case] = &[
    Case { name: "train_step_4m_16x256_f32", run: |b| step(b, false) },
    Case { name: "train_step_4m_checkpoint", run: |b| step(b, true) },
    Case { name: "train_products_4m_16x256_f32", run: products },
    Case { name: "train_rest_4m_16x256_f32", run: rest },
    Case { name: "train_memory_checkpoint", run: memory },
    Case { name: "grad_graph_12_layers_1x256", run: overhead },
];

const VOCABULARY: usize = 2048;
const WIDTH: usize = 256;
const HEADS: usize = 8;
const LAYERS: usize = 4;
const BATCH: usize = 16;
const LENGTH: usize = 256;
/// Weights of a layer: queries, keys, values, output, up, down, and the scales of two norms.
const PARTS: usize = 8;

fn layer_parameters(l: u64) -> Result<Vec<Array>> {
    let mut all = Vec::new();
    for k in 0..4 {
        all.push(weight(WIDTH, WIDTH, 10 * l + k)?);
    }
    all.push(weight(WIDTH, 4 * WIDTH, 10 * l + 4)?);
    all.push(weight(4 * WIDTH, WIDTH, 10 * l + 5)?);
    all.extend([ops::ones::<f32>(&[WIDTH])?, ops::ones::<f32>(&[WIDTH])?]);
    Ok(all)
}

fn parameters() -> Result<Vec<Array>> {
    let mut all = vec![weight(VOCABULARY, WIDTH, 1)?];
    for l in 0..LAYERS as u64 {
        all.extend(layer_parameters(l)?);
    }
    all.push(weight(WIDTH, VOCABULARY, 99)?);
    eval(&all)?;
    Ok(all)
}

fn weight(rows: usize, columns: usize, seed: u64) -> lapis::Result<Array> {
    ops::multiply(&uniform(&[rows, columns], seed + 1), (3.0 / rows as f64).sqrt())
}

/// A block of attention and a block of two products, each with its norm and residual.
fn layer((x, p): &(Array, Vec<Array>)) -> lapis::Result<Array> {
    let batch = x.shape()[0];
    let heads = |y: Array| -> lapis::Result<Array> {
        let y = ops::reshape(&y, &[batch, LENGTH, HEADS, WIDTH / HEADS])?;
        ops::transpose(&y, Some(&[0, 2, 1, 3]))
    };
    let h = fast::rms_norm(x, Some(&p[6]), 1e-5)?;
    let q = heads(ops::matmul(&h, &p[0])?)?;
    let k = heads(ops::matmul(&h, &p[1])?)?;
    let v = heads(ops::matmul(&h, &p[2])?)?;
    let scale = (WIDTH as f64 / HEADS as f64).powf(-0.5);
    let options = AttentionOptions { scale, mask: AttentionMask::Causal, ..Default::default() };
    let y = fast::scaled_dot_product_attention(&q, &k, &v, &options)?;
    let y = ops::reshape(&ops::transpose(&y, Some(&[0, 2, 1, 3]))?, &[batch, LENGTH, WIDTH])?;
    let x = ops::matmul(&y, &p[3])? + x;
    let h = fast::rms_norm(&x, Some(&p[7]), 1e-5)?;
    let h = ops::matmul(&h, &p[4])?;
    let h = ops::sigmoid(&h)? * &h;
    Ok(ops::matmul(&h, &p[5])? + x)
}

fn loss(p: &[Array], tokens: &Array, targets: &Array, saved: bool) -> lapis::Result<Array> {
    let mut x = ops::take(&p[0], tokens, 0)?;
    for l in 0..LAYERS {
        let input = (x, p[1 + l * PARTS..1 + (l + 1) * PARTS].to_vec());
        x = if saved { checkpoint(layer)(&input)? } else { layer(&input)? };
    }
    let logits = ops::matmul(&x, &p[p.len() - 1])?;
    ops::mean(&fast::cross_entropy(&logits, targets)?, (), false)
}

/// A model in training, on one batch of tokens.
struct Training {
    parameters: Vec<Array>,
    tokens: Array,
    targets: Array,
}

impl Training {
    fn new() -> Result<Training> {
        let tokens = |seed| -> lapis::Result<Array> {
            let x = ops::multiply(&ops::abs(&uniform(&[BATCH, LENGTH], seed))?, (VOCABULARY - 1) as f64)?;
            ops::astype(&x, Dtype::Int32)
        };
        let (tokens, targets) = (tokens(3)?, tokens(4)?);
        eval([&tokens, &targets])?;
        Ok(Training { parameters: parameters()?, tokens, targets })
    }

    /// Forward, backward, update; with `saved`, layers keep their inputs alone.
    fn step(&mut self, saved: bool) -> Result<()> {
        let both = value_and_grad(|p: &Vec<Array>| loss(p, &self.tokens, &self.targets, saved));
        let (_, grads) = both(&self.parameters)?;
        let updated = self.parameters.iter().zip(grads).map(|(p, g)| ops::subtract(p, g * 1e-3));
        self.parameters = updated.collect::<lapis::Result<_>>()?;
        Ok(eval(&self.parameters)?)
    }
}

fn step(bench: &Bench, saved: bool) -> Result<Measured> {
    let mut training = Training::new()?;
    let weights = LAYERS * 12 * WIDTH * WIDTH + WIDTH * VOCABULARY;
    let attention = 2 * BATCH * LENGTH * LENGTH * WIDTH * LAYERS;
    let operations = 6.0 * (weights * BATCH * LENGTH) as f64 + 3.0 * attention as f64;
    bench.time(Limit::Operations { count: operations, peak: Peak::F32 }, || training.step(saved))
}

/// The products with weights that a step does, without everything around them: forward, and for the gradients of both
/// sides.
struct Products(Vec<[Array; 3]>);

impl Products {
    fn new() -> Result<Products> {
        let shapes = [
            (WIDTH, WIDTH, 4 * LAYERS),
            (WIDTH, 4 * WIDTH, LAYERS),
            (4 * WIDTH, WIDTH, LAYERS),
            (WIDTH, VOCABULARY, 1),
        ];
        let mut all = Vec::new();
        for (seed, (inputs, outputs, times)) in shapes.into_iter().enumerate() {
            let rows = |n| uniform(&[BATCH * LENGTH, n], seed as u64 + 20);
            let sides = [rows(inputs), weight(inputs, outputs, seed as u64)?, rows(outputs)];
            all.extend(std::iter::repeat_n(sides, times));
        }
        eval(all.iter().flatten())?;
        Ok(Products(all))
    }

    fn operations(&self) -> f64 {
        self.0.iter().map(|[_, w, _]| 6.0 * (w.size() * BATCH * LENGTH) as f64).sum()
    }

    fn run(&self) -> Result<()> {
        for [x, w, dy] in &self.0 {
            eval(&[ops::matmul(x, w)?, ops::matmul(dy, &w.t())?, ops::matmul(&x.t(), dy)?])?;
        }
        Ok(())
    }
}

fn products(bench: &Bench) -> Result<Measured> {
    let products = Products::new()?;
    bench.time(Limit::Operations { count: products.operations(), peak: Peak::F32 }, || products.run())
}

/// The part of a step that is not products with weights. The goal is 40 %.
fn rest(bench: &Bench) -> Result<Measured> {
    let (mut training, products) = (Training::new()?, Products::new()?);
    bench.beside(40.0, || training.step(false), || products.run())
}

/// The most memory that a step holds when layers keep their inputs alone, as a part of that when they keep everything.
/// Weights, tokens and all are counted in both. The goal is 60 %.
fn memory(_: &Bench) -> Result<Measured> {
    let peak = |saved| -> Result<f64> {
        let mut training = Training::new()?;
        training.step(saved)?;
        lapis::memory::reset_peak();
        training.step(saved)?;
        Ok(lapis::memory::peak() as f64)
    };
    Ok(Measured { value: 100.0 * peak(true)? / peak(false)?, unit: "% of memory", limit: 60.0 })
}

/// The part of a gradient that is not arithmetic: tracing a stack of twelve layers on one sequence, building the graph
/// of its gradient and planning it, up to where kernels start. The goal is 5 % of the whole.
fn overhead(bench: &Bench) -> Result<Measured> {
    const STACK: u64 = 12;
    let layers: Vec<Vec<Array>> = (0..STACK).map(layer_parameters).collect::<Result<_>>()?;
    let x = uniform(&[1, LENGTH, WIDTH], 5);
    eval(layers.iter().flatten().chain([&x]))?;
    let loss = |layers: &Vec<Vec<Array>>| -> lapis::Result<Array> {
        let y = layers.iter().try_fold(x.clone(), |x, p| layer(&(x, p.clone())))?;
        ops::mean(&ops::square(&y)?, (), false)
    };
    bench.share(5.0, || {
        let grads = value_and_grad(loss)(&layers)?.1;
        lapis::async_eval(grads.iter().flatten());
        Ok(grads)
    })
}
