//! Tiny models of every family against the logits that mlx-lm computes for them.
//!
//! `../shared/goldens` holds configs, tokens and logits (`GOLDENS` names another folder, `GOLDEN` one file). Beyond the
//! values: whole = stepwise and alone = in a batch, bit for bit.

mod shared;

use lapis::io::Arrays;
use lapis::{Array, Dtype, ops};
use lapis_lm::adapter::Mixed;
use lapis_lm::{Batch, Checkpoint, Model, Sequence, models};
use lapis_nn::{LowRank, Side, for_each_packable, quantize_where};
use serde_json::{Map, Value, json};
use shared::golden::{all, tensors, uniform};
use shared::shared;

struct Golden {
    model: Box<dyn Model>,
    tokens: Vec<Vec<i32>>,
}

impl Golden {
    fn run(&self, batch: Vec<(&[i32], &mut Sequence)>) -> Vec<f32> {
        let tokens: Vec<i32> = batch.iter().flat_map(|b| b.0).copied().collect();
        let n = tokens.len();
        let mut rows = Batch::new(batch.into_iter().map(|(t, s)| (t.len(), s)));
        let hidden = self.model.hidden(&Array::from_vec(tokens, &[n]), &mut rows).unwrap();
        rows.finish();
        let logits = self.model.logits(&hidden).unwrap();
        ops::astype(&logits, Dtype::Float32).unwrap().to_vec().unwrap()
    }

    fn whole(&self) -> Vec<Vec<f32>> {
        self.tokens.iter().map(|t| self.run(vec![(t, &mut Sequence::new())])).collect()
    }
}

/// The largest difference over the largest value.
fn difference(ours: &[Vec<f32>], golden: &Value) -> f64 {
    let want = golden["data"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap());
    let ours = ours.iter().flatten().map(|&x| f64::from(x));
    let (mut worst, mut largest) = (0.0f64, 0.0f64);
    let mut n = (0, 0);
    for (a, b) in ours.clone().zip(want.clone()) {
        worst = worst.max(if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() });
        largest = largest.max(b.abs());
        n.0 += 1;
    }
    n.1 = want.count();
    assert_eq!(n.0, n.1, "other sizes");
    assert_eq!(ours.count(), n.1, "other sizes");
    worst / largest
}

/// The root of the mean of squared differences over that of squared values.
fn spread(ours: &[Vec<f32>], golden: &Value) -> f64 {
    let want: Vec<f64> = golden["data"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    let squares = |all: &mut dyn Iterator<Item = f64>| all.map(|x| x * x).sum::<f64>().sqrt();
    let ours = ours.iter().flatten().map(|&x| f64::from(x));
    squares(&mut ours.zip(&want).map(|(a, b)| a - b)) / squares(&mut want.iter().copied())
}

fn check(name: &str, golden: &Value) -> Result<String, String> {
    let config = golden["config"].as_object().unwrap().clone();
    let tokens = golden["tokens"].as_array().unwrap().iter();
    let tokens = tokens.map(|t| t.as_array().unwrap().iter().map(|v| v.as_i64().unwrap() as i32).collect()).collect();
    let load = |config: Map<String, Value>| -> Result<Box<dyn Model>, String> {
        let mut checkpoint =
            Checkpoint::from_parts(config, tensors(&golden["params"])).map_err(|e| e.message().to_string())?;
        models::load(&mut checkpoint).map_err(|e| e.message().to_string())
    };
    let mut golden_model = Golden { model: load(config.clone())?, tokens };
    let g = &golden_model;
    let whole = g.whole();
    let far = difference(&whole, &golden["logits"]);
    if far > 1e-4 {
        return Err(format!("logits differ by {far:.1e} of the largest"));
    }
    // In pieces, alone: the same bits.
    for (cut, want) in [8, 1, 5].into_iter().flat_map(|c| g.tokens.iter().zip(&whole).map(move |x| (c, x))) {
        let (tokens, want) = want;
        let mut sequence = Sequence::new();
        let mut got = g.run(vec![(&tokens[..cut], &mut sequence)]);
        for t in tokens[cut..].chunks(1) {
            got.extend(g.run(vec![(t, &mut sequence)]));
        }
        if let Some(at) = got.iter().zip(want).position(|(a, b)| a.to_bits() != b.to_bits()) {
            let row = at / (want.len() / tokens.len());
            return Err(format!("in steps after {cut}: row {row} has other bits ({} for {})", got[at], want[at]));
        }
    }
    // In a batch, at different places: the same bits.
    let (mut first, mut second) = (Sequence::new(), Sequence::new());
    let (a, b) = (&g.tokens[0], &g.tokens[1]);
    let mut got = [g.run(vec![(&a[..3], &mut first)]), Vec::new()];
    let both = g.run(vec![(&a[3..], &mut first), (&b[..7], &mut second)]);
    let width = whole[0].len() / a.len();
    got[0].extend(&both[..(a.len() - 3) * width]);
    got[1].extend(&both[(a.len() - 3) * width..]);
    got[1].extend(g.run(vec![(&b[7..], &mut second)]));
    for (i, got) in got.iter().enumerate() {
        if got.iter().zip(&whole[i]).any(|(a, b)| a.to_bits() != b.to_bits()) {
            return Err(format!("sequence {i} has other bits in a batch"));
        }
    }
    // Greedy, after the first sequence.
    let mut sequence = Sequence::new();
    let mut token = g.tokens[0].clone();
    let mut greedy = Vec::new();
    for _ in 0..12 {
        let rows = g.run(vec![(&token, &mut sequence)]);
        let row = &rows[rows.len() - width..];
        let best = (0..row.len()).fold(0, |m, i| if row[i] > row[m] { i } else { m });
        greedy.push(best as i64);
        token = vec![best as i32];
    }
    let want: Vec<i64> = golden["greedy"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect();
    if greedy != want {
        return Err(format!("greedy tokens {greedy:?}, expected {want:?}"));
    }
    // In bf16: rows stay bf16, near those of f32, and in steps have the same bits.
    let exact = std::mem::replace(&mut golden_model.model, load(config.clone())?);
    golden_model.model.module_mut().set_dtype(Dtype::Bfloat16).map_err(|e| e.message().to_string())?;
    let half = golden_model.whole();
    let (mut sequence, tokens) = (Sequence::new(), &golden_model.tokens[0]);
    let steps: Vec<f32> = tokens.chunks(1).flat_map(|t| golden_model.run(vec![(t, &mut sequence)])).collect();
    if steps.iter().zip(&half[0]).any(|(a, b)| a.to_bits() != b.to_bits()) {
        return Err("in bf16, other bits in steps".into());
    }
    let mut batch = Batch::one(1, &mut sequence);
    let hidden = golden_model.model.hidden(&Array::from_vec(vec![1i32], &[1]), &mut batch).unwrap();
    let dtypes = [hidden.dtype(), golden_model.model.logits(&hidden).unwrap().dtype()];
    // Of all logits: the largest difference is one expert that was chosen otherwise.
    let bf16 = spread(&half, &golden["logits"]);
    if dtypes != [Dtype::Bfloat16; 2] || bf16.is_nan() || bf16 > 0.05 {
        return Err(format!("in bf16: rows and logits {dtypes:?}, which differ by {bf16:.1e}"));
    }
    golden_model.model = exact;
    // Packed as mlx-lm packs it.
    let mut report = format!("{name:20} f32 {far:.1e}, bf16 {bf16:.1e}");
    if let Some(quantized) = golden.get("quantized") {
        let mut packed = config;
        packed.insert("quantization".into(), quantized["quantization"].clone());
        let plan = Checkpoint::from_parts(packed, Arrays::default()).unwrap().plan;
        let mut model = load(golden["config"].as_object().unwrap().clone())?;
        quantize_where(model.module_mut(), &mut |path, layer| {
            plan.choose(path, layer.matrix().columns()).map(Into::into)
        })
        .map_err(|e| e.message().to_string())?;
        golden_model.model = model;
        let far = difference(&golden_model.whole(), &quantized["logits"]);
        report += &format!(", packed {far:.1e}");
        if far > 1e-3 {
            return Err(format!("packed logits differ by {far:.1e} of the largest"));
        }
    }
    Ok(report)
}

/// Families whose model is not written yet.
const LATER: &[&str] = &[];

#[test]
fn families_agree_with_mlx_lm() {
    let mut failed = Vec::new();
    for (name, golden) in all() {
        match check(&name, &golden) {
            Err(why) if LATER.contains(&name.as_str()) && why.contains("is not supported") => {
                eprintln!("{name}: later")
            }
            Ok(_) if LATER.contains(&name.as_str()) => {
                failed.push(format!("{name}: passes; take it off the list LATER"))
            }
            Ok(line) => eprintln!("{line}"),
            Err(why) => failed.push(format!("{name}: {why}")),
        }
    }
    assert!(failed.is_empty(), "{} of the families fail:\n{}", failed.len(), failed.join("\n"));
}

/// One tensor in parts, by their names.
fn cut(tensors: &mut Arrays, name: &str, parts: impl Fn(&Array) -> Vec<(String, Array)>) {
    let keys: Vec<String> = tensors.keys().filter(|k| k.ends_with(name)).cloned().collect();
    for key in keys {
        let place = key.strip_suffix(name).unwrap();
        let tensor = tensors.swap_remove(&key).unwrap();
        tensors.extend(parts(&tensor).into_iter().map(|(n, a)| (format!("{place}{n}"), a)));
    }
}

/// Two tensors, by the names of their places, as one.
fn join(tensors: &mut Arrays, [a, b]: [&str; 2], name: &str, joined: impl Fn(&Array, &Array) -> Array) {
    let keys: Vec<String> = tensors.keys().filter(|k| k.ends_with(a)).cloned().collect();
    for key in keys {
        let place = key.strip_suffix(a).unwrap().to_string();
        let (first, second) =
            (tensors.swap_remove(&key).unwrap(), tensors.swap_remove(&format!("{place}{b}")).unwrap());
        tensors.insert(format!("{place}{name}"), joined(&first, &second));
    }
}

/// Rows of keys and of values of all heads.
fn absorbed(k: &Array, v: &Array) -> Array {
    let k = ops::transpose(k, Some(&[0, 2, 1])).unwrap();
    ops::flatten(&ops::concatenate(&[k, v.clone()], 1).unwrap(), 0, 1).unwrap()
}

/// Tensors of an MLX checkpoint as the model's makers store them.
fn raw(kind: &str, tensors: &mut Arrays) {
    let apart = |tensors: &mut Arrays, names: [[&str; 2]; 3]| {
        for [ours, theirs] in names {
            cut(tensors, &format!("switch_mlp.{ours}.weight"), |stack| {
                let all = ops::split(stack, stack.dim(0), 0).unwrap().into_iter().enumerate();
                all.map(|(e, w)| (format!("experts.{e}.{theirs}.weight"), ops::squeeze(&w, 0).unwrap())).collect()
            });
        }
    };
    let same = ["gate_proj", "up_proj", "down_proj"].map(|n| [n, n]);
    let conv = |tensors: &mut Arrays, name: &str| {
        cut(tensors, name, |w| vec![(name.into(), ops::transpose(w, Some(&[0, 2, 1])).unwrap())]);
    };
    tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), ops::zeros::<f32>(&[8]).unwrap());
    match kind {
        "mixtral" => apart(tensors, [["gate_proj", "w1"], ["down_proj", "w2"], ["up_proj", "w3"]]),
        "gpt_oss" => {
            // Rows of the two in turns: (experts, width, 2 * inner) for weights, (experts, 2 * inner) for biases.
            let turns = |a: &Array, b: &Array, axis: i32| {
                ops::flatten(&ops::stack(&[a.clone(), b.clone()], axis + 1).unwrap(), axis, axis + 1).unwrap()
            };
            join(tensors, ["gate_proj.weight", "up_proj.weight"], "gate_up_proj", |a, b| {
                ops::transpose(&turns(a, b, 1), Some(&[0, 2, 1])).unwrap()
            });
            join(tensors, ["gate_proj.bias", "up_proj.bias"], "gate_up_proj_bias", |a, b| turns(a, b, 1));
            cut(tensors, "experts.down_proj.weight", |w| {
                vec![("experts.down_proj".into(), ops::transpose(w, Some(&[0, 2, 1])).unwrap())]
            });
            cut(tensors, "experts.down_proj.bias", |b| vec![("experts.down_proj_bias".into(), b.clone())]);
        }
        "deepseek_v3" => {
            apart(tensors, same);
            join(tensors, ["embed_q.weight", "unembed_out.weight"], "kv_b_proj.weight", absorbed);
            tensors.insert("model.layers.3.eh_proj.weight".into(), ops::zeros::<f32>(&[8]).unwrap());
        }
        "qwen3_next" => {
            apart(tensors, same);
            conv(tensors, "conv1d.weight");
            for name in ["layernorm.weight", "model.norm.weight", "q_norm.weight", "k_norm.weight"] {
                cut(tensors, name, |w| vec![(name.into(), ops::subtract(w, 1.0).unwrap())]);
            }
            tensors.insert("mtp.fc.weight".into(), ops::zeros::<f32>(&[8]).unwrap());
        }
        "lfm2" => conv(tensors, "conv.conv.weight"),
        "mamba" => conv(tensors, "conv1d.weight"),
        "jamba" => {
            apart(tensors, same);
            conv(tensors, "conv1d.weight");
        }
        "step3p5" => {
            let names = [
                ("switch_mlp.", "moe."),
                ("gate.gate.", "moe.gate."),
                ("gate.router_bias", "moe.router_bias"),
                ("share_expert.", "share_expert."),
            ];
            let theirs = |key: String| {
                let name = names.iter().find(|(ours, _)| key.contains(&format!(".mlp.{ours}")));
                name.map_or(key.clone(), |(ours, theirs)| key.replace(&format!("mlp.{ours}"), theirs))
            };
            let less = |key: &str, a: Array| if key.contains("norm") { ops::subtract(&a, 1.0).unwrap() } else { a };
            *tensors = std::mem::take(tensors)
                .into_iter()
                .map(|(k, a)| {
                    let a = less(&k, a);
                    (theirs(k), a)
                })
                .collect();
            tensors.insert("model.layers.4.eh_proj.weight".into(), ops::zeros::<f32>(&[8]).unwrap());
        }
        "phimoe" => apart(tensors, [["gate_proj", "w1"], ["down_proj", "w2"], ["up_proj", "w3"]]),
        "llama4" => {
            // (experts, width, 2 * inner), the gate first.
            let turned = |a: &Array| ops::transpose(a, Some(&[0, 2, 1])).unwrap();
            join(tensors, ["experts.gate_proj.weight", "experts.up_proj.weight"], "experts.gate_up_proj", |a, b| {
                turned(&ops::concatenate(&[a.clone(), b.clone()], 1).unwrap())
            });
            cut(tensors, "experts.down_proj.weight", |w| vec![("experts.down_proj".into(), turned(w))]);
            tensors.insert("vision_model.class_embedding".into(), ops::zeros::<f32>(&[8]).unwrap());
        }
        "bailing_moe" | "bailing_hybrid" => {
            apart(tensors, same);
            cut(tensors, "mlp.gate.gate_proj.weight", |w| vec![("mlp.gate.weight".into(), w.clone())]);
            join(tensors, ["embed_q.weight", "unembed_out.weight"], "kv_b_proj.weight", absorbed);
        }
        "kimi_linear" => {
            apart(tensors, [["gate_proj", "w1"], ["down_proj", "w2"], ["up_proj", "w3"]]);
            join(tensors, ["embed_q.weight", "unembed_out.weight"], "kv_b_proj.weight", absorbed);
            for name in ["experts", "shared_experts", "gate"] {
                let names: Vec<String> =
                    tensors.keys().filter(|k| k.contains(&format!(".mlp.{name}."))).cloned().collect();
                for key in names {
                    let tensor = tensors.swap_remove(&key).unwrap();
                    tensors.insert(key.replace(".mlp.", ".block_sparse_moe."), tensor);
                }
            }
            cut(tensors, "mlp.e_score_correction_bias", |b| {
                vec![("block_sparse_moe.gate.e_score_correction_bias".into(), b.clone())]
            });
            for part in ["q", "k", "v"] {
                let turned = |w: &Array| ops::transpose(w, Some(&[0, 2, 1])).unwrap();
                let name = format!("{part}_conv1d.weight");
                cut(tensors, &format!("{part}_conv.conv.weight"), |w| vec![(name.clone(), turned(w))]);
            }
            tensors.insert("model.mtp.fc.weight".into(), ops::zeros::<f32>(&[8]).unwrap());
        }
        "phixtral" => {
            for name in ["fc1", "fc2"] {
                for leaf in ["weight", "bias"] {
                    cut(tensors, &format!("switch_mlp.{name}.{leaf}"), |stack| {
                        let all = ops::split(stack, stack.dim(0), 0).unwrap().into_iter().enumerate();
                        all.map(|(e, w)| (format!("mlp.{e}.{name}.{leaf}"), ops::squeeze(&w, 0).unwrap())).collect()
                    });
                }
            }
        }
        "mamba2" | "nemotron_h" => conv(tensors, "conv1d.weight"),
        "granitemoehybrid" => {
            conv(tensors, "conv1d.weight");
            let names = ["switch_mlp.gate_proj.weight", "switch_mlp.up_proj.weight"];
            join(tensors, names, "input_linear.weight", |a, b| ops::concatenate(&[a.clone(), b.clone()], 1).unwrap());
            cut(tensors, "switch_mlp.down_proj.weight", |w| vec![("output_linear.weight".into(), w.clone())]);
        }
        _ => apart(tensors, same),
    }
}

#[test]
fn checkpoints_of_the_makers_load_as_mlx_checkpoints_do() {
    let kinds = [
        "bailing_hybrid",
        "bailing_moe",
        "deepseek_v3",
        "glm4_moe",
        "gpt_oss",
        "granitemoehybrid",
        "jamba",
        "kimi_linear",
        "lfm2",
        "llama4",
        "mamba",
        "mamba2",
        "mixtral",
        "nemotron_h",
        "phimoe",
        "phixtral",
        "qwen3_moe",
        "qwen3_next",
        "step3p5",
    ];
    for (kind, golden) in all().into_iter().filter(|(name, _)| kinds.contains(&name.as_str())) {
        let mut tensors = tensors(&golden["params"]);
        raw(&kind, &mut tensors);
        let load = |tensors: Arrays| {
            let config = golden["config"].as_object().unwrap().clone();
            let mut checkpoint = Checkpoint::from_parts(config, tensors).unwrap();
            models::load(&mut checkpoint).unwrap_or_else(|e| panic!("{kind}: {e}"))
        };
        let tokens = golden["tokens"].as_array().unwrap().iter();
        let tokens =
            tokens.map(|t| t.as_array().unwrap().iter().map(|v| v.as_i64().unwrap() as i32).collect()).collect();
        let mut g = Golden { model: load(tensors), tokens };
        let whole = g.whole();
        let far = difference(&whole, &golden["logits"]);
        assert!(far < 1e-4, "{kind}: logits differ by {far:.1e} of the largest");
        // Converting twice changes nothing.
        g.model = load(g.model.module().parameters().into_iter().collect());
        assert!(g.whole() == whole, "{kind}: other bits when it is read again");
    }
}

#[test]
fn long_texts_give_the_same_bits_in_chunks() {
    let mut failed = Vec::new();
    for (name, golden) in all() {
        let config = golden["config"].as_object().unwrap().clone();
        let mut checkpoint = Checkpoint::from_parts(config, tensors(&golden["params"])).unwrap();
        let g = Golden { model: models::load(&mut checkpoint).unwrap(), tokens: vec![] };
        let n = golden["config"]["n_positions"].as_u64().unwrap_or(430);
        let tokens: Vec<i32> = (0..n).map(|i| (uniform(7, i) * 96.0) as i32).collect();
        let whole = g.run(vec![(&tokens, &mut Sequence::new())]);
        let (mut sequence, mut got, mut at) = (Sequence::new(), Vec::new(), 0);
        let half = n as usize / 2;
        for n in [half + 3, 1, 40, 3, half - 47] {
            got.extend(g.run(vec![(&tokens[at..at + n], &mut sequence)]));
            at += n;
        }
        if let Some(at) = got.iter().zip(&whole).position(|(a, b)| a.to_bits() != b.to_bits()) {
            failed.push(format!("{name}: row {} has other bits ({} for {})", at / 96, got[at], whole[at]));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Guesses are taken back, across the borders of windows and of runs of positions too.
#[test]
fn what_was_guessed_is_forgotten() {
    for (name, golden) in all() {
        let config = golden["config"].as_object().unwrap().clone();
        let mut checkpoint = Checkpoint::from_parts(config, tensors(&golden["params"])).unwrap();
        let g = Golden { model: models::load(&mut checkpoint).unwrap(), tokens: vec![] };
        let tokens: Vec<i32> = (0..12).map(|i| (uniform(9, i) * 90.0) as i32).collect();
        let whole = g.run(vec![(&tokens, &mut Sequence::new())]);
        let mut sequence = Sequence::new();
        g.run(vec![(&tokens[..4], &mut sequence)]);
        for kept in [7, 9] {
            let (mark, from) = (sequence.mark(), sequence.len());
            let guessed: Vec<i32> = tokens[from..kept].iter().copied().chain([3, 1, 4, 1, 5]).collect();
            g.run(vec![(&guessed, &mut sequence)]);
            sequence.rewind(mark, kept);
            assert!([from, kept].contains(&sequence.len()), "{name}: {} tokens are left", sequence.len());
        }
        let (at, width) = (sequence.len(), whole.len() / tokens.len());
        let rest = g.run(vec![(&tokens[at..], &mut sequence)]);
        assert!(rest[..] == whole[at * width..], "{name}: other bits after guesses");
    }
}

/// A copy of a model with a change of low rank on every product, drawn from a seed.
fn fine_tuned(model: &dyn Model, seed: u64) -> Box<dyn Model> {
    let (mut copy, mut at) = (model.copied(), 0);
    for_each_packable(copy.module_mut(), &mut |_, layer| {
        let shape = layer.matrix().shape();
        let Some(slot) = layer.slot().filter(|slot| slot.side == Side::Linear) else { return };
        let shapes = Side::Linear.shapes(&shape, 2).unwrap();
        let [a, b] = [shapes.a, shapes.b].map(|shape| {
            let n: usize = shape.iter().product();
            at += 1;
            let drawn = (0..n as u64).map(|i| uniform(1000 * seed + at, i) as f32 - 0.5);
            Array::from_vec(drawn.collect::<Vec<f32>>(), &shape)
        });
        *slot.change = Some(Box::new(LowRank::from_parts(Side::Linear, [a, b], None, 0.5, 0.0).unwrap()));
    });
    copy.module_mut().eval();
    copy
}

/// Rows of a model and of fine-tuned copies of it go through one step with the bits that they have alone.
#[test]
fn rows_of_several_adapters_share_a_step() {
    // Of these, at least; copies of others may have steps of their own.
    let sharing = [
        "llama",
        "mistral",
        "llama-rope-llama3",
        "phi3",
        "gemma3",
        "qwen3_moe",
        "llama4_text",
        "qwen2",
        "qwen3",
        "gemma2",
        "mamba2",
        "phimoe",
        "nemotron_h",
        "falcon_h1",
    ];
    let mut failed = Vec::new();
    for (name, golden) in all() {
        let config = golden["config"].as_object().unwrap().clone();
        let mut checkpoint = Checkpoint::from_parts(config, tensors(&golden["params"])).unwrap();
        let mut base = models::load(&mut checkpoint).unwrap();
        base.module_mut().eval();
        let copies = [fine_tuned(&*base, 1), fine_tuned(&*base, 2)];
        let Some(mixed) = Mixed::new(&*base, &copies.each_ref().map(|copy| Some(&**copy))) else {
            if sharing.contains(&&*name) {
                failed.push(format!("{name}: its copies do not share steps"));
            }
            continue;
        };
        let [one, two] = copies;
        let models = [base, one, two];
        let tokens: Vec<i32> = (0..12).map(|i| (uniform(11, i) * 90.0) as i32).collect();
        // Rows of each of the three in two steps.
        let counts = [[5, 1], [3, 2], [1, 4]];
        let (mut got, mut alone) = (vec![Vec::new(); 3], vec![Vec::new(); 3]);
        let (mut together, mut apart) = (vec![Sequence::new(); 3], vec![Sequence::new(); 3]);
        let mut fault = None;
        for step in 0..2 {
            let rows: Vec<usize> = counts.iter().map(|c| c[step]).collect();
            let parts: Vec<&[i32]> = (0..3).map(|i| &tokens[apart[i].len()..apart[i].len() + rows[i]]).collect();
            let all: Vec<i32> = parts.iter().flat_map(|p| p.iter().copied()).collect();
            let n = all.len();
            let mut batch = mixed.batch(together.iter_mut().enumerate().map(|(i, s)| (rows[i], s, i)));
            let logits = mixed.model().hidden(&Array::from_vec(all, &[n]), &mut batch).and_then(|hidden| {
                batch.finish();
                let logits = mixed.logits(&hidden, rows.iter().copied().zip(0..))?;
                ops::astype(&logits, Dtype::Float32)?.to_vec::<f32>()
            });
            let logits = match logits {
                Ok(logits) => logits,
                Err(e) => {
                    fault = Some(e.message().to_string());
                    break;
                }
            };
            let (width, mut at) = (logits.len() / n, 0);
            for i in 0..3 {
                got[i].extend_from_slice(&logits[at * width..(at + rows[i]) * width]);
                at += rows[i];
                let g = Golden { model: models[i].copied(), tokens: vec![] };
                alone[i].extend(g.run(vec![(parts[i], &mut apart[i])]));
            }
        }
        match fault {
            Some(fault) => failed.push(format!("{name}: {fault}")),
            None if got != alone => failed.push(format!("{name}: other bits than alone")),
            None if alone[0] == alone[1] => failed.push(format!("{name}: the changes change nothing")),
            None => {}
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn wrong_numbers_in_configs_are_errors() {
    let mut failed = Vec::new();
    for (name, golden) in all() {
        let (config, tensors) = (golden["config"].as_object().unwrap(), tensors(&golden["params"]));
        for key in config.iter().filter(|(_, v)| v.is_number()).map(|(k, _)| k) {
            for wrong in [json!(0), json!(-1), json!(3), json!(1u64 << 40), json!(1.5), json!("x"), json!(null)] {
                let mut config = config.clone();
                config.insert(key.clone(), wrong.clone());
                let tensors = tensors.clone();
                // Either it is refused, or it does something.
                let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let mut checkpoint = Checkpoint::from_parts(config, tensors)?;
                    let model = models::load(&mut checkpoint)?;
                    let mut sequence = Sequence::new();
                    let hidden =
                        model.hidden(&Array::from_vec(vec![1, 2, 3], &[3]), &mut Batch::one(3, &mut sequence))?;
                    ops::astype(&model.logits(&hidden)?, Dtype::Float32)?.to_vec::<f32>()
                }));
                if tried.is_err() {
                    failed.push(format!("{name}: {key} = {wrong} panics"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn rwkv7_agrees_with_rwkv_cpp_and_mlx_lm() {
    let Some(dir) = shared("data/models/rwkv7-834K") else { return };
    let golden: Value = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    let list = |key: &str| golden[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
    let tokens = |key: &str| list(key).into_iter().map(|t| t as i32).collect::<Vec<_>>();
    let model = models::load(&mut Checkpoint::open(&dir).unwrap()).unwrap();
    let g = Golden { model, tokens: vec![] };
    let last = |rows: &[f32]| rows[rows.len() - 256..].to_vec();
    let logits = last(&g.run(vec![(&tokens("prompt_ids"), &mut Sequence::new())]));
    for (a, b) in logits.iter().zip(list("expected_logits_last")) {
        assert!((f64::from(*a) - b).abs() < 1e-4, "{a} for {b}");
    }
    // Greedy; then all of it at once has the bits of the steps.
    let (prompt, want) = (tokens("greedy_prompt_ids"), tokens("greedy_ids_mlx_lm_cpu"));
    let mut sequence = Sequence::new();
    let mut rows = last(&g.run(vec![(&prompt, &mut sequence)]));
    for (i, &token) in want.iter().enumerate() {
        let best = (0..256).fold(0, |m, i| if rows[i] > rows[m] { i } else { m });
        assert_eq!(best as i32, token, "token {i}");
        rows = g.run(vec![(&[token], &mut sequence)]);
    }
    let whole = g.run(vec![(&[prompt, want].concat(), &mut Sequence::new())]);
    assert!(last(&whole).iter().zip(&rows).all(|(a, b)| a.to_bits() == b.to_bits()), "other bits in steps");
}
