//! Custom tools in chats: what is offered, called, streamed, said again, and refused.
#![allow(missing_docs)]

mod common;

use common::{JSON, ask, events, post, server, tools};
use serde_json::{Value, json};
use std::net::SocketAddr;

const PATH: &str = "/v1/chat/completions";

fn custom(name: &str, format: &Value) -> Value {
    json!({"type": "custom", "custom": {"name": name, "description": "Changes a file.", "format": format}})
}

fn grammar(syntax: &str, definition: &str) -> Value {
    json!({"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}})
}

/// Inputs of `patch` and `note` have what JSON escapes.
fn offered() -> Value {
    json!([
        {"type": "function", "function": {"name": "take", "strict": true, "parameters": {"type": "object",
            "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"], "additionalProperties": false}}},
        custom("patch", &grammar("lark", "start: LINE~2\nLINE: /[ab\\\\]\"\\n/")),
        custom("note", &grammar("regex", "[cd]{3}\\n")),
    ])
}

fn body(choice: &Value, seed: u64) -> Value {
    json!({"messages": [{"role": "user", "content": "A story about a fox"}], "tools": offered(), "tool_choice": choice,
        "parallel_tool_calls": false, "max_tokens": 120, "temperature": 1, "seed": seed})
}

fn choice(name: &str) -> Value {
    json!({"type": "custom", "custom": {"name": name}})
}

/// The call of a stream, and how many pieces its input came in.
fn streamed(at: SocketAddr, mut body: Value) -> (Value, usize) {
    body["stream"] = json!(true);
    let (status, _, text) = ask(at, "POST", PATH, JSON, &body.to_string());
    assert!(status == 200 && text.contains("data: [DONE]"), "{text}");
    let (mut call, mut pieces) = (Value::Null, 0);
    for chunk in events(&text) {
        let Some(delta) = chunk["choices"][0]["delta"].get("tool_calls") else { continue };
        let [delta] = &delta.as_array().unwrap()[..] else { panic!("{delta}") };
        if call.is_null() {
            assert_eq!((&delta["type"], &delta["custom"]["input"]), (&json!("custom"), &json!("")), "{delta}");
            call = delta.clone();
        } else {
            assert!(delta.get("id").is_none() && delta.get("type").is_none() && delta["index"] == 0, "{delta}");
            assert_eq!(delta["custom"].as_object().unwrap().len(), 1, "{delta}");
            let more = delta["custom"]["input"].as_str().unwrap();
            call["custom"]["input"] = json!(format!("{}{more}", call["custom"]["input"].as_str().unwrap()));
            pieces += 1;
        }
    }
    (call, pieces)
}

#[test]
fn custom_tools_are_called_with_texts_that_follow_their_grammars() {
    let (_server, at) = server(|s| s.model.1 = tools());
    for seed in 0..3 {
        for name in ["patch", "note"] {
            let body = body(&choice(name), seed);
            let (status, whole) = post(at, PATH, &body);
            assert_eq!(status, 200, "{whole}");
            let (said, over) = (&whole["choices"][0]["message"], &whole["choices"][0]["finish_reason"]);
            assert_eq!((&said["content"], over), (&Value::Null, &json!("tool_calls")), "{whole}");
            let [call] = &said["tool_calls"].as_array().unwrap()[..] else { panic!("{whole}") };
            assert_eq!((&call["type"], &call["custom"]["name"]), (&json!("custom"), &json!(name)));
            assert!(call["id"].as_str().unwrap().starts_with("call_") && call.get("function").is_none(), "{call}");
            let input = call["custom"]["input"].as_str().unwrap();
            match name {
                "patch" => assert!(
                    input.split_inclusive("\"\n").count() == 2
                        && input.split("\"\n").all(|l| ["a", "b", "\\", ""].contains(&l)),
                    "{input:?}"
                ),
                _ => assert!(input.len() == 4 && input.trim_end().chars().all(|c| "cd".contains(c)), "{input:?}"),
            }
            let (again, pieces) = streamed(at, body);
            assert!(again["custom"] == call["custom"] && pieces > 1, "{again} in {pieces}");
        }
    }
    // Functions beside them are what they were.
    let (_, whole) = post(at, PATH, &body(&json!({"type": "function", "function": {"name": "take"}}), 1));
    let call = &whole["choices"][0]["message"]["tool_calls"][0];
    assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("take")));
    // One of some: the others are not offered.
    let some = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [choice("note")]}});
    for seed in 0..3 {
        let call = &post(at, PATH, &body(&some, seed)).1["choices"][0]["message"]["tool_calls"][0];
        assert_eq!(call["custom"]["name"], "note");
    }
}

#[test]
fn the_model_reads_calls_of_custom_tools_as_those_of_functions() {
    let (_server, at) = server(|s| s.model.1 = tools());
    let text = |call: Value| {
        let messages = json!([
            {"role": "user", "content": "hi"}, {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "done"},
        ]);
        post(at, "/apply-template", &json!({"messages": messages, "tools": offered()})).1["prompt"].clone()
    };
    let got = text(json!({"id": "c", "type": "custom", "custom": {"name": "patch", "input": "a\"\n"}}));
    let function = json!({"name": "patch", "arguments": {"input": "a\"\n"}});
    assert_eq!(got, text(json!({"id": "c", "type": "function", "function": function})));
    let got = got.as_str().unwrap();
    assert!(got.contains("The input follows this grammar:\nstart: LINE~2") && got.contains("done"), "{got}");
    assert!(got.contains(r#""input": "a\"\n""#), "{got}");
}

#[test]
fn custom_tools_that_are_none_are_refused() {
    let (_server, at) = server(|s| s.model.1 = tools());
    let user = json!({"role": "user", "content": "hi"});
    let tool = |custom: Value| json!({"messages": [user], "tools": [{"type": "custom", "custom": custom}]});
    let called = |custom: Value| {
        let call = json!({"id": "c", "type": "custom", "custom": custom});
        json!({"messages": [user, {"role": "assistant", "tool_calls": [call]}]})
    };
    let both = json!([custom("f", &json!(null)), {"type": "function", "function": {"name": "f"}}]);
    for (body, param, why) in [
        (json!({"messages": [user], "tools": [{"type": "custom", "name": "f"}]}), "tools", "tools[0].custom.name"),
        (tool(json!({"name": ""})), "tools", "tools[0].custom.name"),
        (tool(json!({"name": "f", "format": {"type": "other"}})), "tools", "tools[0].custom has a format"),
        (tool(json!({"name": "f", "format": {"type": "grammar", "grammar": {"syntax": "lark"}}})), "tools", "format"),
        (
            tool(json!({"name": "f", "format": grammar("lark", "start: %json {}")})),
            "tools",
            "tools[0].custom.format.grammar.definition: ",
        ),
        (json!({"messages": [user], "tools": both}), "tools", "\"f\""),
        (json!({"messages": [user], "tools": [{"type": "web_search"}]}), "tools", "tools[0].type"),
        (json!({"messages": [user], "tools": offered(), "tool_choice": choice("no")}), "tool_choice", "\"no\""),
        (called(json!({"input": "x"})), "messages", "messages[1].tool_calls[0].custom.name"),
        (called(json!({"name": "f", "input": 5})), "messages", "messages[1].tool_calls[0].custom.input"),
        (called(Value::Null), "messages", "messages[1].tool_calls[0].custom.name"),
    ] {
        let (status, error) = post(at, PATH, &body);
        assert_eq!((status, &error["error"]["param"]), (400, &json!(param)), "{body}: {error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(why), "{body}: {error}");
    }
}
