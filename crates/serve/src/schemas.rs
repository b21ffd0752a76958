//! What answers look like, for the OpenAPI document: a schema for each, by name.
//!
//! Objects say all of their fields, so that a field that is not here shows: the client suite holds every answer that it
//! gets, errors and events of streams among them, to these.

use serde_json::{Map, Value, json};

fn text() -> Value {
    json!({"type": "string"})
}

fn whole() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn number() -> Value {
    json!({"type": "number"})
}

fn flag() -> Value {
    json!({"type": "boolean"})
}

/// Whatever it is.
fn any() -> Value {
    json!({})
}

/// An object that others have made, or whose fields are names.
fn open() -> Value {
    json!({"type": "object"})
}

fn is(value: impl Into<Value>) -> Value {
    json!({"const": value.into()})
}

fn words<const N: usize>(all: [&str; N]) -> Value {
    json!({"enum": &all[..]})
}

fn list(of: Value) -> Value {
    json!({"type": "array", "items": of})
}

fn null() -> Value {
    json!({"type": "null"})
}

fn or_null(other: Value) -> Value {
    either([other, null()])
}

fn either<const N: usize>(all: [Value; N]) -> Value {
    json!({"anyOf": &all[..]})
}

/// The schema of a name.
pub(crate) fn named(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// An object of these fields and no others; those whose names end in `?` may be absent.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (name, schema) in fields {
        if !name.ends_with('?') {
            required.push(name);
        }
        properties.insert(name.trim_end_matches('?').to_string(), schema);
    }
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

/// The same with further fields.
fn with<const N: usize>(mut base: Value, fields: [(&str, Value); N]) -> Value {
    let more = object(fields);
    if let (Some(all), Some(new)) = (base["properties"].as_object_mut(), more["properties"].as_object()) {
        all.extend(new.clone());
    }
    if let (Some(all), Some(new)) = (base["required"].as_array_mut(), more["required"].as_array()) {
        all.extend(new.clone());
    }
    base
}

/// All of them.
pub(crate) fn all() -> Value {
    let mut all = Map::new();
    for (name, schema) in errors().into_iter().chain(openai()).chain(responses()).chain(anthropic()).chain(others()) {
        all.insert(name.to_string(), schema);
    }
    Value::Object(all)
}

type Named = Vec<(&'static str, Value)>;

fn errors() -> Named {
    let kinds = [
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "conflict_error",
        "rate_limit_error",
        "server_error",
        "overloaded_error",
    ];
    let inner =
        object([("message", text()), ("type", words(kinds)), ("param", or_null(text())), ("code", or_null(text()))]);
    let kinds = [
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "request_too_large",
        "rate_limit_error",
        "api_error",
        "overloaded_error",
    ];
    let anthropic = object([("type", words(kinds)), ("message", text())]);
    vec![
        ("Error", object([("error", inner)])),
        ("AnthropicError", object([("type", is("error")), ("error", anthropic), ("request_id", text())])),
        ("OllamaError", object([("error", text())])),
    ]
}

fn openai() -> Named {
    let cached = object([("cached_tokens", whole())]);
    let usage = object([
        ("prompt_tokens", whole()),
        ("completion_tokens", whole()),
        ("total_tokens", whole()),
        ("prompt_tokens_details", cached),
        ("completion_tokens_details?", object([("reasoning_tokens", whole())])),
    ]);
    let timings = object([
        ("queue_ms", number()),
        ("prefill_ms", number()),
        ("ttft_ms", number()),
        ("prompt_tps", number()),
        ("decode_tps", number()),
        ("draft_accepted", whole()),
        ("seed", whole()),
    ]);
    let scored = object([
        ("token", text()),
        ("logprob", number()),
        ("bytes", list(whole())),
        ("token_id", whole()),
        ("top_logprobs?", list(named("TokenLogprob"))),
    ]);
    let logprobs = object([("content", list(named("TokenLogprob"))), ("refusal", null())]);
    let function = object([("name", text()), ("arguments", text())]);
    let function = object([("id", text()), ("type", is("function")), ("function", function)]);
    let custom = object([("name", text()), ("input", text())]);
    let custom = object([("id", text()), ("type", is("custom")), ("custom", custom)]);
    let call = either([function, custom]);
    let said = [("reasoning_content?", text()), ("reasoning?", text())];
    let message = object([("role", is("assistant")), ("content", or_null(text())), ("tool_calls?", list(call))]);
    let finish = || words(["stop", "length", "tool_calls"]);
    let choice = object([
        ("index", whole()),
        ("message", with(message, said.clone())),
        ("finish_reason", finish()),
        ("logprobs?", logprobs.clone()),
    ]);
    let begun = |kind: &str, inside: &str| {
        let piece = object([("name?", text()), (inside, text())]);
        object([("index", whole()), ("id?", text()), ("type?", is(kind)), (kind, piece)])
    };
    let begun = either([begun("function", "arguments"), begun("custom", "input")]);
    let delta = object([("role?", is("assistant")), ("content?", text()), ("tool_calls?", list(begun))]);
    let changed = object([
        ("index", whole()),
        ("delta", with(delta, said)),
        ("finish_reason", or_null(finish())),
        ("logprobs?", logprobs),
    ]);
    let head = |kind: &str, choices: Value| {
        object([
            ("id", text()),
            ("object", is(kind)),
            ("created", whole()),
            ("model", text()),
            ("system_fingerprint", text()),
            ("choices", list(choices)),
        ])
    };
    let whole_counts = || [("usage", named("Usage")), ("timings", named("Timings"))];
    let last_counts = || [("usage?", or_null(named("Usage"))), ("timings?", named("Timings"))];
    let legacy = object([
        ("tokens", list(text())),
        ("token_logprobs", list(or_null(number()))),
        ("top_logprobs", list(or_null(open()))),
        ("text_offset", list(whole())),
    ]);
    let written = |finish: Value| {
        object([("index", whole()), ("text", text()), ("finish_reason", finish), ("logprobs?", legacy.clone())])
    };
    let ended = || words(["stop", "length"]);
    let counts = || object([("prompt_tokens", whole()), ("total_tokens", whole())]);
    let vector =
        object([("object", is("embedding")), ("index", whole()), ("embedding", either([list(number()), text()]))]);
    let embeddings = object([("object", is("list")), ("data", list(vector)), ("model", text()), ("usage", counts())]);
    let result = object([("index", whole()), ("relevance_score", number()), ("document?", object([("text", text())]))]);
    let ranking = object([
        ("id", text()),
        ("object", is("list")),
        ("model", text()),
        ("results", list(result)),
        ("usage", counts()),
    ]);
    let loading = object([("seconds", number()), ("fetched?", whole()), ("bytes?", whole())]);
    let model = object([
        ("id", text()),
        ("object", is("model")),
        ("type", is("model")),
        ("display_name", text()),
        ("created", whole()),
        ("created_at", text()),
        ("owned_by", text()),
        ("loaded", flag()),
        ("state", words(["absent", "loading", "ready", "failed"])),
        ("loading?", named("Loading")),
        ("failure?", text()),
        ("capabilities", list(text())),
        ("context_length?", whole()),
        ("max_model_len?", whole()),
        ("quantization?", text()),
    ]);
    // What Codex reads is Codex's: its fields change with its releases.
    let models = object([
        ("object", is("list")),
        ("data", list(named("Model"))),
        ("has_more", is(false)),
        ("first_id", or_null(text())),
        ("last_id", or_null(text())),
        ("models", list(json!({"type": "object", "required": ["slug", "display_name", "context_window"]}))),
    ]);
    let pieces = object([("id", whole()), ("piece", either([text(), list(whole())]))]);
    let tokens =
        object([("tokens", either([list(whole()), list(pieces)])), ("count", whole()), ("max_model_len", whole())]);
    vec![
        ("Usage", usage),
        ("Timings", timings),
        ("TokenLogprob", scored),
        ("ChatCompletion", with(head("chat.completion", choice), whole_counts())),
        ("ChatChunk", with(head("chat.completion.chunk", changed), last_counts())),
        ("Completion", with(head("text_completion", written(ended())), whole_counts())),
        ("CompletionChunk", with(head("text_completion", written(or_null(ended()))), last_counts())),
        ("Embeddings", embeddings),
        ("Ranking", ranking),
        ("Loading", loading),
        ("Model", model),
        ("Models", models),
        ("Tokens", tokens),
        ("Text", object([("content", text()), ("prompt", text())])),
        ("Prompt", object([("prompt", text())])),
    ]
}

fn responses() -> Named {
    let status = || words(["in_progress", "completed", "incomplete", "failed"]);
    let output_text = object([
        ("type", is("output_text")),
        ("text", text()),
        ("annotations", list(any())),
        ("logprobs?", list(named("TokenLogprob"))),
    ]);
    let reasoning_text = || object([("type", is("reasoning_text")), ("text", text())]);
    let summary_text = || object([("type", is("summary_text")), ("text", text())]);
    let part = either([output_text.clone(), reasoning_text()]);
    let item = |kind: &str| object([("id", text()), ("type", is(kind)), ("status", status())]);
    let called = || [("call_id", text()), ("name", text()), ("namespace?", text())];
    let message = with(item("message"), [("role", is("assistant")), ("content", list(output_text))]);
    let thought = with(item("reasoning"), [("summary", list(summary_text())), ("content", list(reasoning_text()))]);
    let function = with(with(item("function_call"), called()), [("arguments", text())]);
    let custom = with(with(item("custom_tool_call"), called()), [("input", text())]);
    let usage = object([
        ("input_tokens", whole()),
        ("output_tokens", whole()),
        ("total_tokens", whole()),
        ("input_tokens_details", object([("cached_tokens", whole()), ("cache_write_tokens", whole())])),
        ("output_tokens_details", object([("reasoning_tokens", whole())])),
    ]);
    let response = object([
        ("id", text()),
        ("object", is("response")),
        ("created_at", whole()),
        ("completed_at?", whole()),
        ("status", status()),
        ("background", is(false)),
        ("error", or_null(object([("code", text()), ("message", text())]))),
        ("incomplete_details", or_null(object([("reason", is("max_output_tokens"))]))),
        ("instructions", any()),
        ("max_output_tokens", or_null(whole())),
        ("max_tool_calls?", whole()),
        ("metadata", open()),
        ("model", text()),
        ("output", list(named("OutputItem"))),
        ("parallel_tool_calls", flag()),
        ("previous_response_id", or_null(text())),
        ("prompt_cache_key?", text()),
        ("reasoning", open()),
        ("safety_identifier?", any()),
        ("service_tier", is("default")),
        ("store", flag()),
        ("temperature", or_null(number())),
        ("text", open()),
        ("tool_choice", any()),
        ("tools", list(open())),
        ("top_logprobs", whole()),
        ("top_p", or_null(number())),
        ("truncation", text()),
        ("usage", or_null(usage)),
        ("user?", any()),
        ("timings?", named("Timings")),
    ]);
    let event = |kind: Value| object([("type", kind), ("sequence_number", whole())]);
    let at = || [("item_id", text()), ("output_index", whole())];
    let of = |kind: &str| with(event(is(kind)), at());
    let content = |kind: &str| with(of(kind), [("content_index", whole())]);
    let summary = |kind: &str| with(of(kind), [("summary_index", whole())]);
    let logprobs = || list(named("TokenLogprob"));
    let stages = words([
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]);
    let items = words(["response.output_item.added", "response.output_item.done"]);
    let parts = words(["response.content_part.added", "response.content_part.done"]);
    let summaries = words(["response.reasoning_summary_part.added", "response.reasoning_summary_part.done"]);
    let delta = || [("delta", text())];
    let whole_text = || [("text", text())];
    let events = either([
        with(event(stages), [("response", named("Response"))]),
        with(event(items), [("output_index", whole()), ("item", named("OutputItem"))]),
        with(with(event(parts), at()), [("content_index", whole()), ("part", part)]),
        with(content("response.output_text.delta"), [("delta", text()), ("logprobs", logprobs())]),
        with(content("response.output_text.done"), [("text", text()), ("logprobs", logprobs())]),
        with(content("response.reasoning_text.delta"), delta()),
        with(content("response.reasoning_text.done"), whole_text()),
        with(with(event(summaries), at()), [("summary_index", whole()), ("part", summary_text())]),
        with(summary("response.reasoning_summary_text.delta"), delta()),
        with(summary("response.reasoning_summary_text.done"), whole_text()),
        with(of("response.function_call_arguments.delta"), delta()),
        with(of("response.function_call_arguments.done"), [("arguments", text()), ("name", text())]),
        with(of("response.custom_tool_call_input.delta"), delta()),
        with(of("response.custom_tool_call_input.done"), [("input", text())]),
        with(event(is("error")), [("code", text()), ("message", text()), ("param", or_null(text()))]),
    ]);
    vec![
        ("OutputItem", either([message, thought, function, custom])),
        ("Response", response),
        ("ResponseEvent", events),
    ]
}

fn anthropic() -> Named {
    let thinking = object([("type", is("thinking")), ("thinking", text()), ("signature", text())]);
    let said = object([("type", is("text")), ("text", text())]);
    let call = object([("type", is("tool_use")), ("id", text()), ("name", text()), ("input", open())]);
    let block = || named("ContentBlock");
    let reasons = || words(["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]);
    let message = object([
        ("id", text()),
        ("type", is("message")),
        ("role", is("assistant")),
        ("model", text()),
        ("content", list(block())),
        ("stop_reason", or_null(reasons())),
        ("stop_sequence", or_null(text())),
        ("usage", named("MessageUsage")),
    ]);
    let usage = object([
        ("input_tokens", whole()),
        ("output_tokens", whole()),
        ("cache_read_input_tokens", whole()),
        ("cache_creation_input_tokens", whole()),
    ]);
    let of = |kind: &str, name: &str| object([("type", is(kind)), (name, text())]);
    let deltas = either([
        of("text_delta", "text"),
        of("thinking_delta", "thinking"),
        of("signature_delta", "signature"),
        of("input_json_delta", "partial_json"),
    ]);
    let event = |kind: &str| object([("type", is(kind))]);
    let indexed = |kind: &str| with(event(kind), [("index", whole())]);
    let end = object([("stop_reason", reasons()), ("stop_sequence", or_null(text()))]);
    let events = either([
        with(event("message_start"), [("message", named("Message"))]),
        with(indexed("content_block_start"), [("content_block", block())]),
        with(indexed("content_block_delta"), [("delta", deltas)]),
        indexed("content_block_stop"),
        with(event("message_delta"), [("delta", end), ("usage", named("MessageUsage"))]),
        event("message_stop"),
        event("ping"),
    ]);
    vec![
        ("ContentBlock", either([thinking, said, call])),
        ("MessageUsage", usage),
        ("Message", message),
        ("MessageEvent", events),
        ("TokenCount", object([("input_tokens", whole())])),
    ]
}

fn others() -> Named {
    let details = object([
        ("format", text()),
        ("family", text()),
        ("families", list(text())),
        ("parameter_size", text()),
        ("quantization_level", text()),
        ("parent_model", text()),
    ]);
    let tag = object([
        ("name", text()),
        ("model", text()),
        ("modified_at", text()),
        ("size", whole()),
        ("digest", text()),
        ("details", details.clone()),
    ]);
    let loaded =
        with(tag.clone(), [("expires_at", text()), ("size_vram", whole()), ("context_length", or_null(whole()))]);
    let shown = object([
        ("details", details),
        ("modified_at", text()),
        ("template", text()),
        ("parameters", text()),
        ("capabilities", list(text())),
        ("model_info", open()),
    ]);
    let at_work =
        object([("id", text()), ("jobs", whole()), ("bytes", whole()), ("context", whole()), ("created", whole())]);
    let about = object([
        ("name", text()),
        ("generation", whole()),
        ("kind", words(["lora", "dora", "full"])),
        ("rank", whole()),
        ("bytes", whole()),
    ]);
    let on = list(object([("id", text()), ("jobs", whole())]));
    let adapter = with(about.clone(), [("created", whole()), ("base", or_null(text())), ("loaded", on)]);
    let counts = |more: Value| {
        let both = [("entries", whole()), ("bytes", whole()), ("hits", whole()), ("misses", whole())];
        with(object(both), [("evictions", whole()), ("reused_tokens", whole()), ("disk", or_null(more))])
    };
    let disk = object([
        ("dir", text()),
        ("files", whole()),
        ("bytes", whole()),
        ("limit", whole()),
        ("hits", whole()),
        ("misses", whole()),
        ("read_tokens", whole()),
        ("written", whole()),
        ("evictions", whole()),
        ("damaged", whole()),
        ("dropped", whole()),
    ]);
    let gone = or_null(object([("files", whole()), ("bytes", whole())]));
    let words_of_state = words(["ready", "loading", "draining", "overloaded", "failed"]);
    let ready = object([("status", words_of_state), ("message?", text()), ("progress?", named("Loading"))]);
    vec![
        ("Version", object([("version", text())])),
        ("Tags", object([("models", list(tag))])),
        ("Running", object([("models", list(loaded))])),
        ("Shown", shown),
        ("LoadedModels", object([("models", list(at_work))])),
        ("LoadedModel", object([("id", text()), ("context", whole()), ("bytes", whole())])),
        ("UnloadedModel", object([("id", text()), ("unloaded", is(true))])),
        ("Adapters", object([("adapters", list(adapter))])),
        ("Adapter", about),
        ("UnloadedAdapter", object([("name", text()), ("unloaded", is(true))])),
        ("Cache", counts(disk)),
        ("Cleared", object([("cleared", whole()), ("disk", gone)])),
        ("Health", object([("status", words(["ok", "unavailable"]))])),
        ("Ready", ready),
        // For the page at /dashboard; it changes as the page does.
        ("Dashboard", open()),
    ]
}
