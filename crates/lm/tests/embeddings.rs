//! Encoders and embeddings against transformers in float32 (`data/encoders.py`), and against a real model where
//! `LAPIS_MINILM` names the folder of one: with `expected.json`, an object of texts, ids and vectors (mean, length 1).

#[allow(dead_code)]
mod shared;

use lapis::Array;
use lapis::io::save_safetensors;
use lapis_lm::embed::{Pool, Pooling, Reading};
use lapis_lm::tokenizer::Tokenizer;
use lapis_lm::{Checkpoint, LanguageModel, Options};
use serde_json::{Value, json};
use shared::golden::tensors;
use std::collections::HashMap;

fn data() -> Value {
    serde_json::from_str(include_str!("data/encoders.json")).unwrap()
}

fn tokenizer(data: &Value) -> Tokenizer {
    Tokenizer::from_json(data["tokenizer"].to_string().as_bytes(), Value::Null).unwrap()
}

fn model(data: &Value, name: &str) -> LanguageModel {
    let case = &data["models"][name];
    let config = case["config"].as_object().unwrap().clone();
    let mut checkpoint = Checkpoint::from_parts(config, tensors(&case["params"])).unwrap();
    LanguageModel::new(&mut checkpoint, tokenizer(data)).unwrap()
}

fn ids(value: &Value) -> Vec<Vec<u32>> {
    let one = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect();
    value.as_array().unwrap().iter().map(one).collect()
}

fn vectors(value: &Value) -> Vec<Vec<f32>> {
    let one = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect();
    value.as_array().unwrap().iter().map(one).collect()
}

fn read(model: &LanguageModel, texts: Vec<Vec<u32>>, pooling: Pooling, rows: usize) -> Vec<Vec<f32>> {
    let mut reading = Reading::new(model, texts, pooling).unwrap();
    while !reading.is_over() {
        assert!(reading.step(rows).unwrap() > 0);
    }
    reading.into_vectors()
}

fn worst(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).flat_map(|(a, b)| a.iter().zip(b).map(|(x, y)| (x - y).abs())).fold(0.0, f32::max)
}

const POOLS: [(&str, Pool); 4] = [("mean", Pool::Mean), ("cls", Pool::Cls), ("last", Pool::Last), ("max", Pool::Max)];

#[test]
fn words_are_cut_as_transformers_cuts_them() {
    let data = data();
    let tokenizer = tokenizer(&data);
    for (text, want) in data["texts"].as_array().unwrap().iter().zip(ids(&data["ids"])) {
        assert_eq!(tokenizer.encode(text.as_str().unwrap(), true).unwrap(), want, "{text}");
    }
}

#[test]
fn encoders_agree_with_transformers() {
    let data = data();
    for (name, case) in data["models"].as_object().unwrap() {
        let model = model(&data, name);
        for (key, pool) in POOLS {
            let found = read(&model, ids(&case["ids"]), Pooling { pool, normalize: false }, 1000);
            let worst = worst(&found, &vectors(&case["vectors"][key]));
            assert!(worst < 5e-6, "{name} {key}: {worst}");
        }
    }
}

#[test]
fn a_vector_is_the_same_bits_alone_and_in_any_batch() {
    let data = data();
    for name in ["bert", "roberta", "distilbert"] {
        let model = model(&data, name);
        let texts = ids(&data["models"][name]["ids"]);
        for (_, pool) in POOLS {
            let pooling = Pooling { pool, normalize: true };
            let alone: Vec<Vec<f32>> =
                texts.iter().flat_map(|t| read(&model, vec![t.clone()], pooling, 1000)).collect();
            for rows in [1, 7, 20, 1000] {
                assert_eq!(read(&model, texts.clone(), pooling, rows), alone, "{name} {pool:?} {rows}");
            }
            for v in alone {
                assert!((v.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
            }
        }
    }
}

/// A model that writes, of random weights.
fn llama(tied: bool) -> (serde_json::Map<String, Value>, HashMap<String, Array>) {
    let config = json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 31, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64, "tie_word_embeddings": tied,
    });
    let mut shapes = json!({
        "model.embed_tokens.weight": [31, 32], "model.norm.weight": [32],
    });
    for i in 0..2 {
        let at = format!("model.layers.{i}");
        for (part, shape) in [
            ("self_attn.q_proj", [32, 32]),
            ("self_attn.k_proj", [16, 32]),
            ("self_attn.v_proj", [16, 32]),
            ("self_attn.o_proj", [32, 32]),
            ("mlp.gate_proj", [48, 32]),
            ("mlp.up_proj", [48, 32]),
            ("mlp.down_proj", [32, 48]),
        ] {
            shapes[format!("{at}.{part}.weight")] = json!(shape);
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            shapes[format!("{at}.{norm}.weight")] = json!([32]);
        }
    }
    let spec = |shape: &Value| json!({"shape": shape, "center": 0.1, "scale": 0.5});
    let params = shapes.as_object().unwrap().iter().map(|(k, v)| (k.clone(), spec(v))).collect();
    (config.as_object().unwrap().clone(), tensors(&Value::Object(params)).into_iter().collect())
}

#[test]
fn models_that_write_give_the_rows_behind_their_norm_in_whatever_parts_they_are_read() {
    let data = data();
    let (config, weights) = llama(true);
    let mut checkpoint = Checkpoint::from_parts(config, weights.into_iter().collect()).unwrap();
    let model = LanguageModel::new(&mut checkpoint, tokenizer(&data)).unwrap();
    assert!(model.writes);
    let texts: Vec<Vec<u32>> = vec![vec![2, 5, 6, 7, 3], (0..31).collect(), vec![9]];
    // By hand: every row at once.
    let rows = |t: &Vec<u32>| -> Vec<Vec<f32>> {
        let mut sequence = lapis_lm::Sequence::new();
        let mut batch = lapis_lm::Batch::one(t.len(), &mut sequence);
        let tokens = Array::from_vec(t.iter().map(|&x| x as i32).collect(), &[t.len()]);
        let hidden = model.model.hidden(&tokens, &mut batch).unwrap();
        hidden.to_vec::<f32>().unwrap().chunks(32).map(<[f32]>::to_vec).collect()
    };
    for (_, pool) in POOLS {
        let want: Vec<Vec<f32>> = texts
            .iter()
            .map(|t| {
                let rows = rows(t);
                let column = |i: usize| rows.iter().map(move |r| r[i]);
                match pool {
                    Pool::Cls => rows[0].clone(),
                    Pool::Last => rows[t.len() - 1].clone(),
                    Pool::Max => (0..32).map(|i| column(i).fold(f32::MIN, f32::max)).collect(),
                    Pool::Mean => {
                        let mean = |i| column(i).map(f64::from).sum::<f64>() / t.len() as f64;
                        (0..32).map(|i| mean(i) as f32).collect()
                    }
                }
            })
            .collect();
        for rows in [1, 4, 6, 100] {
            assert_eq!(read(&model, texts.clone(), Pooling { pool, normalize: false }, rows), want, "{pool:?} {rows}");
        }
    }
}

#[test]
fn what_cannot_be_embedded_is_an_error() {
    let data = data();
    let model = model(&data, "bert");
    let pooling = Pooling { pool: Pool::Mean, normalize: true };
    assert_eq!(model.context, Some(40));
    let why = |texts: Vec<Vec<u32>>| Reading::new(&model, texts, pooling).err().unwrap().message().to_string();
    assert!(why(vec![vec![1], vec![]]).contains("text 1 is empty"));
    assert!(why(vec![vec![1; 41]]).contains("context is 40"));
    assert!(why(vec![vec![99]]).contains("token 99"));
    assert!(model.embed(&["fox"], None).err().unwrap().message().contains("modules.json"));
    assert_eq!(model.embed(&["fox", "dog runs"], Some(pooling)).unwrap().shape(), [2, 16]);
    // An encoder does not write, and says so.
    assert!(!model.writes);
    let why = model.generate(&[2, 5, 3], &Options::default()).err().unwrap();
    assert!(why.message().contains("gives embeddings"), "{why}");
    // Positions of RoBERTa begin behind its padding.
    assert_eq!(roberta(&data), Some(40));
}

fn roberta(data: &Value) -> Option<usize> {
    model(data, "roberta").context
}

#[test]
fn folders_of_sentence_transformers_load_with_or_without_a_prefix_and_say_their_pooling() {
    let data = data();
    let dir = std::env::temp_dir().join(format!("lapis-embeddings-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(dir.join("1_Pooling")).unwrap();
    let case = &data["models"]["bert"];
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    write("config.json", case["config"].to_string());
    write("tokenizer.json", data["tokenizer"].to_string());
    let bare = |prefix: &str| {
        let named = tensors(&case["params"]).into_iter().map(|(k, v)| (k.replacen("bert.", prefix, 1), v));
        let mut all: lapis::io::Arrays = named.collect();
        // What a checkpoint holds beside the encoder.
        all.insert(format!("{prefix}pooler.dense.weight"), Array::from_vec(vec![0f32; 4], &[2, 2]));
        all.insert(format!("{prefix}embeddings.position_ids"), Array::from_vec(vec![0i32; 4], &[1, 4]));
        all.insert("cls.predictions.bias".into(), Array::from_vec(vec![0f32; 4], &[4]));
        save_safetensors(dir.join("model.safetensors"), &all, &Default::default()).unwrap();
    };
    let modules = |kinds: &[&str]| {
        let one = |k: &&str| json!({"path": if *k == "Pooling" { "1_Pooling" } else { "" }, "type": format!("sentence_transformers.models.{k}")});
        write("modules.json", kinds.iter().map(one).collect::<Value>().to_string());
    };
    bare("bert.");
    assert_eq!(lapis_lm::load(&dir).unwrap().pooling, None);
    modules(&["Transformer", "Pooling", "Normalize"]);
    for (key, config, pool) in [
        ("mean", json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}), Pool::Mean),
        ("cls", json!({"pooling_mode_cls_token": true}), Pool::Cls),
        ("max", json!({"pooling_mode_max_tokens": true}), Pool::Max),
        ("last", json!({"pooling_mode_lasttoken": true}), Pool::Last),
        ("cls", json!({"pooling_mode": "cls"}), Pool::Cls),
    ] {
        write("1_Pooling/config.json", config.to_string());
        bare(if key == "cls" { "" } else { "bert." });
        let model = lapis_lm::load(&dir).unwrap();
        assert_eq!(model.pooling, Some(Pooling { pool, normalize: true }));
        let text = data["texts"][0].as_str().unwrap();
        let found: Vec<f32> = model.embed(&[text], None).unwrap().to_vec().unwrap();
        let want = &vectors(&case["vectors"][key])[0];
        let length = want.iter().map(|x| x * x).sum::<f32>().sqrt();
        let scaled: Vec<f32> = want.iter().map(|x| x / length).collect();
        assert!(worst(&[found], &[scaled]) < 5e-6, "{config}");
    }
    for config in [
        json!({"pooling_mode_mean_sqrt_len_tokens": true}),
        json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}),
    ] {
        write("1_Pooling/config.json", config.to_string());
        assert!(lapis_lm::load(&dir).err().unwrap().message().contains("is not supported"), "{config}");
    }
    modules(&["Transformer", "Pooling", "Dense"]);
    write("1_Pooling/config.json", "{}".into());
    assert!(lapis_lm::load(&dir).err().unwrap().message().contains("Dense"));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_packed_encoder_is_whole_and_near_the_plain_one() {
    let data = data();
    let root = std::env::temp_dir().join(format!("lapis-embeddings-packed-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&root);
    let (from, to) = (root.join("from"), root.join("to"));
    std::fs::create_dir_all(from.join("1_Pooling")).unwrap();
    let write = |name: &str, text: String| std::fs::write(from.join(name), text).unwrap();
    let [width, inner] = [64, 128];
    let mut case = data["models"]["bert"].clone();
    (case["config"]["hidden_size"], case["config"]["intermediate_size"]) = (json!(width), json!(inner));
    for (_, spec) in case["params"].as_object_mut().unwrap() {
        for n in spec["shape"].as_array_mut().unwrap() {
            *n = json!(match n.as_u64() {
                Some(16) => width,
                Some(24) => inner,
                n => n.unwrap_or(0),
            });
        }
        spec["scale"] = json!(0.1);
    }
    write("config.json", case["config"].to_string());
    write("tokenizer.json", data["tokenizer"].to_string());
    let modules = r#"[{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]"#;
    write("modules.json", modules.into());
    write("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": true}"#.into());
    save_safetensors(from.join("model.safetensors"), &tensors(&case["params"]), &Default::default()).unwrap();
    let format = lapis::ops::quantize::Format::affine(8, 64).unwrap();
    let options = lapis_lm::convert::Options { quantize: Some(format), ..Default::default() };
    lapis_lm::convert::convert(&from, &to, &options, |_: &str| {}).unwrap();
    let (plain, packed) = (lapis_lm::load(&from).unwrap(), lapis_lm::load(&to).unwrap());
    assert_eq!(packed.pooling, plain.pooling);
    let vector = |m: &LanguageModel| m.embed(&["the fox runs"], None).unwrap().to_vec::<f32>().unwrap();
    let (a, b) = (vector(&plain), vector(&packed));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
    assert!(cosine > 0.999 && cosine < 1.0, "{cosine}");
    std::fs::remove_dir_all(&root).unwrap();
}

#[test]
fn a_body_without_a_head_gives_embeddings_only() {
    let data = data();
    let pooling = Pooling { pool: Pool::Last, normalize: true };
    let make = |bare: bool, tied: bool| {
        let (config, weights) = llama(tied);
        let name = |k: String| if bare { k.replacen("model.", "", 1) } else { k };
        let mut checkpoint =
            Checkpoint::from_parts(config, weights.into_iter().map(|(k, v)| (name(k), v)).collect()).unwrap();
        LanguageModel::new(&mut checkpoint, tokenizer(&data)).unwrap()
    };
    let (whole, body) = (make(false, true), make(true, false));
    assert!(whole.writes && !body.writes && make(true, true).writes);
    let vectors = |m: &LanguageModel| m.embed(&["the fox"], Some(pooling)).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(vectors(&whole), vectors(&body));
}

#[test]
fn a_real_model_agrees_with_transformers() {
    let Some(dir) = std::env::var_os("LAPIS_MINILM") else {
        eprintln!("skipped: LAPIS_MINILM names no folder");
        return;
    };
    let model = lapis_lm::load(&dir).unwrap();
    let text = std::fs::read_to_string(std::path::Path::new(&dir).join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let texts: Vec<&str> = expected["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    for (text, want) in texts.iter().zip(ids(&expected["ids"])) {
        assert_eq!(model.tokenizer.encode(text, true).unwrap(), want, "{text:?}");
    }
    let found: Vec<f32> = model.embed(&texts, None).unwrap().to_vec().unwrap();
    let width = found.len() / texts.len();
    let found: Vec<Vec<f32>> = found.chunks(width).map(<[f32]>::to_vec).collect();
    let worst = worst(&found, &vectors(&expected["vectors"]));
    eprintln!("{} texts, largest difference {worst:e}", texts.len());
    assert!(worst <= 1e-5, "{worst}");
    for (text, want) in texts.iter().zip(&found).take(8) {
        assert_eq!(model.embed(&[text], None).unwrap().to_vec::<f32>().unwrap(), *want, "{text:?}");
    }
}
