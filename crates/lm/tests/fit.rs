//! What `fit` foresees is what a model then takes.

mod shared;

use lapis::io::Arrays;
use lapis::{Array, Dtype, eval, ops};
use lapis_lm::fit::{Fit, available, bandwidth};
use lapis_lm::{Batch, Checkpoint, Model, Sequence, models};
use serde_json::{Map, Value, json};

fn zeros(shapes: &[(String, Vec<usize>)]) -> Arrays {
    shapes.iter().map(|(n, s)| (n.clone(), ops::full(s, 0.0, Some(Dtype::Float32)).unwrap())).collect()
}

fn checkpoint(config: &Value, shapes: &[(String, Vec<usize>)]) -> Checkpoint {
    Checkpoint::from_parts(config.as_object().unwrap().clone(), zeros(shapes)).unwrap()
}

/// The most bytes remembered while so many tokens pass in steps, computed.
fn taken(model: &dyn Model, tokens: usize, step: usize) -> u64 {
    let (mut sequence, mut most) = (Sequence::new(), 0);
    while sequence.len() < tokens {
        let rows = step.min(tokens - sequence.len());
        let mut batch = Batch::one(rows, &mut sequence);
        let hidden = model.hidden(&Array::from_vec(vec![1i32; rows], &[rows]), &mut batch).unwrap();
        batch.finish();
        eval(sequence.arrays().chain([&hidden])).unwrap();
        most = most.max(sequence.bytes() as u64);
    }
    most
}

/// Shapes of a llama with some layers behind a window.
fn windowed(window: usize) -> (Value, Vec<(String, Vec<usize>)>) {
    let config = json!({
        "model_type": "gemma2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 32,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-6,
        "sliding_window": window, "max_position_embeddings": 8192,
    });
    let mut shapes = vec![("model.embed_tokens.weight".to_string(), vec![32, 32])];
    shapes.push(("model.norm.weight".to_string(), vec![32]));
    let parts: [(&str, &[usize]); 11] = [
        ("self_attn.q_proj", &[32, 32]),
        ("self_attn.k_proj", &[16, 32]),
        ("self_attn.v_proj", &[16, 32]),
        ("self_attn.o_proj", &[32, 32]),
        ("mlp.gate_proj", &[48, 32]),
        ("mlp.up_proj", &[48, 32]),
        ("mlp.down_proj", &[32, 48]),
        ("input_layernorm", &[32]),
        ("post_attention_layernorm", &[32]),
        ("pre_feedforward_layernorm", &[32]),
        ("post_feedforward_layernorm", &[32]),
    ];
    for layer in 0..2 {
        for (name, shape) in parts {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        }
    }
    (config, shapes)
}

#[test]
fn a_prompt_meets_the_head_once() {
    let (config, shapes) = windowed(600);
    let fit = Fit::of(&mut checkpoint(&config, &shapes)).unwrap();
    let layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32;
    for tokens in [1, 4, 512] {
        let each = 2.0 * (2.0 * f64::from(layer) + 32.0 * 32.0 / tokens as f64);
        assert_eq!(fit.most_of_prompt(1e12, tokens), 1e12 / each, "{tokens} tokens");
    }
}

#[test]
fn windows_stop_to_grow() {
    let (config, shapes) = windowed(600);
    let fit = Fit::of(&mut checkpoint(&config, &shapes)).unwrap();
    let model = models::load(&mut checkpoint(&config, &shapes)).unwrap();
    for n in [1, 2048, 8192] {
        assert_eq!(fit.remembered(n), taken(&*model, n, 2048), "{n} tokens");
    }
    // Two layers of keys and values of 16 f32; one of them stops.
    let grown = |fit: &Fit| fit.remembered(8192) - fit.remembered(6144);
    assert_eq!(grown(&fit), 2048 * 2 * 16 * 4);
    let (config, shapes) = windowed(8192);
    assert_eq!(grown(&Fit::of(&mut checkpoint(&config, &shapes)).unwrap()), 2 * 2048 * 2 * 16 * 4);
}

/// No machine has the memory for one of these layers, so none was computed.
#[test]
fn nothing_is_computed() {
    const TIMES: usize = 1 << 14; // the largest layers take 1.5 TiB
    let (mut config, mut shapes) = windowed(600);
    for field in ["hidden_size", "intermediate_size", "head_dim"] {
        config[field] = json!(config[field].as_u64().unwrap() * TIMES as u64);
    }
    let values = |shape: &[usize]| ops::arange(0, shape.iter().product::<usize>() as f64, 1, Some(Dtype::Float32));
    for (name, shape) in &mut shapes {
        let first = if name.contains("embed") { 1 } else { 0 };
        shape[first..].iter_mut().for_each(|n| *n *= TIMES);
    }
    let arrays: Arrays = shapes.iter().map(|(n, s)| (n.clone(), values(s).unwrap().reshape(s))).collect();
    let layer = arrays["model.layers.0.mlp.up_proj.weight"].clone();
    let mut checkpoint = Checkpoint::from_parts(config.as_object().unwrap().clone(), arrays).unwrap();
    let fit = Fit::of(&mut checkpoint).unwrap();
    assert_eq!(fit.parameters, shapes.iter().map(|(_, s)| s.iter().product::<usize>() as u64).sum::<u64>());
    assert_eq!(layer.eval().unwrap_err().kind(), lapis::ErrorKind::Memory);
}

#[test]
fn what_fits_is_found_and_packing_makes_room() {
    let (config, shapes) = windowed(600);
    let fit = Fit::of(&mut checkpoint(&config, &shapes)).unwrap();
    let values: usize = shapes.iter().map(|(_, s)| s.iter().product::<usize>()).sum();
    assert_eq!((fit.parameters, fit.weights, fit.context), (values as u64, 4 * values as u64, Some(8192)));
    assert_eq!(fit.longest(u64::MAX), Some(8192));
    assert_eq!(fit.longest(fit.weights), None);
    for n in [1, 300, 5000] {
        let longest = fit.longest(fit.needs(n)).unwrap();
        assert!(longest >= n && fit.needs(longest) == fit.needs(n), "{n}: {longest}");
    }
    let packed = fit.packed(4);
    assert!(packed.weights < fit.weights / 6 && packed.reads < fit.reads / 6);
    assert!(fit.rate(1e9, 1000) < packed.rate(1e9, 1000) && packed.rate(1e9, 8000) < packed.rate(1e9, 1000));
    assert!(available() > 1 << 20 && bandwidth().unwrap() > 1e8);
}

/// Latents, recurrences, convolutions, mixtures: what every family remembers.
#[test]
fn every_family_takes_what_was_foreseen() {
    let Some(folder) = shared::shared("goldens") else { return };
    let mut seen = 0;
    for file in std::fs::read_dir(folder).unwrap().flatten().map(|e| e.path()) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let golden: Value = match file.extension().is_some_and(|e| e == "json") {
            true => serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap(),
            false => continue,
        };
        let (Some(config), Some(params)) = (golden["config"].as_object(), golden["params"].as_object()) else {
            continue;
        };
        let mut config: Map<String, Value> = config.clone();
        // A table of positions is as long as it is.
        if !config.contains_key("n_positions") {
            config.insert("max_position_embeddings".into(), json!(700));
        }
        let shape =
            |spec: &Value| spec["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let shapes: Vec<(String, Vec<usize>)> = params.iter().map(|(n, s)| (n.clone(), shape(s))).collect();
        let config = Value::Object(config);
        let fit = Fit::of(&mut checkpoint(&config, &shapes)).unwrap();
        let model = models::load(&mut checkpoint(&config, &shapes)).unwrap();
        let n = fit.context.unwrap().min(700);
        assert_eq!(fit.remembered(n), taken(&*model, n, 2048), "{name}");
        assert_eq!(fit.remembered(1), taken(&*model, 1, 1), "{name}");
        assert!(fit.reads <= fit.weights && fit.reads > 0, "{name}");
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
}
