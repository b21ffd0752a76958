//! Adapters over sockets: variants of the demo model that share its weights, by every way to name them.

mod common;

use common::{DEMO, JSON, ask, events, get, post, server};
use lapis::io::{Arrays, save_safetensors};
use lapis::{Dtype, random};
use lapis_lm::{Adapter, LanguageModel, Options};
use lapis_nn::for_each_packable;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A folder of this test's own, gone at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let dir = std::env::temp_dir().join(format!("lapis-serve-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Folder(dir)
    }

    /// An adapter of the demo model, drawn from a seed.
    fn adapter(&self, name: &str, seed: u64) -> PathBuf {
        let dir = self.0.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let key = random::key(seed);
        let mut tensors = Arrays::default();
        let mut copy = model().model.copied();
        for_each_packable(copy.module_mut(), &mut |path, layer| {
            if path.ends_with("q_proj") || path.ends_with("down_proj") {
                let shape = layer.matrix().shape();
                for (end, shape) in [("lora_a", [shape[1], 2]), ("lora_b", [2, shape[0]])] {
                    let values = random::normal(&shape, Dtype::Float32, None, None, Some(&key)).unwrap();
                    tensors.insert(format!("{path}.{end}"), values);
                }
            }
        });
        let config = json!({"num_layers": -1, "lora_parameters": {"rank": 2, "scale": 0.05, "dropout": 0.0}, "model": "/home/me/demo"});
        std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
        save_safetensors(dir.join("adapters.safetensors"), &tensors, &Default::default()).unwrap();
        dir
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn model() -> LanguageModel {
    LanguageModel::from_files(DEMO).unwrap()
}

const PROMPT: &str = "Once upon a time there was a fox";
const TOKENS: usize = 24;

/// What the library alone writes. It leaves out a space at the beginning, the server does not.
fn alone(adapter: Option<&Path>) -> String {
    let mut model = model();
    if let Some(dir) = adapter {
        model = model.with_adapter(&Adapter::open(dir).unwrap()).unwrap();
    }
    let prompt = model.tokenizer.encode_prompt(PROMPT).unwrap();
    model
        .generate(&prompt, &Options { max_tokens: Some(TOKENS), ..Default::default() })
        .unwrap()
        .trim_start()
        .to_string()
}

fn body(fields: &Value) -> Value {
    let mut body = json!({"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn write(at: SocketAddr, fields: &Value) -> (u16, String) {
    let (status, answer) = post(at, "/v1/completions", &body(fields));
    match status {
        200 => (200, answer["choices"][0]["text"].as_str().unwrap().trim_start().to_string()),
        _ => (status, answer["error"]["message"].as_str().unwrap_or_default().to_string()),
    }
}

fn admin(at: SocketAddr, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let headers = format!("{JSON}Authorization: Bearer root\r\n");
    let body = if method == "POST" { body.to_string() } else { String::new() };
    let (status, _, text) = ask(at, method, path, &headers, &body);
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

#[test]
fn base_and_adapters_answer_side_by_side_as_alone() {
    let folder = Folder::new("side");
    let (fox, owl) = (folder.adapter("fox", 1), folder.adapter("birds/owl", 2));
    let (_server, at) = server(|s| {
        s.adapters = vec![("red".into(), fox.clone())];
        s.adapters_dir = Some(folder.0.clone());
    });
    let want = [alone(None), alone(Some(&fox)), alone(Some(&owl))];
    assert!(want[0] != want[1] && want[1] != want[2] && want[0] != want[2], "{want:?}");
    let ways = [
        (json!({}), 0),
        (json!({"model": "demo"}), 0),
        (json!({"model": "demo:red"}), 1),
        (json!({"model": "default_model:fox"}), 1),
        (json!({"adapters": "red"}), 1),
        (json!({"adapters": "birds/owl"}), 2),
        (json!({"model": "demo", "adapters": "birds/owl"}), 2),
        (json!({"model": "demo:birds/owl"}), 2),
        (json!({"adapters": null}), 0),
    ];
    // All at once, and then again with what is remembered of the prompts.
    for _ in 0..2 {
        std::thread::scope(|scope| {
            for (fields, which) in &ways {
                let want = &want[*which];
                scope.spawn(move || assert_eq!(write(at, fields), (200, want.clone()), "{fields}"));
            }
        });
    }
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "model": "demo:red", "max_tokens": 4});
    let (status, answer) = post(at, "/v1/chat/completions", &chat);
    assert_eq!((status, answer["model"].as_str()), (200, Some("demo:red")));
    let (_, _, text) = get(at, "/v1/models");
    let list: Value = serde_json::from_str(&text).unwrap();
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    for id in ["demo", "demo:red", "demo:fox", "demo:birds/owl"] {
        assert!(ids.contains(&id), "{id} in {ids:?}");
    }
    assert!(!text.contains(folder.0.to_str().unwrap()) && !text.contains("/home/me"), "{text}");
    let (status, _, one) = get(at, "/v1/models/demo:red");
    assert_eq!((status, serde_json::from_str::<Value>(&one).unwrap()["loaded"].as_bool()), (200, Some(true)));
}

/// A step has a row of each, so that the weights are read once for all.
#[test]
fn rows_with_different_adapters_share_steps() {
    let folder = Folder::new("shared");
    folder.adapter("fox", 1);
    folder.adapter("owl", 2);
    let (_server, at) = server(|s| s.adapters_dir = Some(folder.0.clone()));
    let models = ["demo", "demo:fox", "demo:owl"];
    // With one token each, so that all are loaded.
    for model in models {
        assert_eq!(write(at, &json!({"model": model, "max_tokens": 1})).0, 200);
    }
    let told = |name: &str| -> f64 {
        let text = get(at, "/metrics").2;
        text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok()).unwrap()
    };
    let now = || [told("lapis_decode_rows_total"), told("lapis_decode_steps_total")];
    let before = now();
    let bias = json!({"2": -100});
    std::thread::scope(|scope| {
        for model in models {
            let bias = &bias;
            scope.spawn(move || write(at, &json!({"model": model, "max_tokens": 300, "logit_bias": bias})));
        }
    });
    let after = now();
    let (rows, steps) = (after[0] - before[0], after[1] - before[1]);
    assert!(rows >= 890.0 && rows / steps > 2.0, "{rows} rows in {steps} steps");
}

#[test]
fn nothing_outside_the_folder_can_be_named() {
    let folder = Folder::new("jail");
    let inside = folder.0.join("inside");
    folder.adapter("inside/good", 1);
    let outside = folder.adapter("outside", 2);
    folder.adapter("inside/linked", 3);
    std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
    std::fs::remove_file(inside.join("linked/adapters.safetensors")).unwrap();
    std::os::unix::fs::symlink(outside.join("adapters.safetensors"), inside.join("linked/adapters.safetensors"))
        .unwrap();
    std::fs::create_dir_all(inside.join("broken")).unwrap();
    std::fs::write(inside.join("broken/adapter_config.json"), "{}").unwrap();
    let (_server, at) = server(|s| s.adapters_dir = Some(inside.clone()));
    let absolute = outside.display().to_string();
    let names = [
        "../outside",
        "good/../../outside",
        "link",
        "linked",
        "",
        ".",
        "..",
        "none",
        "good/",
        "a:b",
        "\u{0}",
        &absolute,
    ];
    for name in names {
        let (status, message) = write(at, &json!({"adapters": name}));
        assert_eq!(status, 403, "{name}: {message}");
        assert!(!message.contains(folder.0.parent().unwrap().to_str().unwrap()) || name == absolute, "{message}");
        let (status, message) = write(at, &json!({"model": format!("demo:{name}")}));
        assert_eq!(status, 404, "{name}: {message}");
    }
    let (status, message) = write(at, &json!({"adapters": "broken"}));
    assert!(status == 400 && !message.contains(folder.0.to_str().unwrap()), "{status} {message}");
    assert_eq!(write(at, &json!({"adapters": 5})).0, 400);
    assert_eq!(write(at, &json!({"adapters": "good", "model": "demo:good"})).0, 400);
    assert_eq!(write(at, &json!({"adapters": "good"})).0, 200);
    let (status, text) = write(at, &json!({"adapters": "none"}));
    assert!(status == 403 && text.contains("good"), "{text}");
    // Without a folder, there is nothing to name.
    let (_server, at) = server(|_| {});
    assert_eq!(write(at, &json!({"adapters": "good"})).0, 403);
}

#[test]
fn an_adapter_of_another_model_is_refused_with_what_does_not_fit() {
    let folder = Folder::new("misfit");
    let dir = folder.adapter("other", 1);
    let config = json!({"num_layers": -1, "lora_parameters": {"rank": 5, "scale": 0.5}, "model": "/home/me/other"});
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    let (_server, at) = server(|s| s.adapters_dir = Some(folder.0.clone()));
    let (status, message) = write(at, &json!({"adapters": "other"}));
    assert!(status == 400 && message.contains("rank 5") && message.contains("other"), "{status} {message}");
    assert!(!message.contains("/home/me") && !message.contains(folder.0.to_str().unwrap()), "{message}");
    assert_eq!(write(at, &json!({})).0, 200);
    // One that cannot be opened ends the start.
    let mut settings = lapis_serve::Settings::new("demo", lapis_serve::Source::Files(DEMO));
    (settings.port, settings.adapters) = (0, vec![("none".into(), folder.0.join("none"))]);
    assert!(lapis_serve::Server::start(settings).err().unwrap().message().contains("does not exist"));
}

#[test]
fn requests_that_run_keep_the_adapter_that_they_began_with() {
    let folder = Folder::new("swap");
    let (one, two) = (folder.adapter("one", 1), folder.adapter("two", 2));
    let (_server, at) = server(|s| {
        s.adapters_dir = Some(folder.0.clone());
        s.admin_key = Some("root".into());
    });
    assert_eq!(ask(at, "GET", "/admin/adapters", "", "").0, 401);
    assert_eq!(ask(at, "POST", "/admin/adapters", JSON, "{\"name\": \"a\", \"path\": \"one\"}").0, 401);
    let none = Value::Null;
    assert_eq!(admin(at, "POST", "/admin/adapters", &json!({"name": "a", "path": "../x"})).0, 404);
    assert_eq!(admin(at, "POST", "/admin/adapters", &json!({"name": "../a", "path": "one"})).0, 400);
    let (status, first) = admin(at, "POST", "/admin/adapters", &json!({"name": "a", "path": "one", "generation": 0}));
    assert_eq!((status, first["rank"].as_u64(), first["kind"].as_str()), (200, Some(2), Some("lora")), "{first}");
    let fields = json!({"model": "demo:a", "stream": true, "max_tokens": 200});
    let running: Vec<_> = (0..3)
        .map(|_| {
            let fields = body(&fields);
            std::thread::spawn(move || ask(at, "POST", "/v1/completions", JSON, &fields.to_string()))
        })
        .collect();
    let jobs = |all: &Value| -> u64 {
        let loaded = all["adapters"].as_array().unwrap().iter().flat_map(|a| a["loaded"].as_array().unwrap().clone());
        loaded.map(|l| l["jobs"].as_u64().unwrap()).sum()
    };
    let until = Instant::now() + Duration::from_secs(30);
    // All of them have begun: each runs or has ended. (Who ends in between is in neither number.)
    let begun = || {
        let ended = running.iter().filter(|r| r.is_finished()).count() as u64;
        ended + jobs(&admin(at, "GET", "/admin/adapters", &none).1)
    };
    while begun() < running.len() as u64 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(2));
    }
    // Another takes its place while they run; a stale number does not.
    let number = first["generation"].as_u64().unwrap();
    let swap = |n: u64| admin(at, "POST", "/admin/adapters", &json!({"name": "a", "path": "two", "generation": n}));
    assert_eq!(swap(number + 7).0, 409);
    let (status, second) = swap(number);
    assert!(status == 200 && second["generation"].as_u64().unwrap() > number, "{second}");
    assert_eq!(write(at, &json!({"model": "demo:a"})), (200, alone(Some(&two))));
    let texts: Vec<String> = running
        .into_iter()
        .map(|r| {
            let (status, _, text) = r.join().unwrap();
            assert_eq!(status, 200, "{text}");
            events(&text).iter().map(|e| e["choices"][0]["text"].as_str().unwrap_or_default().to_string()).collect()
        })
        .collect();
    let want = {
        let model = model().with_adapter(&Adapter::open(&one).unwrap()).unwrap();
        let prompt = model.tokenizer.encode_prompt(PROMPT).unwrap();
        model.generate(&prompt, &Options { max_tokens: Some(200), ..Default::default() }).unwrap()
    };
    for text in texts {
        assert_eq!(text.trim_start(), want.trim_start());
    }
    assert_eq!(admin(at, "DELETE", "/admin/adapters/a", &none).0, 200);
    assert_eq!(admin(at, "DELETE", "/admin/adapters/a", &none).0, 404);
    assert_eq!(write(at, &json!({"model": "demo:a"})).0, 404);
    assert_eq!(write(at, &json!({})), (200, alone(None)));
    // Nothing of it stays loaded; the base can go, and comes back.
    let until = Instant::now() + Duration::from_secs(30);
    let names = || admin(at, "GET", "/admin/models", &none).1.to_string();
    while names().contains("demo:a") {
        assert!(Instant::now() < until, "{}", names());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(write(at, &json!({"adapters": "one"})), (200, alone(Some(&one))));
    assert_eq!(admin(at, "DELETE", "/admin/models/demo", &none).0, 200);
    assert_eq!(admin(at, "GET", "/admin/models", &none).1["models"], json!([]));
    assert_eq!(write(at, &json!({"adapters": "one"})), (200, alone(Some(&one))));
}

#[test]
fn an_adapter_of_the_start_is_that_of_requests_without_a_model() {
    let folder = Folder::new("default");
    let dir = folder.adapter("mine", 4);
    let (_server, at) = server(|s| {
        s.adapters = vec![("mine".into(), dir.clone())];
        s.default_adapter = Some("mine".into());
    });
    let (plain, mine) = (alone(None), alone(Some(&dir)));
    for (fields, want) in
        [(json!({}), &mine), (json!({"model": "default_model"}), &mine), (json!({"model": "demo"}), &plain)]
    {
        assert_eq!(write(at, &fields), (200, want.clone()), "{fields}");
    }
}
