//! What the fast path in half precision does to what a model says: inputs of packed products as 8-bit numbers with a scale
//! a group, weights of attention rounded where it runs in pairs, against everything in f32 (`LAPIS_EXACT=1`).

mod shared;

use lapis::{Array, Dtype, ops};
use lapis_cpu::quant::{Arithmetic, set_arithmetic};
use lapis_lm::tokenizer::Tokenizer;
use lapis_lm::{Batch, Checkpoint, Engine, Event, Model, Request, Sampling, Sequence, models};
use lapis_nn::quantize;
use serde_json::json;
use shared::golden::{tensors, uniform};
use std::sync::Arc;

/// Log-probabilities of each row, in f64.
fn distributions(model: &dyn Model, tokens: &[i32], how: Arithmetic) -> Vec<Vec<f64>> {
    set_arithmetic(how);
    let mut sequence = Sequence::new();
    let mut batch = Batch::one(tokens.len(), &mut sequence);
    let hidden = model.hidden(&Array::from_vec(tokens.to_vec(), &[tokens.len()]), &mut batch).unwrap();
    batch.finish();
    let logits = ops::astype(&model.logits(&hidden).unwrap(), Dtype::Float32).unwrap();
    let width = logits.dim(1);
    let normal = |row: &[f32]| {
        let peak = row.iter().fold(f32::MIN, |m, &x| m.max(x)) as f64;
        let norm = row.iter().map(|&x| (f64::from(x) - peak).exp()).sum::<f64>().ln() + peak;
        row.iter().map(|&x| f64::from(x) - norm).collect()
    };
    logits.to_vec::<f32>().unwrap().chunks(width).map(normal).collect()
}

/// The mean divergence of the fast path from exact arithmetic, token by token of some texts, and its standard error. It is more
/// than none: both did run.
fn divergence(model: &dyn Model, texts: &[Vec<i32>]) -> (f64, f64) {
    let mut each = Vec::new();
    for tokens in texts {
        let exact = distributions(model, tokens, Arithmetic::Exact);
        let kernels = lapis::kernels();
        let fast = distributions(model, tokens, Arithmetic::Fast);
        assert_ne!(kernels, lapis::kernels(), "prompts that were read exactly would be found on disk by the fast path");
        assert!(exact != fast, "the fast path was not taken");
        let of = |(p, q): (&Vec<f64>, &Vec<f64>)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        each.extend(exact.iter().zip(&fast).map(of));
    }
    let n = each.len() as f64;
    let mean = each.iter().sum::<f64>() / n;
    (mean, (each.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n / n).sqrt())
}

/// What the model answers, with the questions: texts of its own kind.
fn talks(model: Box<dyn Model>, tokenizer: &Tokenizer) -> (Arc<dyn Model>, Vec<Vec<i32>>) {
    set_arithmetic(Arithmetic::Exact);
    let model: Arc<dyn Model> = model.into();
    let mut engine = Engine::new(Arc::clone(&model), tokenizer.vocab_size());
    let eos = Arc::new(tokenizer.eos_ids().clone());
    let mut texts = Vec::new();
    for seed in 0..4 {
        for question in
            ["Tell me a story about a fox", "Write a tale of an owl", "How do I chat?", "Convert a model to 4 bits"]
        {
            let prompt = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
            let prompt = tokenizer.encode(&prompt, false).unwrap();
            texts.push(prompt.iter().map(|&t| t as i32).collect::<Vec<_>>());
            let sampling = Sampling { temperature: 0.9, seed, ..Default::default() };
            let request = Request { prompt, max_tokens: 160, sampling, eos: eos.clone(), ..Default::default() };
            assert_eq!(engine.add(request, Sequence::new()).unwrap() as usize + 1, texts.len());
        }
    }
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { id, choice, .. } => texts[id as usize].push(choice.token as i32),
                Event::Failed { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
    }
    (model, texts)
}

#[test]
fn the_fast_path_changes_little() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/demo-model/model");
    let mut checkpoint = Checkpoint::open(demo).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let mut model = models::load(&mut checkpoint).unwrap();
    model.module_mut().set_dtype(Dtype::Bfloat16).unwrap();
    let (model, texts) = talks(model, &tokenizer);
    let (demo, demo_error) = divergence(&*model, &texts);

    // Random weights: a Llama of the size of the goldens, in 4 bits.
    let mut params = serde_json::Map::new();
    let mut add = |name: &str, shape: &[usize]| {
        let (center, scale) = match shape {
            [_] => (1.0, 0.1),
            [_, columns] if !name.contains("embed") => (0.0, (3.0 / *columns as f64).sqrt()),
            _ => (0.0, 1.0),
        };
        params.insert(format!("model.{name}.weight"), json!({"shape": shape, "center": center, "scale": scale}));
    };
    add("embed_tokens", &[96, 64]);
    add("norm", &[64]);
    for i in 0..2 {
        for (name, shape) in [("q_proj", [64, 64]), ("k_proj", [32, 64]), ("v_proj", [32, 64]), ("o_proj", [64, 64])] {
            add(&format!("layers.{i}.self_attn.{name}"), &shape);
        }
        for (name, shape) in [("gate_proj", [96, 64]), ("up_proj", [96, 64]), ("down_proj", [64, 96])] {
            add(&format!("layers.{i}.mlp.{name}"), &shape);
        }
        add(&format!("layers.{i}.input_layernorm"), &[64]);
        add(&format!("layers.{i}.post_attention_layernorm"), &[64]);
    }
    let config = json!({
        "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    let tensors = tensors(&params.into());
    let mut checkpoint = Checkpoint::from_parts(config.as_object().unwrap().clone(), tensors).unwrap();
    let mut model = models::load(&mut checkpoint).unwrap();
    quantize(model.module_mut(), lapis::ops::quantize::Format::affine(4, 32).unwrap()).unwrap();
    model.module_mut().set_dtype(Dtype::Bfloat16).unwrap();
    let texts: Vec<Vec<i32>> =
        (0..4).map(|seed| (0..256).map(|i| (uniform(seed, i) * 96.0) as i32).collect()).collect();
    let (random, random_error) = divergence(&*model, &texts);
    let found = format!("demo model {demo:.1e} ± {demo_error:.0e}, random model {random:.1e} ± {random_error:.0e}");
    eprintln!("mean divergence: {found}");
    assert!(demo <= 1e-3 && random <= 1e-3, "{found}");
}
