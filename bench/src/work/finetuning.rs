//! A step of LoRA on a model of Qwen3-0.6B's shape in 4 bits, through the trainer itself.
//!
//! The limit is the peak of f32 multiply-adds. What counts is the least there is to do: products with the model's own weights,
//! forward through all layers and backward, for rows alone, through those that lie above a change; and attention. The goal is
//! half of that limit.

use super::{Case, uniform};
use crate::limits::Peak;
use crate::measure::{Bench, Limit, Measured, Result};
use lapis::io::Arrays;
use lapis::ops::quantize::{Format, quantize};
use lapis::prelude::*;
use lapis_lm::{Checkpoint, Model, models};
use lapis_train::{Sample, Settings, Trainer};
use serde_json::json;

pub(super) const CASES: &[Case] = &[Case { name: "lora_step_qwen3_0.6b_4bit_2x256", run: step }];

const WIDTH: usize = 1024;
const INNER: usize = 3072;
const HEADS: usize = 16;
const KEYS: usize = 8;
const HEAD: usize = 128;
const LAYERS: usize = 28;
const VOCABULARY: usize = 151_936;
/// Layers with changes, the last ones.
const TRAINED: usize = 16;
const BATCH: usize = 2;
const LENGTH: usize = 256;

/// Rows and columns of the matrices of a layer.
const MATRICES: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", HEADS * HEAD, WIDTH),
    ("self_attn.k_proj", KEYS * HEAD, WIDTH),
    ("self_attn.v_proj", KEYS * HEAD, WIDTH),
    ("self_attn.o_proj", WIDTH, HEADS * HEAD),
    ("mlp.gate_proj", INNER, WIDTH),
    ("mlp.up_proj", INNER, WIDTH),
    ("mlp.down_proj", WIDTH, INNER),
];

fn model() -> Result<Box<dyn Model>> {
    let config = json!({
        "model_type": "qwen3", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KEYS, "head_dim": HEAD, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 40960, "tie_word_embeddings": true,
        "quantization": {"bits": 4, "group_size": 64},
    });
    let mut tensors = Arrays::default();
    let mut packed = |name: &str, rows: usize, columns: usize| -> lapis::Result<()> {
        let numbers =
            ops::multiply(uniform(&[rows, columns], tensors.len() as u64 + 1), (3.0 / columns as f64).sqrt())?;
        let q = quantize(&ops::astype(&numbers, Dtype::Bfloat16)?, Format::affine(4, 64)?, None)?;
        let parts = [("weight", Some(q.packed)), ("scales", Some(q.scales)), ("biases", q.biases)];
        for (part, array) in parts.into_iter().filter_map(|(part, array)| Some((part, array?))) {
            array.eval()?;
            tensors.insert(format!("{name}.{part}"), array);
        }
        Ok(())
    };
    packed("model.embed_tokens", VOCABULARY, WIDTH)?;
    for layer in 0..LAYERS {
        for (name, rows, columns) in MATRICES {
            packed(&format!("model.layers.{layer}.{name}"), rows, columns)?;
        }
    }
    let mut norm = |name: String, n: usize| -> lapis::Result<()> {
        tensors.insert(format!("{name}.weight"), ops::astype(&ops::ones::<f32>(&[n])?, Dtype::Bfloat16)?);
        Ok(())
    };
    norm("model.norm".into(), WIDTH)?;
    for layer in 0..LAYERS {
        for (name, n) in [("input_layernorm", WIDTH), ("post_attention_layernorm", WIDTH)] {
            norm(format!("model.layers.{layer}.{name}"), n)?;
        }
        for name in ["q_norm", "k_norm"] {
            norm(format!("model.layers.{layer}.self_attn.{name}"), HEAD)?;
        }
    }
    let config = config.as_object().cloned().unwrap_or_default();
    Ok(models::load(&mut Checkpoint::from_parts(config, tensors)?)?)
}

fn operations() -> f64 {
    let layer: usize = MATRICES.iter().map(|(_, rows, columns)| rows * columns).sum();
    let rows = 2 * BATCH * LENGTH;
    let head = WIDTH * VOCABULARY;
    // Scores and their use, of which the causal half is computed.
    let attention = 2 * BATCH * LENGTH * LENGTH * HEADS * HEAD;
    let forward = rows * (LAYERS * layer + head) + LAYERS * attention;
    let backward = rows * (TRAINED * layer + head) + 2 * TRAINED * attention;
    (forward + backward) as f64
}

fn step(bench: &Bench) -> Result<Measured> {
    let text = |i: usize| (0..=LENGTH).map(|j| ((i * 7919 + j * 104_729) % VOCABULARY) as u32).collect();
    let samples = (0..4 * BATCH).map(|i| Sample { tokens: text(i), ..Sample::default() }).collect();
    let settings = Settings { train: true, batch_size: BATCH, ..Settings::default() };
    let mut trainer = Trainer::new(&*model()?, samples, &settings)?;
    bench.time(Limit::Operations { count: operations(), peak: Peak::F32 }, || {
        let batch = trainer.next_batch();
        trainer.step(&batch)?;
        Ok(())
    })
}
