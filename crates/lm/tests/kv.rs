//! Packed and bounded memories of keys and values: the same bits however rows come, near what full memories give.

mod shared;

use lapis::ops::quantize::Format;
use lapis::{Array, Dtype, ops};
use lapis_lm::engine::{Drafter, Engine, Event, Prefixes, Request};
use lapis_lm::{Batch, Checkpoint, KvOptions, Model, PromptCache, Sampling, Sequence, models};
use serde_json::{Value, json};
use shared::golden::{all, folder, tensors, uniform};
use std::sync::Arc;

/// A golden model with half as many heads of twice the width, which a group of 32 divides, and whose routers take all
/// experts: where they choose, two that are nearly as good make a step out of a small difference. Phi's router weighs
/// them by steps anyway.
fn wide(golden: &Value) -> Option<Box<dyn Model>> {
    let (mut config, mut params) = (golden["config"].clone(), golden["params"].clone());
    let heads = config["num_attention_heads"].as_u64()?;
    let own = config["head_dim"].as_u64().or(Some(config["hidden_size"].as_u64()? / heads))?;
    if own != 16 || config.get("kv_lora_rank").is_some() || config["model_type"] == "phimoe" {
        return None;
    }
    config["num_attention_heads"] = json!(heads / 2);
    config["num_key_value_heads"] = json!(config["num_key_value_heads"].as_u64().unwrap_or(heads) / 2);
    if config.get("head_dim").is_some() {
        config["head_dim"] = json!(32);
    }
    for experts in ["num_experts", "num_local_experts", "n_routed_experts"] {
        if let Some(n) = config.get(experts).cloned() {
            config["num_experts_per_tok"] = n;
        }
    }
    for (name, spec) in params.as_object_mut()? {
        if ["q_norm.weight", "k_norm.weight"].iter().any(|n| name.ends_with(n)) && spec["shape"] == json!([16]) {
            spec["shape"] = json!([32]);
        }
        if name.ends_with("sinks") {
            spec["shape"] = json!([heads / 2]);
        }
    }
    models::load(&mut Checkpoint::from_parts(config.as_object()?.clone(), tensors(&params)).ok()?).ok()
}

fn run(model: &dyn Model, batch: Vec<(&[i32], &mut Sequence)>) -> Vec<f32> {
    let tokens: Vec<i32> = batch.iter().flat_map(|b| b.0).copied().collect();
    let n = tokens.len();
    let mut rows = Batch::new(batch.into_iter().map(|(t, s)| (t.len(), s)));
    let hidden = model.hidden(&Array::from_vec(tokens, &[n]), &mut rows).unwrap();
    rows.finish();
    ops::astype(&model.logits(&hidden).unwrap(), Dtype::Float32).unwrap().to_vec().unwrap()
}

fn text(n: u64, seed: u64) -> Vec<i32> {
    (0..n).map(|i| (uniform(seed, i) * 96.0) as i32).collect()
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

fn packed(start: usize) -> KvOptions {
    KvOptions { format: Some(Format::affine(8, 32).unwrap()), start, max: None }
}

/// Whole, in uneven steps, and beside another sequence: the same bits. Gives the logits.
fn check(name: &str, model: &dyn Model, tokens: &[i32], kv: KvOptions) -> Vec<f32> {
    let whole = run(model, vec![(tokens, &mut Sequence::with(kv))]);
    let (mut sequence, mut got, mut at) = (Sequence::with(kv), Vec::new(), 0);
    for n in [300, 1, 210, 1, 1, 1, 90].into_iter().chain(std::iter::repeat(37)) {
        let end = (at + n).min(tokens.len());
        got.extend(run(model, vec![(&tokens[at..end], &mut sequence)]));
        at = end;
        if at == tokens.len() {
            break;
        }
    }
    assert!(same(&got, &whole), "{name}, {kv:?}: other bits in steps");
    let (mut one, mut two) = (Sequence::with(kv), Sequence::with(kv));
    let width = whole.len() / tokens.len();
    let mut got = run(model, vec![(&tokens[..500], &mut one)]);
    run(model, vec![(&tokens[5..20], &mut two)]);
    got.extend(run(model, vec![(&tokens[500..], &mut one), (&tokens[20..700], &mut two)]));
    assert!(same(&got[..whole.len()], &whole), "{name}, {kv:?}: other bits in a batch of width {width}");
    whole
}

/// Steps of which the last rows are looked at: the same bits as of all, and the same memory. Whether others were left out.
fn look(name: &str, model: &dyn Model, tokens: &[i32], kv: KvOptions) -> bool {
    let whole = run(model, vec![(tokens, &mut Sequence::with(kv))]);
    let width = whole.len() / tokens.len();
    let (mut one, mut two, mut narrow) = (Sequence::with(kv), Sequence::with(kv), Vec::new());
    let mut step = |parts: [(&mut Sequence, usize, usize); 2]| {
        let parts = parts.into_iter().filter(|p| p.1 > 0);
        let (mut rows, mut tails, mut wanted, mut all) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (sequence, count, tail) in parts {
            let range = sequence.len()..sequence.len() + count;
            all.extend_from_slice(&tokens[range.clone()]);
            wanted.extend_from_slice(&whole[(range.end - tail) * width..range.end * width]);
            rows.push((count, sequence));
            tails.push(tail);
        }
        let mut batch = Batch::new(rows);
        batch.look_at(tails.clone());
        let n = all.len();
        let hidden = model.hidden(&Array::from_vec(all, &[n]), &mut batch).unwrap();
        narrow.push(batch.is_narrow());
        batch.finish();
        if narrow.last() == Some(&true) {
            assert_eq!(hidden.dim(0), tails.iter().sum::<usize>(), "{name}");
            let logits = ops::astype(&model.logits(&hidden).unwrap(), Dtype::Float32).unwrap();
            assert!(same(&logits.to_vec().unwrap(), &wanted), "{name}, {kv:?}: other bits of {tails:?} rows");
        }
    };
    step([(&mut one, 300, 1), (&mut two, 0, 0)]);
    step([(&mut one, 280, 3), (&mut two, 7, 2)]);
    step([(&mut one, 1, 1), (&mut two, 570, 1)]);
    step([(&mut one, 60, 59), (&mut two, 1, 1)]);
    step([(&mut one, 1, 1), (&mut two, 1, 1)]);
    assert!(narrow[..4].iter().all(|n| *n == narrow[0]) && !narrow[4], "{name}: {narrow:?}");
    // All rows of the steps after it.
    let at = one.len();
    let got = run(model, vec![(&tokens[at..], &mut one)]);
    assert!(same(&got, &whole[at * width..]), "{name}, {kv:?}: other bits afterwards");
    narrow[0]
}

#[test]
fn rows_that_nobody_looks_at_are_left_out() {
    let (mut left_out, mut families) = (0, 0);
    for (name, golden) in all() {
        let config = golden["config"].as_object().unwrap().clone();
        if config.get("n_positions").is_some() {
            continue;
        }
        let model = models::load(&mut Checkpoint::from_parts(config, tensors(&golden["params"])).unwrap()).unwrap();
        left_out += usize::from(look(&name, &*model, &text(700, 4), KvOptions::default()));
        look(&name, &*model, &text(700, 4), KvOptions { max: Some(64), ..KvOptions::default() });
        if let Some(model) = wide(&golden) {
            look(&name, &*model, &text(700, 4), packed(530));
        }
        families += 1;
    }
    assert!(2 * left_out > families || folder().is_none(), "{left_out} of {families} families");
    println!("the last layer leaves rows out in {left_out} of {families} families");
}

#[test]
fn packed_memories_are_near_full_ones_and_the_same_however_rows_come() {
    let mut checked = 0;
    for (name, golden) in all() {
        let Some(model) = wide(&golden) else { continue };
        checked += 1;
        // Two whole blocks, and rows that see both.
        let tokens = text(1100, 3);
        let mut full = Sequence::new();
        let plain = run(&*model, vec![(&tokens, &mut full)]);
        for start in [0, 700] {
            let got = check(&name, &*model, &tokens, packed(start));
            let largest = plain.iter().fold(0f32, |m, x| m.max(x.abs()));
            let worst = got.iter().zip(&plain).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
            assert!(worst < 2e-2, "{name}: logits differ by {worst:.1e} of the largest");
            assert!(same(&got[..512 * 96], &plain[..512 * 96]), "{name}: the first block is read as it is");
        }
        let mut sequence = Sequence::with(packed(0));
        run(&*model, vec![(&tokens, &mut sequence)]);
        run(&*model, vec![(&[1], &mut sequence)]);
        let windowed = full.is_free();
        assert!(!windowed || sequence.bytes() * 10 < full.bytes() * 7, "{name}: {} {}", sequence.bytes(), full.bytes());
    }
    assert!(checked > 8 || folder().is_none(), "{checked} families");
}

#[test]
fn widths_that_groups_do_not_divide_are_told() {
    let Some((_, golden)) = all().into_iter().find(|(name, _)| name == "llama") else { return };
    let config = golden["config"].as_object().unwrap().clone();
    let model = models::load(&mut Checkpoint::from_parts(config, tensors(&golden["params"])).unwrap()).unwrap();
    let mut sequence = Sequence::with(packed(0));
    let mut batch = Batch::one(1, &mut sequence);
    let said = model.hidden(&Array::from_vec(vec![1i32], &[1]), &mut batch).unwrap_err().message().to_string();
    assert!(said.contains("16 columns") && said.contains("32"), "{said}");
    assert!(KvOptions { max: Some(4), ..KvOptions::default() }.check().is_err());
}

fn engine(model: &Arc<dyn Model>, kv: KvOptions) -> Engine {
    let mut engine = Engine::new(Arc::clone(model), 96);
    engine.kv = kv;
    engine
}

fn texts(engine: &mut Engine, prompts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let mut ids = Vec::new();
    for prompt in prompts {
        let sampling = Sampling { temperature: 0.8, seed: 5, ..Sampling::default() };
        let request = Request { prompt: prompt.clone(), max_tokens: 40, sampling, ..Request::default() };
        ids.push(engine.add(request, Sequence::new()).unwrap());
    }
    let mut texts = vec![Vec::new(); ids.len()];
    let each = |event| {
        match event {
            Event::Token { id, choice, .. } => texts[ids.iter().position(|i| *i == id).unwrap()].push(choice.token),
            Event::Failed { error, .. } => panic!("{error}"),
            Event::Started { .. } | Event::Prefill { .. } | Event::Scored { .. } => {}
        }
        true
    };
    engine.run(each).unwrap();
    texts
}

#[test]
fn guesses_and_shared_beginnings_change_no_text() {
    for (name, golden) in all().into_iter().filter(|(n, _)| ["llama", "gpt_oss", "qwen3_next"].contains(&n.as_str())) {
        let Some(model) = wide(&golden).map(Arc::<dyn Model>::from) else { continue };
        // Guesses around the end of a block; beginnings inside a block and at its end.
        let long: Vec<u32> = (0..1030).map(|i| (uniform(2, i % 40) * 96.0) as u32).collect();
        let prompts: Vec<Vec<u32>> = [500, 505, 1000, 1015, 1030, 600].iter().map(|&n| long[..n].to_vec()).collect();
        for kv in [packed(0), packed(520), KvOptions { max: Some(40), ..KvOptions::default() }] {
            let cold: Vec<Vec<u32>> =
                prompts.iter().flat_map(|p| texts(&mut engine(&model, kv), std::slice::from_ref(p))).collect();
            let mut guessing = engine(&model, kv);
            (guessing.drafter, guessing.draft_tokens) = (Some(Drafter::Lookup), 4);
            assert_eq!(texts(&mut guessing, &prompts), cold, "{name}, {kv:?}: guesses");
            let mut sharing = engine(&model, kv);
            sharing.prefixes = Some(Prefixes::new(1 << 28));
            for (p, cold) in prompts.iter().zip(&cold) {
                assert_eq!(&texts(&mut sharing, std::slice::from_ref(p))[0], cold, "{name}, {kv:?}: shared");
            }
        }
    }
}

#[test]
fn bounded_memories_see_the_first_and_the_latest() {
    for (name, golden) in all() {
        let config = golden["config"].as_object().unwrap().clone();
        if config.get("n_positions").is_some() {
            continue;
        }
        let model = models::load(&mut Checkpoint::from_parts(config, tensors(&golden["params"])).unwrap()).unwrap();
        // The second block leaves at 512 + 512 + 64.
        let (tokens, kv) = (text(1250, 9), KvOptions { max: Some(64), ..KvOptions::default() });
        let mut full = Sequence::new();
        let plain = run(&*model, vec![(&tokens, &mut full)]);
        let got = check(&name, &*model, &tokens, kv);
        assert!(same(&got[..64 * 96], &plain[..64 * 96]), "{name}: within the bound");
        assert!(full.bytes() == 0 || !full.is_free() || !same(&got, &plain), "{name}: the bound is looked at");
        // Files of it go on with the same bits.
        let (before, after) = tokens.split_at(1150);
        let mut sequence = Sequence::with(kv);
        run(&*model, vec![(before, &mut sequence)]);
        let file = std::env::temp_dir().join(format!("lapis-ring-{}-{name}.safetensors", std::process::id()));
        let tokens = before.iter().map(|&t| t as u32).collect();
        let cache = PromptCache { sequence, tokens, notes: Default::default() };
        cache.save(&file, &*model, Default::default()).unwrap();
        let mut back = PromptCache::load(&file, &*model).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(same(&run(&*model, vec![(after, &mut back.sequence)]), &got[1150 * 96..]), "{name}: after a file");
    }
}
