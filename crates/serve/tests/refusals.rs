//! Refusals that need a server with other settings than its flags give: slow bodies, many requests of one key.
#![allow(missing_docs)]

mod common;

use common::*;
use lapis_serve::Key;
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

const JSON: &str = "Content-Type: application/json\r\n";

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn a_body_that_does_not_come_is_408_in_the_form_of_its_route() {
    let (_server, at) = server(|s| s.body_stall = Duration::from_millis(200));
    for (path, kind) in [
        ("/v1/chat/completions", "/error/type"),
        ("/v1/responses", "/error/type"),
        ("/v1/messages", "/error/type"),
        ("/api/show", "/error"),
    ] {
        let begun = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: 100\r\n\r\n{{\"a\":");
        let answer = raw(at, begun.as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 408") && head.to_lowercase().contains("connection: close"),
            "{path}: {head}"
        );
        let body = value(body);
        let want = if path == "/api/show" { "the body does not come" } else { "invalid_request_error" };
        assert_eq!(body.pointer(kind), Some(&json!(want)), "{path}: {body}");
        assert_eq!(body["type"] == "error", path == "/v1/messages");
    }
    // One that comes slowly, but comes, is taken.
    let mut slow = TcpStream::connect(at).unwrap();
    let body = b"{\"content\": \"hi\"}";
    write!(
        slow,
        "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{JSON}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    for byte in body {
        slow.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut slow, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_request_of_many_prompts_is_one_request() {
    let (_server, at) = server(|s| {
        s.per_key = 1;
        s.keys.push(Key { name: "a".into(), secret: "aaaaaaaa".into() });
    });
    let headers = format!("{JSON}x-api-key: aaaaaaaa\r\n");
    let body = json!({"prompt": vec!["Once"; 5], "max_tokens": 1}).to_string();
    // When it is over, nothing of it counts any more.
    for _ in 0..2 {
        let (status, _, text) = ask(at, "POST", "/v1/completions", &headers, &body);
        assert_eq!((status, value(&text)["choices"].as_array().map(Vec::len)), (200, Some(5)), "{text}");
    }
}

#[test]
fn a_key_with_many_requests_is_told_to_wait_and_others_are_not() {
    let (_server, at) = server(|s| {
        s.per_key = 2;
        for name in ["a", "b"] {
            s.keys.push(Key { name: name.into(), secret: name.repeat(8) });
        }
    });
    let key = |name: &str| format!("{JSON}Authorization: Bearer {}\r\n", name.repeat(8));
    let endless = json!({"prompt": "Once", "n": 8, "stream": true, "logit_bias": {"0": -100, "2": -100}}).to_string();
    let mut streams: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(at).unwrap()).collect();
    for stream in &mut streams {
        let head = format!("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{}", key("a"));
        write!(stream, "{head}Content-Length: {}\r\n\r\n{endless}", endless.len()).unwrap();
    }
    let running = || ask(at, "GET", "/metrics", &key("b"), "").2.lines().any(|l| l == "lapis_running 16");
    let until = Instant::now() + Duration::from_secs(20);
    while !running() {
        assert!(Instant::now() < until, "they do not run");
    }
    let short = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).to_string();
    for (path, kind) in [("/v1/chat/completions", None), ("/v1/messages", Some("error"))] {
        let (status, head, text) = ask(at, "POST", path, &key("a"), &short);
        assert!(status == 429 && head.contains("retry-after: "), "{status} {head}");
        let body = value(&text);
        assert_eq!((body["error"]["type"].as_str(), body["type"].as_str()), (Some("rate_limit_error"), kind), "{text}");
        assert_eq!(ask(at, "POST", path, &key("b"), &short).0, 200);
    }
    // Those that leave make room.
    drop(streams);
    while ask(at, "POST", "/v1/messages", &key("a"), &short).0 != 200 {
        assert!(Instant::now() < until, "no room");
    }
}
