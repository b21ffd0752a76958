//! The first steps against those of mlx-lm from the same weights, samples and order: losses, gradients, and what becomes of the
//! weights. `data/golden.py` makes the values.

use lapis::ops::quantize::Format;
use lapis::{Array, eval};
use lapis_lm::{Checkpoint, Model, models};
use lapis_nn::{Params, for_each_packable, quantize_where};
use lapis_train::{Sample, Settings, Step, Trainer};
use serde_json::{Value, json};

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// The number `i` of a name, in [0, 1).
fn uniform(name: &str, i: u64) -> f64 {
    let mut z = fnv1a(name).wrapping_add(i).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
}

fn drawn(name: &str, shape: &[usize], center: f64, scale: f64) -> Array {
    let n: usize = shape.iter().product();
    let data = (0..n as u64).map(|i| (center + scale * (2.0 * uniform(name, i) - 1.0)) as f32).collect();
    Array::from_vec(data, shape)
}

fn model(golden: &Value, case: &Value) -> Box<dyn Model> {
    let name = case["model"].as_str().unwrap();
    let config = golden["configs"][name].as_object().unwrap().clone();
    let tensors = golden["shapes"][name].as_object().unwrap().iter().map(|(name, shape)| {
        let shape: Vec<usize> = shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let value = match shape.as_slice() {
            [_] => drawn(name, &shape, 1.0, 0.1),
            [.., last] if !name.contains("embed") => drawn(name, &shape, 0.0, (3.0 / *last as f64).sqrt()),
            _ => drawn(name, &shape, 0.0, 1.0),
        };
        (name.clone(), value)
    });
    let mut model = models::load(&mut Checkpoint::from_parts(config, tensors.collect()).unwrap()).unwrap();
    if let Some(bits) = case["bits"].as_u64().filter(|&bits| bits > 0) {
        let format = Format::affine(bits as usize, 32).unwrap();
        quantize_where(model.module_mut(), &mut |_, _| Some(format.into())).unwrap();
    }
    model
}

fn samples(count: usize) -> Vec<Sample> {
    let one = |i: usize| {
        let n = 6 + 3 * i;
        let name = format!("sample {i}");
        let tokens = (0..n as u64).map(|j| (uniform(&name, j) * 96.0) as u32).collect();
        Sample { tokens, offset: if i % 2 == 1 { n / 4 } else { 0 }, rejected: None }
    };
    (0..count).map(one).collect()
}

/// Lengths of arrays and their products with drawn directions.
fn check(what: &str, params: &Params, want: &Value) {
    let want = want.as_object().unwrap();
    assert_eq!(
        params.keys().collect::<Vec<_>>(),
        {
            let mut k: Vec<_> = want.keys().collect();
            k.sort();
            k
        },
        "{what}"
    );
    for (name, array) in params {
        let x = array.to_vec::<f32>().unwrap();
        let length = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let direction = format!("direction {name}");
        let along: f64 =
            x.iter().enumerate().map(|(i, &x)| f64::from(x) * (2.0 * uniform(&direction, i as u64) - 1.0)).sum();
        let (length_there, along_there) = (want[name][0].as_f64().unwrap(), want[name][1].as_f64().unwrap());
        assert!((length - length_there).abs() <= 1e-4 * length_there, "{what}: {name}: {length} for {length_there}");
        // The length of the direction is near √(n/3).
        let bound = 1e-4 * length_there * (x.len() as f64 / 3.0).sqrt();
        assert!((along - along_there).abs() <= bound, "{what}: {name}: {along} for {along_there}");
    }
}

/// A trainer whose first factors are drawn as there.
fn trainer(golden: &Value, case: &Value, samples: Vec<Sample>, s: &Settings) -> Trainer {
    let mut trainer = Trainer::new(&*model(golden, case), samples, s).unwrap();
    let first = trainer.weights().into_iter().filter(|(name, _)| name.ends_with("lora_a"));
    let first = first.map(|(name, a)| {
        let inputs = a.dim(if a.ndim() == 3 { 2 } else { 0 }) as f64;
        (name.clone(), drawn(&name, a.shape(), 0.0, inputs.powf(-0.5)))
    });
    trainer.set_weights(&first.collect()).unwrap();
    trainer
}

/// Step `i`, whose gradients and loss are those of the file.
fn step(trainer: &mut Trainer, what: &str, golden_case: &Value, i: usize) -> Step {
    let batch = trainer.next_batch();
    let (loss, gradients) = trainer.gradients(&batch).unwrap();
    eval(gradients.values().chain([&loss])).unwrap();
    check(what, &gradients, &golden_case["gradients"][i]);
    let step = trainer.step(&batch).unwrap();
    assert_eq!(step.loss.to_bits(), loss.item::<f32>().unwrap().to_bits(), "{what}");
    let want = golden_case["losses"][i].as_f64().unwrap();
    assert!((f64::from(step.loss) - want).abs() <= 1e-4 * want, "{what}: loss {} for {want}", step.loss);
    step
}

#[test]
fn twenty_steps_as_in_mlx_lm() {
    let golden: Value = serde_json::from_str(include_str!("data/golden.json")).unwrap();
    for golden_case in golden["cases"].as_array().unwrap() {
        let case = &golden_case["case"];
        let mut s = Settings {
            train: true,
            batch_size: 2,
            max_seq_length: 48,
            seed: 7,
            learning_rate: 1e-3,
            ..Settings::default()
        };
        s.exact_reference_loss = true;
        s.fine_tune_type = case["kind"].as_str().unwrap().into();
        s.optimizer = case["optimizer"].as_str().unwrap().into();
        s.num_layers = case["num_layers"].as_i64().unwrap();
        s.grad_accumulation_steps = case["grad_accumulation_steps"].as_u64().unwrap() as usize;
        s.set("lora_parameters", json!({"rank": 4, "scale": 10.0, "dropout": 0.0})).unwrap();
        if s.optimizer == "adamw" {
            s.set("lr_schedule", json!({"name": "cosine_decay", "arguments": [1e-3, 30], "warmup": 4})).unwrap();
            s.set("optimizer_config", json!({"adamw": {"weight_decay": 0.1}})).unwrap();
        }
        // Recomputed values are the same.
        s.grad_checkpoint = s.fine_tune_type == "dora";
        let mut trainer = trainer(&golden, case, samples(14), &s);
        for i in 0..20 {
            let step = step(&mut trainer, &format!("{case}, step {}", i + 1), golden_case, i);
            assert_eq!(step.tokens as u64, golden_case["tokens"][i].as_u64().unwrap(), "{case}, step {}", i + 1);
        }
        check(&format!("{case}, at the end"), &trainer.weights(), &golden_case["weights"]);
        let (loss, want) =
            (trainer.validate(&samples(9), Some(3), |_, _| {}).unwrap(), golden_case["validation"].as_f64().unwrap());
        assert!((f64::from(loss) - want).abs() <= 1e-4 * want, "{case}: validation {loss} for {want}");
    }
}

fn pairs() -> Vec<Sample> {
    let one = |i: usize| {
        let drawn =
            |name: String, n: usize| -> Vec<u32> { (0..n as u64).map(|j| (uniform(&name, j) * 96.0) as u32).collect() };
        let (offset, tokens) = (3 + i % 3, drawn(format!("pair {i}"), 8 + 3 * i));
        let other = [&tokens[..offset], &drawn(format!("other {i}"), 6 + i * 5 % 11)].concat();
        Sample { tokens, offset, rejected: Some(Box::new(Sample { tokens: other, offset, rejected: None })) }
    };
    (0..8).map(one).collect()
}

/// `data/preference.py` makes the values.
#[test]
fn preferences_are_learned_as_by_mlx_lm_lora() {
    let golden: Value = serde_json::from_str(include_str!("data/preference.json")).unwrap();
    for golden_case in golden["cases"].as_array().unwrap() {
        let mut case = golden_case["case"].clone();
        let mut s = Settings {
            train: true,
            batch_size: 2,
            max_seq_length: 48,
            seed: 7,
            learning_rate: 1e-4,
            num_layers: 2,
            ..Settings::default()
        };
        for (key, value) in case.as_object().unwrap().iter().filter(|(key, _)| *key != "reference_times") {
            s.set(key, value.clone()).unwrap();
        }
        s.set("lora_parameters", json!({"rank": 4, "scale": 10.0, "dropout": 0.0})).unwrap();
        case["model"] = "llama".into();
        let mut trainer = trainer(&golden, &case, pairs(), &s);
        if let Some(times) = case["reference_times"].as_f64() {
            let mut other = model(&golden, &case);
            other.module_mut().apply(&mut |_, a| lapis::ops::multiply(a, times)).unwrap();
            trainer.hold_against(&*other).unwrap();
        }
        for i in 0..golden_case["losses"].as_array().unwrap().len() {
            let what = format!("{case}, step {}", i + 1);
            let step = step(&mut trainer, &what, golden_case, i);
            let (margin, want) = (step.reward.unwrap().0, golden_case["margins"][i].as_f64().unwrap());
            assert!(
                (f64::from(margin) - want).abs() <= 1e-4 * want.abs().max(1.0),
                "{what}: margin {margin} for {want}"
            );
        }
    }
}

/// mlx-lm has none of these: packed experts and tables learn as the numbers that they stand for, and merged they say the same.
#[test]
fn dora_of_experts_and_of_packed_tables() {
    let golden: Value = serde_json::from_str(include_str!("data/golden.json")).unwrap();
    let mut s = Settings { train: true, batch_size: 2, max_seq_length: 48, learning_rate: 1e-3, ..Settings::default() };
    s.fine_tune_type = "dora".into();
    let keys = ["model.embed_tokens", "mlp.switch_mlp.down_proj", "mlp.gate", "self_attn.q_proj"];
    s.set("lora_parameters", json!({"rank": 4, "scale": 10.0, "dropout": 0.0, "keys": keys})).unwrap();
    let packed = model(&golden, &json!({"model": "qwen3_moe", "bits": 4}));
    let mut plain = packed.copied();
    for_each_packable(plain.module_mut(), &mut |_, layer| layer.dequantize().unwrap());
    let learn = |model: &dyn Model| {
        let mut trainer = Trainer::new(model, samples(14), &s).unwrap();
        let mut one = || {
            let batch = trainer.next_batch();
            trainer.step(&batch).unwrap().loss
        };
        let losses = [one(), one(), one(), one()];
        (trainer, losses)
    };
    let ((mut trainer, losses), (_, want)) = (learn(&*packed), learn(&*plain));
    for (a, b) in losses.iter().zip(want) {
        assert!((a - b).abs() <= 1e-3 * b, "{losses:?} {want:?}");
    }
    for layer in ["model.embed_tokens.m", "model.layers.0.mlp.switch_mlp.down_proj.m", "model.layers.2.mlp.gate.m"] {
        assert!(trainer.weights().contains_key(layer), "{layer}");
    }
    let own = trainer.validate(&samples(8), None, |_, _| {}).unwrap();
    let mut merged = trainer.model().copied();
    for_each_packable(merged.module_mut(), &mut |_, layer| assert!(layer.merge(true).is_ok()));
    // Changes that are new change nothing.
    s.fine_tune_type = "lora".into();
    let mut merged = Trainer::new(&*merged, samples(14), &s).unwrap();
    let other = merged.validate(&samples(8), None, |_, _| {}).unwrap();
    assert!((own - other).abs() <= 1e-4 * own && own != losses[0], "{own} {other}");
}
