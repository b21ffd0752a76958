//! Files of what a model remembers: what is read back goes on as if it had never been written, and damage is told.

mod shared;

use lapis::io::{load_safetensors, save_safetensors};
use lapis::{Array, Dtype, ops};
use lapis_lm::prompt_cache::Layout;
use lapis_lm::{Batch, Checkpoint, Model, PromptCache, Sequence, models};
use serde_json::Value;
use shared::golden::{all, tensors, uniform};
use std::path::PathBuf;

/// A folder of this test's own, gone at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let dir = std::env::temp_dir().join(format!("lapis-prompt-caches-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Folder(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn model(golden: &Value) -> Box<dyn Model> {
    let config = golden["config"].as_object().unwrap().clone();
    models::load(&mut Checkpoint::from_parts(config, tensors(&golden["params"])).unwrap()).unwrap()
}

/// The bits of the logits of these tokens.
fn run(model: &dyn Model, tokens: &[u32], sequence: &mut Sequence) -> Vec<u32> {
    let mut batch = Batch::one(tokens.len(), sequence);
    let rows = Array::from_vec(tokens.iter().map(|&t| t as i32).collect(), &[tokens.len()]);
    let hidden = model.hidden(&rows, &mut batch).unwrap();
    batch.finish();
    let logits = ops::astype(&model.logits(&hidden).unwrap(), Dtype::Float32).unwrap();
    logits.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

fn text(n: u64) -> Vec<u32> {
    (0..n).map(|i| (uniform(5, i) * 96.0) as u32).collect()
}

fn read(model: &dyn Model, tokens: &[u32]) -> PromptCache {
    let mut sequence = Sequence::new();
    run(model, tokens, &mut sequence);
    PromptCache { sequence, tokens: tokens.to_vec(), notes: Default::default() }
}

#[test]
fn texts_go_on_from_files_as_without_them() {
    let folder = Folder::new("go-on");
    let file = folder.0.join("cache.safetensors");
    for (name, golden) in all() {
        let model = model(&golden);
        let most = golden["config"]["n_positions"].as_u64().unwrap_or(560);
        // Inside windows, beyond them, and beyond a block of keys.
        for n in [5, 30, most - 20] {
            let tokens = text(n + 20);
            let (before, after) = tokens.split_at(n as usize);
            let mut cache = read(&*model, before);
            for layout in [Layout::A, Layout::B] {
                cache.save(&file, &*model, layout).unwrap_or_else(|e| panic!("{name}: {e}"));
                let mut back = PromptCache::load(&file, &*model).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(back.tokens, before);
                let mut kept = cache.sequence.clone();
                for part in [&after[..1], &after[1..]] {
                    let [want, got] = [&mut kept, &mut back.sequence].map(|s| run(&*model, part, s));
                    assert!(want == got, "{name}: other bits after {n} tokens in layout {layout:?}");
                }
            }
            cache.tokens.pop();
            assert!(cache.save(&file, &*model, Layout::B).is_err(), "{name}: tokens that were not read");
        }
    }
}

#[test]
fn files_of_other_models_and_damaged_ones_are_refused() {
    let Some((_, llama)) = all().into_iter().find(|(name, _)| name == "llama") else { return };
    let folder = Folder::new("damage");
    let file = folder.0.join("cache.safetensors");
    let own = model(&llama);
    let complaint = |model: &dyn Model| PromptCache::load(&file, model).unwrap_err().message().to_string();
    read(&*own, &text(20)).save(&file, &*own, Layout::B).unwrap();
    // A fingerprint is of weights.
    for (name, golden) in all().into_iter().filter(|(_, golden)| golden["params"] != llama["params"]) {
        let said = complaint(&*model(&golden));
        assert!(said.contains("fingerprint is") && said.contains("that of this model"), "{name}: {said}");
    }
    let mut half = model(&llama);
    half.module_mut().set_dtype(Dtype::Bfloat16).unwrap();
    let said = complaint(&*half);
    assert!(said.contains("float32") && said.contains("bfloat16"), "{said}");

    for layout in [Layout::A, Layout::B] {
        read(&*own, &text(20)).save(&file, &*own, layout).unwrap();
        let (arrays, metadata) = load_safetensors(&file).unwrap();
        let arrays: Vec<(String, Array)> =
            arrays.into_iter().map(|(k, a)| (k, ops::contiguous(&a, false).unwrap())).collect();
        lapis::eval(arrays.iter().map(|(_, a)| a)).unwrap();
        let origin = if layout == Layout::A { "1.lapis" } else { "0.lapis" };
        let kind = if layout == Layout::A { "2.1" } else { "1.1" };
        let cut = |a: &Array| ops::slice(a, &[(None, None, 1), (None, None, 1), (None, Some(7), 1)]).unwrap();
        type Change<'a> = &'a dyn Fn(&mut Vec<(String, Array)>, &mut lapis::io::Metadata);
        let cases: &[(Change, &str)] = &[
            (&|_, m| drop(m.swap_remove("2.0")), "no 2.0"),
            (&|_, m| drop(m.insert(kind.into(), "PoolingCache".into())), "layer 1 is a PoolingCache"),
            (&|_, m| drop(m.insert(kind.into(), "ChunkedKVCache".into())), "layer 1"),
            (&|_, m| drop(m.insert(kind.into(), "CacheList".into())), "layer 1"),
            (&|_, m| drop(m.insert(kind.into(), "RotatingKVCache".into())), "layer 1"),
            (&|_, m| drop(m.insert(kind.into(), "ArraysCache".into())), "layer 1"),
            (&|t, _| drop(t.remove(0)), "missing"),
            (&|t, _| t[0].1 = cut(&t[0].1), "layer 0: keys"),
            (&|t, _| t[0].1 = ops::astype(&t[0].1, Dtype::Float16).unwrap(), "float16 in the file"),
            (&|t, _| t.iter_mut().take(2).for_each(|t| t.1 = cut(&t.1)), "layer 0"),
            (&|t, _| t.push(("9.0".into(), t[0].1.clone())), "belongs to no layer"),
            (&|_, m| m[origin] = m[origin].replace("\"version\":1", "\"version\":2"), "version 2"),
            (&|_, m| m[origin] = m[origin].replace("\"token_count\":20", "\"token_count\":19"), "token_count"),
            (&|_, m| m[origin].truncate(30), "damaged"),
        ];
        for (change, part) in cases {
            let (mut arrays, mut metadata) = (arrays.clone(), metadata.clone());
            change(&mut arrays, &mut metadata);
            save_safetensors(&file, arrays.iter().map(|(k, a)| (k, a)), &metadata).unwrap();
            let said = complaint(&*own);
            assert!(said.contains(part) && said.contains("cache.safetensors"), "{layout:?}, {part}: {said}");
        }
    }
    std::fs::write(&file, b"short").unwrap();
    assert!(complaint(&*own).contains("cache.safetensors"));
}

/// `data/prompt_caches/make.py` says how they came about.
#[test]
fn files_that_mlx_lm_wrote_are_gone_on_from() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/prompt_caches");
    let goldens = all();
    for file in std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        let (kind, end) = name.split_once('.').unwrap();
        let kind = if kind == "ring" { "llama" } else { kind };
        let Some((_, golden)) = goldens.iter().find(|(name, _)| name == kind && end != "py") else { continue };
        let model = model(golden);
        let numbers = |text: &str| serde_json::from_str::<Vec<u32>>(text).unwrap();
        let notes = PromptCache::notes(&file).unwrap();
        let (prompt, next) = (numbers(&notes["prompt"]), numbers(&notes["next"]));
        let mut cache = PromptCache::load(&file, &*model).unwrap();
        // A file of recurrences alone does not say how many tokens they have seen.
        assert!(cache.sequence.len() == prompt.len() || kind == "mamba2", "{name}");
        assert_eq!(cache.tokens.len(), cache.sequence.len(), "{name}");
        let go = |sequence: &mut Sequence| -> Vec<u32> {
            let mut said = vec![next[0]];
            for _ in 1..next.len() {
                let row = run(&*model, &said[said.len() - 1..], sequence);
                let best = (0..row.len()).fold(0, |m, i| match f32::from_bits(row[i]) > f32::from_bits(row[m]) {
                    true => i,
                    false => m,
                });
                said.push(best as u32);
            }
            said
        };
        assert_eq!(go(&mut cache.sequence), next, "{name}");
        // The same without the file.
        let mut sequence = Sequence::with(cache.sequence.options());
        run(&*model, &prompt, &mut sequence);
        assert_eq!(go(&mut sequence), next, "{name}: without the file");
    }
}
