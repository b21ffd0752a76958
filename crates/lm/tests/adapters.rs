//! Adapters against mlx-lm in float32 (`data/adapters.py`): LoRA, DoRA and full weights on plain and packed models; PEFT's
//! form of the same numbers; what is refused, and how.

#[allow(dead_code)]
mod shared;

use lapis::io::{Arrays, save_safetensors};
use lapis::{Array, Dtype, ops};
use lapis_lm::{Adapter, Batch, Checkpoint, LanguageModel, Model, Sequence, adapter, load_with_adapter, models};
use lapis_nn::{Packing, for_each_packable, quantize};
use serde_json::{Value, json};
use shared::golden::tensors;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn data() -> Value {
    serde_json::from_str(include_str!("data/adapters.json")).unwrap()
}

/// A folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("lapis-adapters-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    /// Writes an adapter.
    fn fill(&self, config: &Value, file: &str, tensors: &Arrays) -> &Path {
        std::fs::write(self.0.join("adapter_config.json"), config.to_string()).unwrap();
        save_safetensors(self.0.join(file), tensors, &Default::default()).unwrap();
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn model(data: &Value, case: &Value) -> Box<dyn Model> {
    let stored = &data["models"][case["model"].as_str().unwrap()];
    let config = stored["config"].as_object().unwrap().clone();
    let mut model = models::load(&mut Checkpoint::from_parts(config, tensors(&stored["params"])).unwrap()).unwrap();
    if case["packed"] == true {
        quantize(model.module_mut(), Packing::new(lapis::ops::quantize::Mode::Affine, Some(4), Some(32)).unwrap())
            .unwrap();
    }
    model
}

/// The tensors of an adapter by their names in files.
fn changes(case: &Value) -> Arrays {
    let renamed = case["adapter"].as_object().unwrap().iter().map(|(k, v)| (format!("adapter.{k}"), v.clone()));
    let drawn = tensors(&Value::Object(renamed.collect()));
    drawn.into_iter().map(|(k, v)| (k["adapter.".len()..].to_string(), v)).collect()
}

fn put(adapter: &Adapter, model: &mut dyn Model) {
    adapter.apply(model).unwrap();
    model.module_mut().eval();
}

fn logits(model: &dyn Model, batch: &mut [(&[i32], &mut Sequence)]) -> Vec<f32> {
    let tokens: Vec<i32> = batch.iter().flat_map(|b| b.0).copied().collect();
    let n = tokens.len();
    let mut rows = Batch::new(batch.iter_mut().map(|(t, s)| (t.len(), &mut **s)));
    let hidden = model.hidden(&Array::from_vec(tokens, &[n]), &mut rows).unwrap();
    rows.finish();
    ops::astype(&model.logits(&hidden).unwrap(), Dtype::Float32).unwrap().to_vec().unwrap()
}

fn tokens(data: &Value) -> Vec<i32> {
    data["tokens"].as_array().unwrap().iter().map(|t| t.as_i64().unwrap() as i32).collect()
}

/// The largest difference from what mlx-lm computes.
fn worst(data: &Value, case: &Value, model: &dyn Model) -> f32 {
    let tokens = tokens(data);
    let all = logits(model, &mut [(&tokens, &mut Sequence::new())]);
    let width = all.len() / tokens.len();
    let rows = data["rows"].as_array().unwrap().iter().map(|r| r.as_u64().unwrap() as usize);
    let ours: Vec<f32> = rows.flat_map(|r| all[r * width..(r + 1) * width].to_vec()).collect();
    let want = case["logits"].as_array().unwrap();
    assert_eq!(ours.len(), want.len());
    ours.iter().zip(want).map(|(a, b)| (a - b.as_f64().unwrap() as f32).abs()).fold(0.0, f32::max)
}

fn each(mut f: impl FnMut(&Value, &str, &Value, &Adapter)) {
    let data = data();
    for (name, case) in data["cases"].as_object().unwrap() {
        let folder = Folder::new(&format!("each-{name}-{:?}", std::thread::current().id()));
        let dir = folder.fill(&case["adapter_config"], "adapters.safetensors", &changes(case));
        f(&data, name, case, &Adapter::open(dir).unwrap());
    }
}

#[test]
fn adapters_agree_with_mlx_lm() {
    each(|data, name, case, adapter| {
        let mut model = model(data, case);
        assert!(worst(data, case, &*model) > 0.05, "{name}: the adapter changes nothing");
        put(adapter, &mut *model);
        let worst = worst(data, case, &*model);
        assert!(worst < 3e-5, "{name}: {worst}");
    });
}

#[test]
fn a_merged_adapter_says_the_same() {
    each(|data, name, case, adapter| {
        let mut model = model(data, case);
        put(adapter, &mut *model);
        let mut merged = 0;
        for_each_packable(model.module_mut(), &mut |_, layer| merged += usize::from(layer.merge(true).unwrap()));
        assert_eq!(merged > 0, adapter.kind != "full", "{name}");
        assert!(adapter::digest(model.module()).unwrap().is_none());
        let worst = worst(data, case, &*model);
        assert!(worst < 3e-5, "{name}: {worst}");
    });
}

#[test]
fn rows_are_the_same_bits_alone_in_a_batch_and_in_steps() {
    each(|data, name, case, adapter| {
        let mut model = model(data, case);
        put(adapter, &mut *model);
        let tokens = tokens(data);
        let alone = logits(&*model, &mut [(&tokens, &mut Sequence::new())]);
        let (mut a, mut b) = (Sequence::new(), Sequence::new());
        let both = logits(&*model, &mut [(&[7, 1, 4], &mut a), (&tokens, &mut b)]);
        assert_eq!(both[both.len() - alone.len()..], alone[..], "{name}: in a batch");
        let mut sequence = Sequence::new();
        let steps: Vec<f32> = tokens.iter().flat_map(|t| logits(&*model, &mut [(&[*t], &mut sequence)])).collect();
        assert_eq!(steps, alone, "{name}: in steps");
    });
}

#[test]
fn a_model_with_an_adapter_shares_the_arrays_of_the_one_without() {
    each(|data, name, case, adapter| {
        let base = model(data, case);
        let before = worst(data, case, &*base);
        let mut other = base.copied();
        put(adapter, &mut *other);
        let (own, shared) = (other.module().parameters(), base.module().parameters());
        let same = shared.iter().filter(|(path, array)| own[*path].id() == array.id()).count();
        assert_eq!(
            same,
            shared.len() - if adapter.kind == "full" { case["adapter"].as_object().unwrap().len() } else { 0 }
        );
        assert_eq!(worst(data, case, &*base), before, "{name}: the base has changed");
        let digest = |m: &dyn Model| adapter::digest(m.module()).unwrap();
        assert_eq!((digest(&*base), digest(&*other).is_some()), (None, adapter.kind != "full"), "{name}");
    });
}

/// The tensors and configuration of a case in PEFT's form.
fn peft(case: &Value) -> (Value, Arrays) {
    let mut found = Arrays::default();
    for (name, value) in changes(case) {
        let (path, leaf) = name.rsplit_once('.').unwrap();
        let turned = || ops::contiguous(&ops::transpose(&value, None).unwrap(), false).unwrap();
        let name = |end: &str| format!("base_model.model.{path}.{end}");
        let table = path.ends_with("embed_tokens");
        let entry = match (leaf, table) {
            ("lora_a", false) => (name("lora_A.weight"), turned()),
            ("lora_b", false) => (name("lora_B.weight"), turned()),
            ("lora_a", true) => (name("lora_embedding_A"), turned()),
            ("lora_b", true) => (name("lora_embedding_B"), turned()),
            _ => (name("lora_magnitude_vector"), value.clone()),
        };
        found.insert(entry.0, entry.1);
    }
    let dora = case["adapter_config"]["fine_tune_type"] == "dora";
    (
        json!({"peft_type": "LORA", "r": 3, "lora_alpha": 7.5, "use_dora": dora, "base_model_name_or_path": "tiny"}),
        found,
    )
}

#[test]
fn adapters_of_peft_say_the_same() {
    let data = data();
    for name in ["lora", "lora_parts", "lora_packed", "dora", "dora_parts"] {
        let case = &data["cases"][name];
        let folder = Folder::new(&format!("peft-{name}"));
        let (mut config, tensors) = peft(case);
        for change in ["plain", "rslora", "patterns"] {
            match change {
                "rslora" => {
                    config["use_rslora"] = true.into();
                    config["lora_alpha"] = json!(2.5 * 3f64.sqrt());
                }
                "patterns" => {
                    config["use_rslora"] = false.into();
                    (config["lora_alpha"], config["r"]) = (json!(1), json!(1));
                    let leaves: Vec<&str> =
                        tensors.keys().filter_map(|k| k.split(".lora").next()?.rsplit('.').next()).collect();
                    config["rank_pattern"] =
                        leaves.iter().map(|l| (l.to_string(), json!(3))).collect::<serde_json::Map<_, _>>().into();
                    config["alpha_pattern"] =
                        leaves.iter().map(|l| (l.to_string(), json!(7.5))).collect::<serde_json::Map<_, _>>().into();
                }
                _ => {}
            }
            let adapter = Adapter::open(folder.fill(&config, "adapter_model.safetensors", &tensors)).unwrap();
            let mut model = model(&data, case);
            put(&adapter, &mut *model);
            let worst = worst(&data, case, &*model);
            assert!(worst < 3e-5, "{name} {change}: {worst}");
        }
    }
}

#[test]
fn adapters_are_written_as_peft_has_them() {
    let data = data();
    for name in ["lora", "lora_parts", "lora_packed", "dora", "dora_parts"] {
        let case = &data["cases"][name];
        let (from, to) = (Folder::new(&format!("from-{name}")), Folder::new(&format!("to-{name}")));
        let (config, tensors) = peft(case);
        let adapter = Adapter::open(from.fill(&config, "adapter_model.safetensors", &tensors)).unwrap();
        let mut changed = model(&data, case);
        put(&adapter, &mut *changed);
        adapter::peft::write(&mut *changed, Some("owner/base"), &to.0).unwrap();

        let written = lapis::io::load_safetensors(to.0.join("adapter_model.safetensors")).unwrap().0;
        assert_eq!(written.len(), tensors.len());
        for (key, value) in &tensors {
            assert_eq!(written[key].to_bytes().unwrap(), value.to_bytes().unwrap(), "{name}: {key}");
        }
        let config: Value = serde_json::from_slice(&std::fs::read(to.0.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(3), &json!(7.5)));
        let targets = config["target_modules"].as_array().unwrap().iter().map(|t| t.as_str().unwrap());
        let paths = tensors.keys().map(|k| k["base_model.model.".len()..].split(".lora_").next().unwrap());
        assert_eq!(targets.collect::<BTreeSet<_>>(), paths.collect::<BTreeSet<_>>(), "{name}");
        let mut again = model(&data, case);
        let adapter = Adapter::open(&to.0).unwrap();
        assert_eq!(adapter.base.as_deref(), Some("owner/base"));
        put(&adapter, &mut *again);
        let worst = worst(&data, case, &*again);
        assert!(worst < 3e-5, "{name}: {worst}");
    }
    let (case, folder) = (&data["cases"]["lora"], Folder::new("no-change"));
    let e = adapter::peft::write(&mut *model(&data, case), None, &folder.0).unwrap_err();
    assert!(e.message().contains("no changes of low rank"), "{e}");
}

#[test]
fn experts_of_their_own_are_stacked() {
    let data = data();
    let case = &data["cases"]["lora_experts"];
    let mut found = Arrays::default();
    for (name, value) in changes(case) {
        let (path, leaf) = name.rsplit_once('.').unwrap();
        let end = if leaf == "lora_a" { "lora_A.weight" } else { "lora_B.weight" };
        match path.split_once(".switch_mlp.") {
            Some((head, layer)) => {
                for (e, part) in ops::split(&value, value.dim(0), 0).unwrap().iter().enumerate() {
                    let part = ops::contiguous(&ops::squeeze(part, [0]).unwrap(), false).unwrap();
                    found.insert(format!("base_model.model.{head}.experts.{e}.{layer}.{end}"), part);
                }
            }
            None => {
                let turned = ops::contiguous(&ops::transpose(&value, None).unwrap(), false).unwrap();
                found.insert(format!("base_model.model.{path}.{end}"), turned);
            }
        }
    }
    let folder = Folder::new("peft-experts");
    let config = json!({"peft_type": "LORA", "r": 3, "lora_alpha": 7.5});
    let adapter = Adapter::open(folder.fill(&config, "adapter_model.safetensors", &found)).unwrap();
    let mut model = model(&data, case);
    put(&adapter, &mut *model);
    let worst = worst(&data, case, &*model);
    assert!(worst < 3e-5, "{worst}");
}

#[test]
fn what_does_not_fit_is_refused_and_explained() {
    let data = data();
    let case = &data["cases"]["lora"];
    let folder = Folder::new("refused");
    let good = changes(case);
    let try_it = |config: &Value, tensors: &Arrays| -> String {
        let dir = folder.fill(config, "adapters.safetensors", tensors);
        let done = Adapter::open(dir).and_then(|a| a.apply(&mut *model(&data, case)));
        let message = done.unwrap_err().message().to_string();
        assert!(message.contains(folder.0.to_str().unwrap()), "{message}");
        message
    };
    let config = |pointer: &str, value: Value| {
        let mut config = case["adapter_config"].clone();
        *config.pointer_mut(pointer).unwrap() = value;
        config
    };
    let own = &case["adapter_config"];
    let has = |message: String, parts: &[&str]| {
        assert!(parts.iter().all(|p| message.contains(p)), "{message}");
    };
    let alpha = json!({"rank": 3, "alpha": 16, "dropout": 0.0});
    has(try_it(&config("/lora_parameters", alpha), &good), &["alpha", "scale"]);
    has(try_it(&config("/lora_parameters", json!({"rank": 3})), &good), &["scale"]);
    has(try_it(&config("/lora_parameters/rank", json!(4)), &good), &["rank 4", "lora_a", "(32,3)"]);
    has(try_it(&config("/fine_tune_type", json!("ia3")), &good), &["ia3", "lora, dora, full"]);
    has(try_it(&config("/num_layers", json!(1)), &good), &["num_layers is 1", "7 of its tensors"]);
    has(try_it(&config("/num_layers", json!("1")), &good), &["num_layers"]);
    has(
        try_it(&config("/lora_parameters", json!({"rank": 3, "scale": 1, "keys": ["mlp.up_proj"]})), &good),
        &["does not name"],
    );
    let (a, b) = ("model.layers.2.mlp.up_proj.lora_a", "model.layers.2.mlp.up_proj.lora_b");
    let changed = |f: &dyn Fn(&mut Arrays)| {
        let mut tensors = good.clone();
        f(&mut tensors);
        tensors
    };
    has(try_it(own, &changed(&|t| drop(t.swap_remove(b)))), &["model.layers.2.mlp.up_proj", "lacks lora_b"]);
    has(try_it(own, &changed(&|t| drop(t.insert("extra.weight".into(), t[a].clone())))), &["extra.weight", "no part"]);
    has(try_it(own, &changed(&|t| drop(t.insert(a.into(), t[b].clone())))), &[a.trim_end_matches(".lora_a"), "shape"]);
    let bad = Array::from_vec(vec![f32::NAN; 96], &[32, 3]);
    has(try_it(own, &changed(&|t| drop(t.insert(a.into(), bad.clone())))), &[a, "NaN"]);
    let other = |t: &mut Arrays| {
        for (name, value) in std::mem::take(t) {
            t.insert(name.replace("up_proj", "other"), value);
        }
    };
    has(try_it(own, &changed(&other)), &["model.layers.2.mlp.other", "no such layer", "was trained on"]);
    std::fs::remove_file(folder.0.join("adapters.safetensors")).unwrap();
    has(Adapter::open(&folder.0).err().unwrap().message().to_string(), &["adapters.safetensors"]);
    std::fs::remove_file(folder.0.join("adapter_config.json")).unwrap();
    has(Adapter::open(&folder.0).err().unwrap().message().to_string(), &["adapter_config.json"]);
    has(Adapter::open(folder.0.join("no")).err().unwrap().message().to_string(), &["does not exist"]);
}

#[test]
fn the_demo_model_writes_otherwise_with_an_adapter() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/demo-model/model");
    let base: LanguageModel = lapis_lm::load(demo).unwrap();
    let folder = Folder::new("demo");
    let mut found = Arrays::default();
    let mut copy = base.model.copied();
    for_each_packable(copy.module_mut(), &mut |path, layer| {
        let shape = layer.matrix().shape();
        if path.ends_with("q_proj") {
            let key = lapis::random::key(found.len() as u64 + 7);
            let a = lapis::random::normal(&[shape[1], 4], Dtype::Float32, None, None, Some(&key)).unwrap();
            let b = lapis::random::normal(&[4, shape[0]], Dtype::Float32, None, None, Some(&key)).unwrap();
            found.extend([(format!("{path}.lora_a"), a), (format!("{path}.lora_b"), b)]);
        }
    });
    let config = json!({"num_layers": -1, "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0}});
    let dir = folder.fill(&config, "adapters.safetensors", &found);
    let adapted = load_with_adapter(demo, dir).unwrap();
    let options = lapis_lm::Options { max_tokens: Some(12), ..Default::default() };
    // Several, as a single reply may be a full stop from both.
    let says = |model: &LanguageModel| {
        ["Once upon a time", "The fox and the cat", "Every evening"].map(|text| {
            let prompt = base.tokenizer.encode_prompt(text).unwrap();
            model.generate(&prompt, &options).unwrap()
        })
    };
    let (plain, changed) = (says(&base), says(&adapted));
    assert_ne!(plain, changed);
    let same = base.with_adapter(&Adapter::open(dir).unwrap()).unwrap();
    assert_eq!(says(&same), changed);
    assert_eq!(says(&base), plain);
}
