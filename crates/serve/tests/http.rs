//! What the server promises over HTTP, with the demo model and a client that knows nothing but sockets.

mod common;

use common::{DEMO, JSON, ask, events, get, post, raw, server};
use lapis_serve::{Address, Key, Log, Server, Settings, Source};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

fn chat(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Tell me a story about a fox"}], "max_tokens": 24});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[test]
fn replies_are_the_same_alone_together_and_in_streams() {
    let (_server, at) = server(|_| {});
    let body = |seed: u64| chat(json!({"temperature": 0.9, "seed": seed, "n": 1 + seed % 2}));
    let texts = |v: &Value| -> Vec<String> {
        v["choices"].as_array().unwrap().iter().map(|c| c["message"]["content"].as_str().unwrap().to_string()).collect()
    };
    let alone: Vec<Vec<String>> = (0..8).map(|seed| texts(&post(at, "/v1/chat/completions", &body(seed)).1)).collect();
    assert_ne!(alone[0], alone[2], "seeds choose");
    let threads: Vec<_> =
        (0..8).map(|seed| std::thread::spawn(move || post(at, "/v1/chat/completions", &body(seed)).1)).collect();
    for (thread, alone) in threads.into_iter().zip(&alone) {
        assert_eq!(texts(&thread.join().unwrap()), *alone);
    }
    let mut body = body(4);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let (status, head, text) = ask(at, "POST", "/v1/chat/completions", JSON, &body.to_string());
    assert!(status == 200 && head.contains("text/event-stream") && text.contains("data: [DONE]"), "{head}");
    let events = events(&text);
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let said: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, alone[4][0]);
    assert!(events.iter().any(|e| e["choices"][0]["finish_reason"] == "length"));
    let last = events.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(24)));
    assert!(last["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0);
}

#[test]
fn numbers_are_right_or_named() {
    let (_server, at) = server(|_| {});
    let values = [
        "-9223372036854775808",
        "-1",
        "0",
        "1",
        "2147483648",
        "9223372036854775808",
        "1e308",
        "null",
        "\"1\"",
        "[]",
        "{}",
    ];
    let fields = [
        "max_tokens",
        "max_completion_tokens",
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "repetition_penalty",
        "repetition_context_size",
        "presence_penalty",
        "frequency_penalty",
        "xtc_probability",
        "xtc_threshold",
        "top_logprobs",
        "logit_bias",
        "stop",
        "stream_options",
        "response_format",
        "tools",
        "tool_choice",
    ];
    for field in fields {
        for value in values {
            let body = format!(
                "{{\"messages\": [{{\"role\": \"user\", \"content\": \"hi\"}}], \"max_completion_tokens\": 2, \"{field}\": {value}}}"
            );
            let began = Instant::now();
            let (status, _, text) = ask(at, "POST", "/v1/chat/completions", JSON, &body);
            assert!(status == 200 || status == 400, "{field} {value}: {status} {text}");
            if status == 400 {
                let error: Value = serde_json::from_str(&text).unwrap();
                let named = error["error"]["param"].as_str().is_some_and(|p| p.starts_with(field));
                assert!(named, "{field} {value}: {text}");
                assert!(began.elapsed() < Duration::from_secs(2), "{field} {value}");
            }
        }
    }
    assert_eq!(post(at, "/v1/chat/completions", &chat(json!({}))).0, 200);
}

#[test]
fn what_is_no_request_is_refused_and_the_next_is_served() {
    let (_server, at) = server(|_| {});
    let path = "/v1/chat/completions";
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    for (body, status) in [
        ("", 400),
        ("{", 400),
        ("[]", 400),
        ("{} x", 400),
        ("{}", 400),
        (&*deep, 400),
        ("{\"messages\": []}", 400),
        ("{\"messages\": [5]}", 400),
        ("{\"messages\": [{\"content\": \"no role\"}]}", 400),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"model\": \"demi\"}", 404),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"model\": \"../../etc\"}", 404),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"adapters\": \"/etc\"}", 403),
    ] {
        let (got, _, text) = ask(at, "POST", path, JSON, body);
        assert_eq!(got, status, "{body:.80}: {text}");
        let error: Value = serde_json::from_str(&text).unwrap();
        assert!(error["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{text}");
    }
    let long = "fox ".repeat(2000);
    let (status, error) = post(at, path, &json!({"messages": [{"role": "user", "content": long}]}));
    assert_eq!((status, &error["error"]["code"]), (400, &json!("context_length_exceeded")), "{error}");
    let bad = raw(at, b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n\xff\xfe{");
    assert!(bad.starts_with("HTTP/1.1 400"), "{bad}");
    let large = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{JSON}Content-Length: 99999999999\r\n\r\n"
    );
    assert!(raw(at, large.as_bytes()).starts_with("HTTP/1.1 413"));
    assert_eq!(ask(at, "POST", path, "Content-Type: text/plain\r\n", "{}").0, 415);
    let (status, head, _) = get(at, path);
    assert!(status == 405 && head.contains("allow: post"), "{head}");
    assert_eq!(get(at, "/v1/nothing").0, 404);
    assert_eq!(ask(at, "GET", "/v1/models", "Origin: https://evil.example\r\n", "").0, 403);
    let foreign = raw(at, b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert!(foreign.starts_with("HTTP/1.1 403"), "{foreign}");
    assert_eq!(post(at, path, &chat(json!({}))).0, 200);
}

#[test]
fn every_route_but_the_open_ones_needs_the_key() {
    let key = Key { name: "a".into(), secret: "s3cret".into() };
    let (_server, at) = server(|s| {
        s.keys.push(key);
        s.admin_key = Some("other".into());
    });
    let (_, _, text) = ask(at, "GET", "/openapi.json", "Authorization: Bearer s3cret\r\n", "");
    let document: Value = serde_json::from_str(&text).unwrap();
    let mut locked = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let open = operation["security"] == json!([]);
            let path = path.replace("{id}", "x");
            for headers in
                ["", "Authorization: Bearer wrong\r\n", "x-api-key: s3cre\r\n", "Authorization: Basic s3cret\r\n"]
            {
                let (status, ..) = ask(at, &method.to_uppercase(), &path, &format!("{JSON}{headers}"), "{}");
                assert_eq!(status == 401, !open, "{method} {path} {headers}: {status}");
            }
            locked += usize::from(!open);
        }
    }
    assert!(locked > 20, "{locked}");
    assert_eq!(ask(at, "GET", "/v1/models", "x-api-key: s3cret\r\n", "").0, 200);
    assert_eq!(ask(at, "GET", "/admin/models", "Authorization: Bearer s3cret\r\n", "").0, 401);
    assert_eq!(ask(at, "GET", "/admin/models", "Authorization: Bearer other\r\n", "").0, 200);
}

#[test]
fn a_stream_ends_when_its_time_is_over() {
    let (_server, at) = server(|s| s.request_timeout = Some(Duration::from_secs(1)));
    let body = json!({"prompt": vec!["Once"; 8], "n": 16, "max_tokens": 480, "stream": true,
        "logit_bias": {"0": -100, "2": -100}});
    let (status, _, text) = ask(at, "POST", "/v1/completions", JSON, &body.to_string());
    let last = events(&text).pop().unwrap();
    assert!(status == 200 && last["error"]["type"] == "overloaded_error" && !text.contains("[DONE]"), "{last}");
    assert!(last["error"]["message"].as_str().unwrap().contains("longer than 1 s"), "{last}");
    let until = Instant::now() + Duration::from_secs(20);
    while !get(at, "/metrics").2.lines().any(|l| l == "lapis_running 0") {
        assert!(Instant::now() < until, "it goes on");
    }
}

#[test]
fn what_the_operator_allows_is_not_the_context() {
    let (_server, at) = server(|s| s.max_tokens = Some(3));
    let (_, whole) = post(at, "/v1/messages", &json!({"messages": [{"role": "user", "content": "Tell me a story"}]}));
    assert_eq!(whole["stop_reason"], "max_tokens", "{whole}");
    let body = json!({"messages": [{"role": "user", "content": "Hm"}], "max_tokens": 10_000});
    let (_server, at) = server(|s| s.max_context = Some(16));
    let (_, whole) = post(at, "/v1/messages", &body);
    assert_eq!(whole["stop_reason"], "model_context_window_exceeded", "{whole}");
}

#[test]
fn who_waits_for_a_model_is_told_how_far_it_is() {
    let mut settings = Settings::new("demo", Source::Files(DEMO));
    (settings.port, settings.log) = (0, Log::Off);
    let server = Server::start(settings).unwrap();
    let at = server.addresses.iter().find_map(|a| if let Address::Tcp(a) = a { Some(*a) } else { None }).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let (status, _, text) = get(at, "/ready");
        let state: Value = serde_json::from_str(&text).unwrap();
        if status == 200 {
            assert_eq!(state, json!({"status": "ready"}));
            return;
        }
        assert!(state["status"] == "loading" && Instant::now() < until, "{state}");
        // Between its last moment and being ready there is nothing to tell.
        if let Some(progress) = state.get("progress") {
            assert!(progress["seconds"].as_f64().is_some_and(|s| s >= 0.0), "{state}");
        }
    }
}

#[test]
fn nobody_computes_for_clients_that_have_gone() {
    let (server, at) = server(|_| {});
    let running = || {
        let (_, _, text) = get(at, "/metrics");
        let value = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<f64>().ok()).unwrap();
        (value("lapis_running "), value("lapis_cancelled_total "))
    };
    for (i, stream) in [false, true].into_iter().enumerate() {
        let body = json!({"prompt": "Once", "max_tokens": 480, "stream": stream, "n": 4, "temperature": 1, "logit_bias": {"0": -100}}).to_string();
        let mut client = TcpStream::connect(at).unwrap();
        let head =
            format!("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: {}\r\n\r\n", body.len());
        client.write_all(head.as_bytes()).unwrap();
        client.write_all(body.as_bytes()).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while running().0 == 0.0 {
            assert!(Instant::now() < until, "the request does not begin");
        }
        drop(client);
        let until = Instant::now() + Duration::from_secs(20);
        while running() != (0.0, (i + 1) as f64) {
            assert!(Instant::now() < until, "stream {stream}: it goes on {:?}", running());
        }
    }
    server.stop();
}

#[test]
fn a_server_that_drains_ends_what_it_began() {
    let (server, at) = server(|_| {});
    let body = chat(json!({"max_tokens": 60}));
    let client = std::thread::spawn(move || post(at, "/v1/chat/completions", &body));
    while !get(at, "/metrics").2.contains("lapis_running 1") && !client.is_finished() {}
    server.drain();
    let (status, answer) = client.join().unwrap();
    assert!(status == 200 && answer["choices"][0]["finish_reason"].is_string(), "{answer}");
    let until = Instant::now() + Duration::from_secs(20);
    while !server.is_over() {
        assert!(Instant::now() < until, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(TcpStream::connect(at).is_err(), "the port is closed");
}

#[test]
fn anthropics_clients_get_messages() {
    let (_server, at) = server(|_| {});
    let body = |stream: bool| {
        json!({"max_tokens": 16, "stream": stream, "temperature": 0, "metadata": {"user_id": "x"},
            "system": [{"type": "text", "text": "x-anthropic-billing-header: 1"}, {"type": "text", "text": "You are kind."}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Tell me a story", "cache_control": {}}]},
                         {"role": "user", "content": "about a fox"}]})
    };
    let (status, whole) = post(at, "/v1/messages?beta=true", &body(false));
    assert_eq!(
        (status, &whole["stop_reason"], &whole["role"]),
        (200, &json!("max_tokens"), &json!("assistant")),
        "{whole}"
    );
    let (_, _, text) = ask(at, "POST", "/v1/messages", JSON, &body(true).to_string());
    let events = events(&text);
    let kinds: Vec<&str> =
        events.iter().map(|e| e["type"].as_str().unwrap()).filter(|k| *k != "content_block_delta").collect();
    assert_eq!(kinds, ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]);
    let said: String = events.iter().filter_map(|e| e["delta"]["text"].as_str()).collect();
    assert_eq!(json!(said), whole["content"][0]["text"]);
    let (_, count) = post(at, "/v1/messages/count_tokens", &body(false));
    let usage = &whole["usage"];
    let total = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(count["input_tokens"], total);
    let (status, error) = post(at, "/v1/messages", &json!({"messages": []}));
    assert_eq!(
        (status, &error["type"], &error["error"]["type"]),
        (400, &json!("error"), &json!("invalid_request_error"))
    );
}

#[test]
fn grammars_hold() {
    let (_server, at) = server(|_| {});
    let schema = json!({"type": "object", "properties": {"age": {"type": "integer"}, "tame": {"type": "boolean"}},
        "required": ["age", "tame"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "fox", "schema": schema}});
    for seed in 0..4 {
        let body = chat(json!({"response_format": format, "max_tokens": 200, "temperature": 1, "seed": seed}));
        let (_, answer) = post(at, "/v1/chat/completions", &body);
        let choice = &answer["choices"][0];
        if choice["finish_reason"] == "stop" {
            let text = choice["message"]["content"].as_str().unwrap();
            let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert!(value["age"].is_i64() && value["tame"].is_boolean(), "{text}");
        }
    }
    let (status, error) = post(
        at,
        "/v1/chat/completions",
        &chat(json!({"response_format": {"type": "json_schema",
        "json_schema": {"name": "x", "strict": true, "schema": {"not": {}}}}})),
    );
    assert_eq!((status, &error["error"]["param"]), (400, &json!("response_format")), "{error}");
    let (status, error) = post(at, "/v1/chat/completions", &chat(json!({"chat_template_kwargs": {"messages": []}})));
    assert_eq!((status, &error["error"]["param"]), (400, &json!("chat_template_kwargs")), "{error}");
}

#[test]
fn prompts_are_scored_as_the_library_measures_losses() {
    let (_server, at) = server(|s| s.prefill_step = 16);
    let model = lapis_lm::LanguageModel::from_files(common::DEMO).unwrap();
    let text = "The fox walked to the river and saw an old friend there. ".repeat(3);
    let tokens = model.tokenizer.encode_prompt(&text).unwrap();
    let losses = model.losses(std::slice::from_ref(&tokens), 1, |_| true).unwrap();
    let body = |top: u64| json!({"prompt": text, "echo": true, "logprobs": top, "max_tokens": 0});
    for top in [0, 3] {
        let (status, answer) = post(at, "/v1/completions", &body(top));
        assert_eq!((status, &answer["choices"][0]["text"]), (200, &json!(text)));
        let scores = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
        assert!(scores.len() == tokens.len() && scores[0].is_null());
        for (score, loss) in scores[1..].iter().zip(&losses) {
            assert!((score.as_f64().unwrap() + f64::from(*loss)).abs() < 1e-5, "{score} {loss}");
        }
    }
}

#[test]
fn thinking_has_a_budget() {
    let (_server, at) = server(|s| s.model.1 = common::thinking());
    let body = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "Tell me a story"}], "max_tokens": 30,
            "enable_thinking": true, "logit_bias": {"2": -100, "2047": -100}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let told = |more: Value| {
        let (status, answer) = post(at, "/v1/chat/completions", &body(more));
        assert_eq!(status, 200, "{answer}");
        let spoken = answer["choices"][0]["message"]["content"].as_str().unwrap().len();
        (answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap(), spoken)
    };
    // The model never ends its thinking by itself here.
    assert_eq!(told(json!({})), (30, 0));
    for budget in [0, 1, 9] {
        // The token that ends it counts.
        let (thought, spoken) = told(json!({"thinking_budget": budget}));
        assert!(thought == budget + 1 && spoken > 0, "{budget}: {thought} tokens, {spoken} bytes");
    }
    let format = json!({"thinking_budget": 4, "response_format": {"type": "json_object"}});
    assert_eq!(told(format).0, 5);
    let message = json!({"messages": [{"role": "user", "content": "Hm?"}], "max_tokens": 30,
        "thinking": {"type": "enabled", "budget_tokens": 3}});
    let (_, answer) = post(at, "/v1/messages", &message);
    let kinds: Vec<_> = answer["content"].as_array().unwrap().iter().map(|b| b["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["thinking", "text"], "{answer}");
}

fn write_model(dir: &std::path::Path, config: &[u8], tokenizer_config: &[u8]) {
    std::fs::create_dir_all(dir).unwrap();
    for (file, bytes) in [
        ("config.json", config),
        ("model.safetensors", DEMO.weights),
        ("tokenizer.json", DEMO.tokenizer),
        ("tokenizer_config.json", tokenizer_config),
    ] {
        std::fs::write(dir.join(file), bytes).unwrap();
    }
}

#[test]
fn models_take_each_others_place_as_soon_as_an_answer_is_there() {
    let root = std::env::temp_dir().join(format!("lapis-places-{}", std::process::id()));
    for name in ["here", "there"] {
        write_model(&root.join(name), DEMO.config, DEMO.tokenizer_config);
    }
    let (_server, at) = server(|settings| {
        settings.models_dir = Some(root.clone());
        settings.max_models = 1;
    });
    for turn in 0..30 {
        let name = ["here", "there"][turn % 2];
        let (status, answer) = post(at, "/v1/completions", &json!({"model": name, "prompt": "Once", "max_tokens": 2}));
        assert_eq!(status, 200, "turn {turn}: {answer}");
    }
    drop(std::fs::remove_dir_all(&root));
}

#[test]
fn what_small_files_say_against_a_prompt_is_said_before_the_model_is_loaded() {
    let root = std::env::temp_dir().join(format!("lapis-unloaded-{}", std::process::id()));
    for name in ["bare", "encoder", "broken"] {
        let mut config: Value = serde_json::from_slice(DEMO.tokenizer_config).unwrap();
        config["chat_template"] = if name == "broken" { json!("{% if %}") } else { Value::Null };
        let model = if name == "encoder" { br#"{"model_type": "bert"}"# } else { DEMO.config };
        write_model(&root.join(name), model, config.to_string().as_bytes());
    }
    let (_server, at) = server(|settings| settings.models_dir = Some(root.clone()));
    let asked = |name: &str, path: &str, extra: Value| {
        let mut body = chat(extra);
        body["model"] = json!(name);
        if path == "/v1/responses" {
            body["input"] = body["messages"].take();
        }
        post(at, path, &body)
    };
    let loaded = |name: &str| {
        let model: Value = serde_json::from_str(&get(at, &format!("/v1/models/{name}")).2).unwrap();
        model["loaded"].as_bool().unwrap()
    };
    let paths = ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"];
    for path in paths.into_iter().chain(["/apply-template", "/tokenize"]) {
        for (name, why) in [("bare", "no chat template"), ("broken", "does not parse"), ("encoder", "/v1/embeddings")] {
            let (status, error) = asked(name, path, json!({}));
            assert!(
                status == 400 && error["error"]["message"].as_str().unwrap().contains(why),
                "{name} {path}: {error}"
            );
            assert!(!loaded(name), "{name} {path}");
        }
    }
    // What has no need of the model's own template is answered.
    let roles = json!({"role_mapping": {"user": "Q: ", "assistant": "A:", "stop": "\n"}, "max_tokens": 2});
    let (status, answer) = asked("bare", "/v1/chat/completions", roles);
    assert!(status == 200 && loaded("bare"), "{answer}");
    let (status, answer) = post(at, "/v1/completions", &json!({"model": "broken", "prompt": "Once", "max_tokens": 2}));
    assert!(status == 200 && loaded("broken"), "{answer}");
    // A model that is loaded says the same.
    for name in ["bare", "broken"] {
        assert_eq!(asked(name, "/v1/chat/completions", json!({})).0, 400, "{name}");
    }
    drop(std::fs::remove_dir_all(&root));
}
