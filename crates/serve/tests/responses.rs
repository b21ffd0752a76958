//! `/v1/responses` over HTTP: what it takes, what it gives whole and in events, and what Codex and its like send.

mod common;

use common::{JSON, THINK, ask, events, get, post, server, thinking, tools};
use serde_json::{Value, json};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const PATH: &str = "/v1/responses";
const FOX: &str = "Tell me a story about a fox";

fn with(mut body: Value, more: &Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A whole answer with its warnings.
fn respond(at: SocketAddr, body: &Value) -> (u16, Value, String) {
    let (status, head, text) = ask(at, "POST", PATH, JSON, &body.to_string());
    let warnings = head.lines().find_map(|l| l.strip_prefix("x-lapis-warnings: ")).unwrap_or("").to_string();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)), warnings)
}

fn stream(at: SocketAddr, body: &Value) -> Vec<Value> {
    let (status, head, text) = ask(at, "POST", PATH, JSON, &with(body.clone(), &json!({"stream": true})).to_string());
    assert!(status == 200 && head.contains("text/event-stream"), "{head} {text}");
    for (name, data) in text.lines().zip(text.lines().skip(1)) {
        if let (Some(name), Some(data)) = (name.strip_prefix("event: "), data.strip_prefix("data: ")) {
            assert_eq!(serde_json::from_str::<Value>(data).unwrap()["type"], name);
        }
    }
    events(&text)
}

/// What a client makes of events that says nothing twice: items by their events, checked against the last one.
fn follow(events: &[Value]) -> Value {
    let mut items: Vec<Value> = Vec::new();
    let mut open: Option<(String, String, String)> = None;
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["response.created", "response.in_progress"]);
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i);
        let kind = kinds[i].strip_prefix("response.").unwrap();
        if !matches!(kind, "created" | "in_progress" | "completed" | "incomplete") {
            assert_eq!(event["output_index"], items.len(), "{event}");
        }
        if let (Some(id), Some((open, ..))) = (event["item_id"].as_str(), &open) {
            assert_eq!(id, open, "{event}");
        }
        match kind {
            "output_item.added" => {
                let id = event["item"]["id"].as_str().unwrap().to_string();
                assert!(open.replace((id, String::new(), String::new())).is_none(), "one item at a time");
            }
            "output_text.delta"
            | "reasoning_text.delta"
            | "function_call_arguments.delta"
            | "custom_tool_call_input.delta" => {
                open.as_mut().unwrap().1 += event["delta"].as_str().unwrap();
            }
            "reasoning_summary_text.delta" => open.as_mut().unwrap().2 += event["delta"].as_str().unwrap(),
            "output_text.done" | "reasoning_text.done" => assert_eq!(event["text"], open.as_ref().unwrap().1),
            "function_call_arguments.done" => assert_eq!(event["arguments"], open.as_ref().unwrap().1),
            "custom_tool_call_input.done" => assert_eq!(event["input"], open.as_ref().unwrap().1),
            "reasoning_summary_text.done" => assert_eq!(event["text"], open.as_ref().unwrap().2),
            "output_item.done" => {
                let item = event["item"].clone();
                let (id, text, summary) = open.take().unwrap();
                assert_eq!(item["id"], id);
                let said = ["arguments", "input"].iter().find_map(|k| item[*k].as_str());
                assert_eq!(said.or(item["content"][0]["text"].as_str()), Some(&*text), "{item}");
                assert_eq!(item["summary"][0]["text"].as_str().unwrap_or(""), summary, "{item}");
                items.push(item);
            }
            _ => {}
        }
    }
    let last = events.last().unwrap();
    assert_eq!(last["type"], format!("response.{}", last["response"]["status"].as_str().unwrap()));
    assert_eq!(last["response"]["output"], json!(items));
    last["response"].clone()
}

/// The response without what differs from request to request.
fn plain(response: &Value) -> Value {
    let mut plain = response.clone();
    for key in ["id", "created_at", "completed_at", "timings", "usage"] {
        plain.as_object_mut().unwrap().remove(key);
    }
    for item in plain["output"].as_array_mut().unwrap() {
        for key in ["id", "call_id"] {
            item.as_object_mut().unwrap().remove(key);
        }
    }
    plain
}

#[test]
fn responses_say_what_chats_say_whole_and_in_events() {
    let (_server, at) = server(|_| {});
    for seed in 0..3 {
        let more = json!({"temperature": 0.9, "seed": seed});
        let body = with(json!({"input": FOX, "max_output_tokens": 24, "metadata": {"a": "b"}}), &more);
        let (status, whole, warnings) = respond(at, &body);
        assert_eq!((status, &*warnings), (200, "metadata: no effect"), "{whole}");
        let chat = with(json!({"messages": [{"role": "user", "content": FOX}], "max_tokens": 24}), &more);
        let chat = post(at, "/v1/chat/completions", &chat).1;
        let message = &whole["output"][0];
        assert_eq!(message["content"][0]["text"], chat["choices"][0]["message"]["content"]);
        let cut = chat["choices"][0]["finish_reason"] == "length";
        assert_eq!(whole["status"], if cut { "incomplete" } else { "completed" });
        assert_eq!(whole["incomplete_details"], if cut { json!({"reason": "max_output_tokens"}) } else { json!(null) });
        assert_eq!(
            (&whole["object"], &whole["store"], &whole["metadata"]["a"]),
            (&json!("response"), &json!(false), &json!("b"))
        );
        assert_eq!(whole["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
        assert_eq!(whole["usage"]["output_tokens"], chat["usage"]["completion_tokens"]);
        let (id, item) = (whole["id"].as_str().unwrap(), message["id"].as_str().unwrap());
        assert!(id.starts_with("resp_") && item.starts_with("msg_"), "{id} {item}");
        assert_eq!(plain(&follow(&stream(at, &body))), plain(&whole));
    }
    let input = json!([{"role": "user", "content": [{"type": "input_text", "text": FOX}]}]);
    let items = respond(at, &json!({"input": input, "temperature": 0, "max_output_tokens": 9})).1;
    let text = respond(at, &json!({"input": FOX, "temperature": 0, "max_output_tokens": 9})).1;
    assert_eq!(items["output"][0]["content"], text["output"][0]["content"]);
    let ended = respond(at, &json!({"input": FOX, "logit_bias": {"2": 100}, "max_output_tokens": 9})).1;
    assert_eq!((&ended["status"], &ended["output"][0]["content"][0]["text"]), (&json!("completed"), &json!("")));
    let bias = json!({"input": FOX, "logit_bias": {"2": 100}, "max_output_tokens": 9});
    assert_eq!(plain(&follow(&stream(at, &bias))), plain(&ended), "no tokens, and yet a message");
}

#[test]
fn log_probabilities_belong_to_texts() {
    let (_server, at) = server(|_| {});
    let body = json!({"input": FOX, "temperature": 0, "max_output_tokens": 6, "top_logprobs": 2,
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"]});
    let (_, whole, warnings) = respond(at, &body);
    let part = &whole["output"][0]["content"][0];
    let scored = part["logprobs"].as_array().unwrap();
    let joined: String = scored.iter().map(|s| s["token"].as_str().unwrap()).collect();
    assert_eq!((scored.len(), json!(joined)), (6, part["text"].clone()));
    assert!(scored.iter().all(|s| s["top_logprobs"].as_array().unwrap().len() == 2));
    assert_eq!(warnings, "include reasoning.encrypted_content: no effect");
    assert_eq!(plain(&follow(&stream(at, &body))), plain(&whole));
    let without = respond(at, &json!({"input": FOX, "max_output_tokens": 2})).1;
    assert_eq!(without["output"][0]["content"][0].get("logprobs"), None);
}

#[test]
fn a_format_holds() {
    let (_server, at) = server(|_| {});
    let schema = json!({"type": "object", "properties": {"tame": {"type": "boolean"}}, "required": ["tame"],
        "additionalProperties": false});
    let format =
        json!({"format": {"type": "json_schema", "name": "fox", "strict": true, "schema": schema}, "verbosity": "low"});
    let (_, whole, warnings) = respond(at, &json!({"input": FOX, "text": format, "max_output_tokens": 100}));
    let value: Value = serde_json::from_str(whole["output"][0]["content"][0]["text"].as_str().unwrap()).unwrap();
    assert!(value["tame"].is_boolean() && whole["status"] == "completed", "{whole}");
    assert_eq!((&whole["text"], &*warnings), (&format, "text.verbosity: no effect"));
    for bad in [
        json!({"format": {"type": "json_schema", "name": "x"}}),
        json!({"format": {"type": "json_schema", "name": "x", "strict": true, "schema": {"not": {}}}}),
        json!({"format": {"type": "poem"}}),
        json!({"format": {}}),
    ] {
        let (status, error, _) = respond(at, &json!({"input": FOX, "text": bad}));
        assert_eq!((status, &error["error"]["param"]), (400, &json!("text.format")), "{bad} {error}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let (_server, at) = server(|_| {});
    let long = "fox ".repeat(2000);
    for (more, param, code) in [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id", "previous_response_not_found"),
        (json!({"background": true}), "background", ""),
        (json!({"conversation": "conv_1"}), "conversation", ""),
        (json!({"prompt": {"id": "pmpt_1"}}), "prompt", ""),
        (json!({"truncation": "some"}), "truncation", ""),
        (json!({"include": [5]}), "include", ""),
        (json!({"max_output_tokens": 0}), "max_output_tokens", ""),
        (json!({"input": null}), "input", ""),
        (json!({"input": 5}), "input", ""),
        (json!({"input": [{"type": "item_reference", "id": "msg_1"}]}), "input", ""),
        (json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}), "input", ""),
        (json!({"input": long}), "input", "context_length_exceeded"),
        (json!({"input": long, "truncation": "auto"}), "input", "context_length_exceeded"),
        (json!({"tools": [{"type": "function"}]}), "tools", ""),
        (json!({"tools": [{"name": "f"}]}), "tools", ""),
        (json!({"tools": [{"type": "custom", "name": "f", "format": {"type": "grammar"}}]}), "tools", ""),
        (json!({"tool_choice": "required"}), "tool_choice", ""),
        (json!({"tool_choice": {"type": "function", "name": "f"}}), "tool_choice", ""),
        (json!({"tool_choice": {"type": "web_search_preview"}}), "tool_choice", ""),
    ] {
        let (status, error, _) = respond(at, &with(json!({"input": FOX}), &more));
        let code = if code.is_empty() { Value::Null } else { json!(code) };
        assert_eq!(
            (status, &error["error"]["param"], &error["error"]["code"]),
            (400, &json!(param), &code),
            "{more:.80} {error}"
        );
    }
    let (status, error, _) = respond(at, &json!({"input": FOX, "model": "dem"}));
    assert!(status == 404 && error["error"]["message"].as_str().unwrap().contains("there is demo"), "{error}");
    // The same with a stream: nothing has begun, so the status says it.
    let (status, ..) = respond(at, &json!({"input": FOX, "previous_response_id": "resp_1", "stream": true}));
    assert_eq!(status, 400);
    assert_eq!(respond(at, &json!({"input": FOX, "max_output_tokens": 2})).0, 200);
}

#[test]
fn the_oldest_turns_make_room() {
    let (_server, at) = server(|_| {});
    let mut items = vec![json!({"role": "developer", "content": "Be kind."})];
    for i in 0..30 {
        items.push(json!({"role": "user", "content": format!("Tell me story number {i} about a fox and a dog")}));
        items.push(
            json!({"role": "assistant", "content": "Once there was a fox who met a dog in the wood and was glad."}),
        );
    }
    items.push(json!({"role": "user", "content": FOX}));
    let body = json!({"input": items, "max_output_tokens": 40});
    let (status, error, _) = respond(at, &body);
    assert_eq!((status, &error["error"]["code"]), (400, &json!("context_length_exceeded")), "{error}");
    let (status, whole, warnings) = respond(at, &with(body, &json!({"truncation": "auto"})));
    assert!(status == 200 && whole["truncation"] == "auto", "{whole}");
    let left = warnings.strip_prefix("truncation: ").and_then(|w| w.split(' ').next()?.parse::<u64>().ok()).unwrap();
    assert!(left % 2 == 0 && (2..60).contains(&left), "{warnings}");
    let used = whole["usage"]["input_tokens"].as_u64().unwrap();
    assert!((350..=472).contains(&used), "as few as needed: {used}");
}

fn parts() -> Value {
    json!([
        {"type": "function", "name": "take", "description": "Takes.", "strict": true, "parameters": {"type": "object",
            "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"], "additionalProperties": false}},
        {"type": "custom", "name": "patch", "description": "Changes a file.", "format": {"type": "grammar", "syntax": "regex",
            "definition": "[ab]{3}\"?\\n"}},
        {"type": "namespace", "name": "mail", "description": "Mail.", "tools": [{"type": "function", "name": "send",
            "parameters": {"type": "object", "properties": {"to": {"enum": ["fox", "dog"]}}, "required": ["to"]}}]},
        {"type": "web_search"},
    ])
}

#[test]
fn tools_of_three_kinds_are_called() {
    let (_server, at) = server(|s| s.model.1 = tools());
    let body = |choice: Value| json!({"input": FOX, "tools": parts(), "tool_choice": choice, "parallel_tool_calls": false, "max_output_tokens": 120});
    let (_, whole, warnings) = respond(at, &body(json!({"type": "function", "name": "take"})));
    let call = &whole["output"][0];
    assert_eq!(
        (&call["type"], &call["name"], &*warnings),
        (&json!("function_call"), &json!("take"), "the tool web_search was left out")
    );
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["n"].as_u64().unwrap() < 100 && call["call_id"].as_str().unwrap().starts_with("call_"));
    assert_eq!((&whole["status"], &whole["tools"]), (&json!("completed"), &parts()), "said again as they came");
    assert_eq!(
        plain(&follow(&stream(at, &body(json!({"type": "function", "name": "take"})))))["output"][0]["name"],
        "take"
    );

    for seed in 0..3 {
        let body = with(body(json!({"type": "custom", "name": "patch"})), &json!({"seed": seed, "temperature": 1}));
        let (_, whole, _) = respond(at, &body);
        let call = &whole["output"][0];
        let input = call["input"].as_str().unwrap();
        assert_eq!((&call["type"], &call["name"]), (&json!("custom_tool_call"), &json!("patch")));
        let letters = input.trim_end_matches('\n').trim_end_matches('"');
        assert!(input.ends_with('\n') && letters.len() == 3 && letters.chars().all(|c| "ab".contains(c)), "{input:?}");
        assert_eq!(plain(&follow(&stream(at, &body))), plain(&whole));
    }

    for choice in
        [json!({"type": "function", "name": "send"}), json!({"type": "function", "name": "send", "namespace": "mail"})]
    {
        let call = respond(at, &body(choice)).1["output"][0].clone();
        assert_eq!(
            (&call["type"], &call["name"], &call["namespace"]),
            (&json!("function_call"), &json!("send"), &json!("mail"))
        );
    }
    let some = json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "patch"}, {"type": "web_search"}]});
    assert_eq!(respond(at, &body(some)).1["output"][0]["name"], "patch");
    let (_, whole, _) = respond(at, &with(body(json!("none")), &json!({"max_output_tokens": 4})));
    assert_eq!(whole["output"][0]["type"], "message");
}

#[test]
fn thinking_is_an_item_of_its_own() {
    let (_server, at) = server(|s| s.model.1 = thinking());
    let bias = json!({(THINK + 1).to_string(): 9, THINK.to_string(): -100});
    let body = |more: Value| {
        let body = json!({"input": FOX, "temperature": 1, "seed": 3, "max_output_tokens": 40, "logit_bias": bias,
            "reasoning": {"effort": "high"}});
        with(body, &more)
    };
    let (_, whole, _) = respond(at, &body(json!({})));
    let [thought, message] = &whole["output"].as_array().unwrap()[..] else { panic!("{whole}") };
    assert_eq!(
        (&thought["type"], &thought["summary"], &message["type"]),
        (&json!("reasoning"), &json!([]), &json!("message"))
    );
    assert!(!thought["content"][0]["text"].as_str().unwrap().is_empty());
    assert!(whole["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);
    assert_eq!(plain(&follow(&stream(at, &body(json!({}))))), plain(&whole));
    let told = body(json!({"reasoning": {"effort": "high", "summary": "auto"}}));
    let (_, summed, _) = respond(at, &told);
    assert_eq!(summed["output"][0]["summary"][0]["text"], thought["content"][0]["text"]);
    assert_eq!(plain(&follow(&stream(at, &told))), plain(&summed));
    // None: the template does not let the model think.
    let quiet = respond(at, &body(json!({"reasoning": {"effort": "none"}}))).1;
    assert_eq!(quiet["output"][0]["type"], "message");
    // What comes back is read: by a template that shows it, it makes the prompt longer.
    let turn =
        |items: Value| respond(at, &json!({"input": items, "max_output_tokens": 1})).1["usage"]["input_tokens"].clone();
    let user = json!({"role": "user", "content": "hi"});
    let with = turn(json!([user, summed["output"][0], summed["output"][1], user])).as_u64();
    assert!(with > turn(json!([user, summed["output"][1], user])).as_u64());
}

#[test]
fn streams_that_come_to_grief_say_so() {
    let (server, at) = server(|s| s.drain_timeout = std::time::Duration::ZERO);
    let body = json!({"input": FOX, "max_output_tokens": 450, "logit_bias": {"2": -100}});
    let client = std::thread::spawn(move || stream(at, &body));
    while !get(at, "/metrics").2.contains("lapis_running 1") && !client.is_finished() {}
    server.drain();
    let events = client.join().unwrap();
    let [.., error, last] = &events[..] else { panic!("{events:?}") };
    if last["type"] == "response.incomplete" {
        return; // It was faster.
    }
    assert_eq!((&error["type"], &last["type"]), (&json!("error"), &json!("response.failed")));
    assert_eq!(
        (&last["response"]["status"], &last["response"]["error"]["code"]),
        (&json!("failed"), &json!("server_error"))
    );
    assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{error}");
}

/// C6: what Codex sends with every turn.
#[test]
fn codex_turns_are_answered() {
    let (_server, at) = server(|s| s.model.1 = tools());
    let tools = json!([
        {"type": "function", "name": "shell_command", "description": "Runs a command.", "strict": false, "parameters": {"type": "object",
            "properties": {"command": {"type": "string"}, "timeout_ms": {"type": "number"}}, "required": ["command"], "additionalProperties": false}},
        {"type": "custom", "name": "apply_patch", "description": "Edits files.", "format": {"type": "grammar", "syntax": "lark",
            "definition": "start: \"*** Begin Patch\" /(.|\\n)*/ \"*** End Patch\""}},
        {"type": "web_search", "external_web_access": false},
        {"type": "image_generation", "output_format": "png"},
        {"type": "local_shell"},
        {"type": "namespace", "name": "mcp__docs__", "description": "Docs.", "tools": [{"type": "function", "name": "find", "strict": false,
            "parameters": {"type": "object", "properties": {}}}]},
        {"type": "tool_search", "execution": "client", "description": "Finds tools.", "parameters": {"type": "object", "properties": {}}},
    ]);
    let message = |role: &str, text: &str| json!({"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]});
    let body = json!({
        "model": "demo", "instructions": "You are a coding agent.", "tools": tools, "tool_choice": "auto",
        "parallel_tool_calls": false, "reasoning": {"effort": "medium", "summary": "auto"}, "store": false, "stream": true,
        "include": ["reasoning.encrypted_content"], "prompt_cache_key": "0198-thread", "service_tier": "auto",
        "client_metadata": {"x-codex-installation-id": "1"}, "text": {"verbosity": "low"}, "max_output_tokens": 5,
        "input": [
            message("developer", "Ask before you write."), message("user", "<environment_context></environment_context>"),
            message("user", "List the files."),
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "ls"}], "content": null, "encrypted_content": null},
            {"type": "function_call", "name": "shell_command", "arguments": "{\"command\": \"ls\"}", "call_id": "call_1"},
            {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "a.txt"}]},
            {"type": "custom_tool_call", "status": "completed", "call_id": "call_2", "name": "apply_patch", "input": "*** Begin Patch"},
            {"type": "custom_tool_call_output", "call_id": "call_2", "output": "Done!"},
            {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]},
            message("user", "Thanks."),
        ],
    });
    let (status, head, text) = ask(
        at,
        "POST",
        PATH,
        &format!("{JSON}originator: codex_cli_rs\r\nAccept: text/event-stream\r\n"),
        &body.to_string(),
    );
    assert_eq!(status, 200, "{text}");
    let warnings = head.lines().find(|l| l.starts_with("x-lapis-warnings: ")).unwrap();
    for word in ["web_search ", "image_generation", "local_shell", "tool_search", "web_search_call", "client_metadata"]
    {
        assert!(warnings.contains(word), "{word}: {warnings}");
    }
    // The grammar of `apply_patch` is held to.
    assert!(!warnings.contains("tools[1]"), "{warnings}");
    follow(&events(&text));
    // The next turn begins with the same, and finds it read.
    let more = with(body.clone(), &json!({"stream": false}));
    let cached = respond(at, &more).1["usage"]["input_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached > 100, "{cached}");
    // A probe with nothing, and follow-ups without a model or to what was never stored.
    for probe in [json!([]), json!("")] {
        assert_eq!(respond(at, &json!({"input": probe, "max_output_tokens": 1})).0, 200);
    }
    let (status, error, _) = respond(at, &json!({"input": "And?", "previous_response_id": "resp_0"}));
    assert_eq!((status, &error["error"]["code"]), (400, &json!("previous_response_not_found")));
    let follow_up = respond(at, &json!({"input": "And?", "max_output_tokens": 1})).1;
    assert_eq!(follow_up["model"], "demo");
    // A schema in strict form.
    let format = json!({"type": "json_schema", "name": "codex_output_schema", "strict": true, "schema": {"type": "object",
        "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false}});
    let (_, held, _) = respond(at, &json!({"input": "Well?", "text": {"format": format}, "max_output_tokens": 50}));
    assert!(
        serde_json::from_str::<Value>(held["output"][0]["content"][0]["text"].as_str().unwrap()).unwrap()["ok"]
            .is_boolean()
    );
}

/// C7: what Codex asks about models, and needs of each.
#[test]
fn codex_finds_its_models() {
    let (_server, at) = server(|_| {});
    let (status, _, text) = get(at, "/v1/models?client_version=0.99.0");
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &list["object"], &list["data"][0]["id"]), (200, &json!("list"), &json!("demo")));
    let model = &list["models"][0];
    for key in ["slug", "display_name", "base_instructions"] {
        assert!(model[key].as_str().is_some_and(|v| !v.is_empty()), "{key}");
    }
    for key in ["supported_reasoning_levels", "experimental_supported_tools", "input_modalities"] {
        assert!(model[key].is_array(), "{key}");
    }
    for key in ["supported_in_api", "supports_reasoning_summaries", "support_verbosity", "supports_parallel_tool_calls"]
    {
        assert!(model[key].is_boolean(), "{key}");
    }
    assert_eq!((&model["shell_type"], &model["visibility"]), (&json!("shell_command"), &json!("list")));
    assert!(
        model["priority"].is_i64() && model["context_window"] == 512 && model["truncation_policy"]["limit"].is_i64()
    );
    for key in ["description", "upgrade", "default_verbosity", "apply_patch_tool_type"] {
        assert!(model.get(key).is_some(), "{key} may be null and must be there");
    }
}

/// C8: several instructions, wherever they stand and whatever they are called, and none is lost.
#[test]
fn instructions_add_up() {
    let (_server, at) = server(|_| {});
    let used = |items: Value, instructions: Option<&str>| {
        let body = json!({"input": items, "instructions": instructions, "max_output_tokens": 1});
        let (status, whole, _) = respond(at, &body);
        assert_eq!(status, 200, "{whole}");
        whole["usage"]["input_tokens"].as_u64().unwrap()
    };
    let (user, reply) = (json!({"role": "user", "content": "hi"}), json!({"role": "assistant", "content": "hi"}));
    let told = |role: &str| json!({"role": role, "content": "Count all of the foxes"});
    let bare = used(json!([user, reply, user]), None);
    let length = used(json!([user, reply, user]), Some("Count all of the foxes")) - bare;
    assert!(length > 5, "{length}");
    for role in ["system", "developer"] {
        let all = used(json!([told(role), user, reply, told(role), user]), Some("Count all of the foxes"));
        assert!(all >= bare + 3 * (length - 5), "{role}: {all}, {bare} without, {length} each");
    }
}

/// C9: nobody computes for a client that has gone; what comes first comes soon.
#[test]
fn clients_that_go_free_their_place() {
    let (_server, at) = server(|_| {});
    let number = |name: &str| {
        let text = get(at, "/metrics").2;
        text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<f64>().ok()).unwrap()
    };
    for (i, stream) in [false, true].into_iter().enumerate() {
        let body =
            json!({"input": "Once", "max_output_tokens": 480, "stream": stream, "logit_bias": {"2": -100}}).to_string();
        let head = format!("POST {PATH} HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: {}\r\n\r\n", body.len());
        let mut client = TcpStream::connect(at).unwrap();
        client.write_all(head.as_bytes()).unwrap();
        client.write_all(body.as_bytes()).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while number("lapis_running ") == 0.0 {
            assert!(Instant::now() < until, "the request does not begin");
        }
        drop(client);
        while (number("lapis_running "), number("lapis_cancelled_total ")) != (0.0, (i + 1) as f64) {
            assert!(Instant::now() < until, "stream {stream}: it goes on");
        }
    }
}

/// C10: null is absent, for every field and inside of those that hold more.
#[test]
fn null_is_absent() {
    let (_server, at) = server(|_| {});
    let plain = json!({"input": FOX, "max_output_tokens": 3, "temperature": 0});
    let mut nulls = with(
        plain.clone(),
        &json!({"text": {"format": null, "verbosity": null},
        "reasoning": {"effort": null, "summary": null}}),
    );
    for name in [
        "model",
        "instructions",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "include",
        "top_logprobs",
        "truncation",
        "stream",
        "stream_options",
        "store",
        "metadata",
        "previous_response_id",
        "background",
        "conversation",
        "prompt",
        "user",
        "service_tier",
        "prompt_cache_key",
        "max_tool_calls",
        "top_p",
        "context_management",
        "safety_identifier",
    ] {
        nulls[name] = Value::Null;
    }
    let (status, got, warnings) = respond(at, &nulls);
    assert_eq!((status, &*warnings), (200, ""), "{got}");
    let mut want = respond(at, &plain).1;
    want["text"] = got["text"].clone();
    assert_eq!(self::plain(&got), self::plain(&want));
}
