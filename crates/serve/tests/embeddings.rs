//! `/v1/embeddings` over sockets, with tiny encoders and the demo model.

mod common;

use common::{DEMO, get, post};
use lapis::Array;
use lapis_lm::embed::{Pool, Pooling};
use lapis_serve::{Server, Settings};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A request whose answer is not waited for.
fn request(path: &str, body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1
Host: localhost
Connection: close
Content-Type: application/json
\
         Content-Length: {length}

{body}"
    )
}

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A folder of encoders: `plain`, which says nothing of pooling, `mean`, `cut`, which may be cut to 4 or 8, and `wide`, which
/// takes a while.
fn folder(name: &str) -> Folder {
    let root = std::env::temp_dir().join(format!("lapis-serve-{name}-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&root));
    let data: Value = serde_json::from_str(include_str!("../../lm/tests/data/encoders.json")).unwrap();
    for (name, sizes) in [("plain", [16, 24, 2]), ("mean", [16, 24, 2]), ("cut", [16, 24, 2]), ("wide", [256, 1024, 6])]
    {
        encoder(&root.join(name), &data["tokenizer"], name, sizes);
    }
    Folder(root)
}

fn encoder(dir: &Path, tokenizer: &Value, name: &str, [width, inner, layers]: [usize; 3]) {
    std::fs::create_dir_all(dir.join("1_Pooling")).unwrap();
    let positions = if name == "wide" { 512 } else { 40 };
    let mut config = json!({
        "model_type": "bert", "vocab_size": 31, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": 2, "max_position_embeddings": positions,
        "type_vocab_size": 2,
    });
    if name == "cut" {
        config["matryoshka_dimensions"] = json!([8, 4]);
    }
    let mut all = lapis::io::Arrays::default();
    let mut seed = 1u32;
    let mut put = |name: String, shape: &[usize]| {
        let mut draw = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let values = (0..shape.iter().product()).map(|_| draw()).collect();
        all.insert(name, Array::from_vec(values, shape));
    };
    for (table, rows) in [("word", 31), ("position", positions), ("token_type", 2)] {
        put(format!("embeddings.{table}_embeddings.weight"), &[rows, width]);
    }
    let mut norms = vec!["embeddings".to_string()];
    for i in 0..layers {
        let at = format!("encoder.layer.{i}");
        for (part, shape) in [
            ("attention.self.query", [width, width]),
            ("attention.self.key", [width, width]),
            ("attention.self.value", [width, width]),
            ("attention.output.dense", [width, width]),
            ("intermediate.dense", [inner, width]),
            ("output.dense", [width, inner]),
        ] {
            put(format!("{at}.{part}.weight"), &shape);
            put(format!("{at}.{part}.bias"), &shape[..1]);
        }
        norms.extend([format!("{at}.attention.output"), format!("{at}.output")]);
    }
    for norm in norms {
        put(format!("{norm}.LayerNorm.weight"), &[width]);
        put(format!("{norm}.LayerNorm.bias"), &[width]);
    }
    lapis::io::save_safetensors(dir.join("model.safetensors"), &all, &Default::default()).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    if name != "plain" {
        let module =
            |kind: &str, path: &str| json!({"type": format!("sentence_transformers.models.{kind}"), "path": path});
        let modules = json!([module("Transformer", ""), module("Pooling", "1_Pooling"), module("Normalize", "2")]);
        std::fs::write(dir.join("modules.json"), modules.to_string()).unwrap();
        std::fs::write(dir.join("1_Pooling/config.json"), r#"{"pooling_mode_mean_tokens": true}"#).unwrap();
    }
}

fn server(folder: &Folder, change: impl FnOnce(&mut Settings)) -> (Server, SocketAddr) {
    common::server(|settings| {
        settings.models_dir = Some(folder.0.clone());
        change(settings);
    })
}

fn embed(address: SocketAddr, body: &Value) -> (u16, Value) {
    post(address, "/v1/embeddings", body)
}

fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let one = |v: &Value| v["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    answer["data"].as_array().unwrap().iter().map(one).collect()
}

fn metric(address: SocketAddr, name: &str) -> f64 {
    let text = get(address, "/metrics").2;
    text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok()).unwrap_or(f64::NAN)
}

#[test]
fn vectors_are_those_of_the_library_whatever_form_the_input_has() {
    let folder = folder("forms");
    let (_server, at) = server(&folder, |_| {});
    let model = lapis_lm::load(folder.0.join("mean")).unwrap();
    let texts = ["The fox runs.", "", "Café, hello!"];
    let flat: Vec<f32> = model.embed(&texts, None).unwrap().to_vec().unwrap();
    let want: Vec<Vec<f32>> = flat.chunks(16).map(<[f32]>::to_vec).collect();
    let ids: Vec<Vec<u32>> = texts.iter().map(|t| model.tokenizer.encode(t, true).unwrap()).collect();
    let (status, answer) = embed(at, &json!({"model": "mean", "input": texts, "user": "u"}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(vectors(&answer), want);
    let tokens: usize = ids.iter().map(Vec::len).sum();
    assert_eq!(answer["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("mean")));
    assert_eq!((&answer["data"][2]["object"], &answer["data"][2]["index"]), (&json!("embedding"), &json!(2)));
    for (input, want) in [
        (json!(texts[0]), &want[..1]),
        (json!(ids[0]), &want[..1]),
        (json!(ids), &want[..]),
        (json!([texts[2]]), &want[2..]),
    ] {
        let (status, answer) = embed(at, &json!({"model": "mean", "input": input, "encoding_format": "float"}));
        assert_eq!((status, vectors(&answer)), (200, want.to_vec()), "{input}");
    }
    // What is cut has length 1 again.
    let (_, whole) = embed(at, &json!({"model": "cut", "input": "fox"}));
    let (status, cut) = embed(at, &json!({"model": "cut", "input": "fox", "dimensions": 4}));
    let (whole, cut) = (&vectors(&whole)[0], &vectors(&cut)[0]);
    assert_eq!((status, cut.len()), (200, 4));
    let length = whole[..4].iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!(cut.iter().zip(whole).all(|(c, w)| (c - w / length).abs() < 1e-6));
    assert_eq!(embed(at, &json!({"model": "mean", "input": "fox", "dimensions": 16})).0, 200);
}

#[test]
fn what_cannot_be_answered_says_why() {
    let folder = folder("faults");
    let (_server, at) = server(&folder, |_| {});
    let many: Vec<&str> = vec!["fox"; 2049];
    for (body, param, holds) in [
        (json!({"model": "mean"}), "input", "missing"),
        (json!({"model": "mean", "input": 5}), "input", "must be"),
        (json!({"model": "mean", "input": []}), "input", "empty"),
        (json!({"model": "mean", "input": ["a", 5]}), "input", "texts only"),
        (json!({"model": "mean", "input": [-1]}), "input", "no token"),
        (json!({"model": "mean", "input": [[1, 99]]}), "input", "vocabulary"),
        (json!({"model": "mean", "input": [[]]}), "input", "empty"),
        (json!({"model": "mean", "input": many}), "input", "2048"),
        (json!({"model": "mean", "input": ["fox", "fox ".repeat(60)]}), "input", "context is 40"),
        (json!({"model": "mean", "input": "fox", "encoding_format": "int8"}), "encoding_format", "base64"),
        (json!({"model": "mean", "input": "fox", "dimensions": 8}), "dimensions", "not made to be cut"),
        (json!({"model": "mean", "input": "fox", "dimensions": 17}), "dimensions", "16"),
        (json!({"model": "mean", "input": "fox", "dimensions": 0}), "dimensions", "between"),
        (json!({"model": "cut", "input": "fox", "dimensions": 5}), "dimensions", "[8, 4]"),
        (json!({"model": "plain", "input": "fox"}), "model", "--pooling"),
        (json!({"input": "fox"}), "model", "--pooling"),
    ] {
        let (status, answer) = embed(at, &body);
        let error = &answer["error"];
        assert_eq!((status, error["param"].as_str()), (400, Some(param)), "{answer}");
        assert!(error["message"].as_str().unwrap().contains(holds), "{answer}");
    }
    assert_eq!(embed(at, &json!({"model": "nothing", "input": "fox"})).0, 404);
    // Encoders do not chat, and are listed as what they are.
    for (path, body) in [
        ("/v1/chat/completions", json!({"model": "mean", "messages": [{"role": "user", "content": "hi"}]})),
        ("/v1/completions", json!({"model": "mean", "prompt": "hi"})),
    ] {
        let (status, answer) = post(at, path, &body);
        assert_eq!((status, answer["error"]["param"].as_str()), (400, Some("model")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("/v1/embeddings"), "{answer}");
    }
    let models: Value = serde_json::from_str(&get(at, "/v1/models").2).unwrap();
    let of = |id: &str| {
        let found = models["data"].as_array().unwrap().iter().find(|m| m["id"] == id).unwrap();
        (found["capabilities"].clone(), found["loaded"].clone())
    };
    assert_eq!(of("mean"), (json!(["embeddings"]), json!(true)));
    assert_eq!(of("wide"), (json!(["embeddings"]), json!(false)));
    assert_eq!(of("demo"), (json!(["completion", "chat"]), json!(true)));
}

#[test]
fn the_flag_says_how_where_a_model_does_not() {
    let folder = folder("flag");
    let (_server, at) = server(&folder, |s| s.pooling = Some(Pool::Last));
    let pooling = Some(Pooling { pool: Pool::Last, normalize: true });
    let demo = lapis_lm::LanguageModel::from_files(DEMO).unwrap();
    let want: Vec<f32> = demo.embed(&["Once upon a time"], pooling).unwrap().to_vec().unwrap();
    assert_eq!(vectors(&embed(at, &json!({"input": "Once upon a time"})).1), [want]);
    let plain = lapis_lm::load(folder.0.join("plain")).unwrap();
    let want: Vec<f32> = plain.embed(&["the fox"], pooling).unwrap().to_vec().unwrap();
    assert_eq!(vectors(&embed(at, &json!({"model": "plain", "input": "the fox"})).1), [want]);
    // A model that says how is taken at its word.
    let mean = lapis_lm::load(folder.0.join("mean")).unwrap();
    let want: Vec<f32> = mean.embed(&["the fox"], None).unwrap().to_vec().unwrap();
    assert_eq!(vectors(&embed(at, &json!({"model": "mean", "input": "the fox"})).1), [want]);
}

#[test]
fn replies_go_on_beside_embeddings_and_nobody_computes_for_who_has_gone() {
    let folder = folder("beside");
    let (_server, at) = server(&folder, |_| {});
    assert_eq!(embed(at, &json!({"model": "wide", "input": "fox"})).0, 200);
    let text = "the fox runs over a dog . ".repeat(60);
    let large = json!({"model": "wide", "input": vec![text; 400]});
    // A request of minutes, whose client goes in the middle of it.
    let mut long = TcpStream::connect(at).unwrap();
    long.write_all(request("/v1/embeddings", &large).as_bytes()).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while metric(at, "lapis_embedding_bytes") == 0.0 {
        assert!(Instant::now() < until, "the embeddings do not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let chat = json!({"messages": [{"role": "user", "content": "Tell me a story about a fox"}], "max_tokens": 40,
                      "stream": true, "logit_bias": {"2": -100}});
    let began = Instant::now();
    stream.write_all(request("/v1/chat/completions", &chat).as_bytes()).unwrap();
    let lines: Vec<String> = BufReader::new(stream).lines().map_while(Result::ok).collect();
    assert!(lines.iter().any(|l| l.contains("[DONE]")), "{lines:?}");
    assert!(began.elapsed() < Duration::from_secs(40), "40 tokens took {:?}", began.elapsed());
    assert!(metric(at, "lapis_embedding_bytes") > 0.0, "the embeddings ended before the reply");
    drop(long);
    let until = Instant::now() + Duration::from_secs(5);
    while metric(at, "lapis_embedding_bytes") > 0.0 {
        assert!(Instant::now() < until, "nobody waits for the embeddings, and they are computed");
        std::thread::sleep(Duration::from_millis(20));
    }
}
