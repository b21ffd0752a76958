//! Anthropic's interface: `/v1/messages` and its count of tokens.

use crate::error::{ApiError, Dialect};
use crate::fields::{Body, Field, Kind, field, nothing};
use crate::http::answer::{self, Events, Gone, Outcome};
use crate::http::request::{Call, warn};
use crate::job::{Ending, Update};
use crate::openai::{chat, tools};
use crate::reply::{Replies, Spoken};
use crate::service::{Ask, Prompt, Service, Ticket, ToolChoice, Wishes, blocking, unique};
use crate::settings::{Log, Settings};
use lapis_lm::reply::Part;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Fields of a message.
pub(crate) const MESSAGE: &[Field] = &[
    field("model", Kind::Text, "A name of a model; absent, the start-up model."),
    field("messages", Kind::List(10_000), "The conversation: objects with role and content.").needed(),
    field("system", Kind::Any, "A text, or blocks of text."),
    field("max_tokens", Kind::Integer(1, i64::MAX as i128), "Tokens at most; absent, what the context holds."),
    field("stop_sequences", Kind::Any, "Texts that end the reply and are not part of it."),
    field("stream", Kind::Flag, "Send pieces as they come."),
    field("temperature", Kind::Number(0.0, 100.0), "Randomness; 0 takes the likeliest token."),
    field("top_p", Kind::Number(0.0, 1.0), "Draw from the smallest set of tokens with this mass."),
    field("top_k", Kind::Integer(0, i64::MAX as i128), "Draw from at most this many tokens."),
    field("tools", Kind::List(512), "Functions that the model may call."),
    field("tool_choice", Kind::Object, "auto, any, tool with a name, or none; disable_parallel_tool_use."),
    field("thinking", Kind::Object, "disabled, enabled, or adaptive."),
    field("output_config", Kind::Object, "effort: how much to think; format: a JSON schema."),
    field("output_format", Kind::Object, "The older name of output_config.format."),
    nothing("metadata"),
    nothing("cache_control"),
    nothing("context_management"),
    nothing("service_tier"),
    nothing("container"),
    nothing("inference_geo"),
];

/// Beginnings of system blocks that clients change with every request.
const BILLING: &str = "x-anthropic-billing-header:";
/// What stands where Anthropic signs thinking; it is never checked.
const SIGNATURE: &str = "bGFwaXM=";

fn wrong(at: &str, what: impl std::fmt::Display) -> ApiError {
    ApiError::field(at, format!("{at} {what}"))
}

/// The text of a block that has one.
fn block_text(block: &Value) -> Option<String> {
    let text = |of: &Value, key: &str| of.get(key).and_then(Value::as_str).map(str::to_string);
    match block.get("type").and_then(Value::as_str)? {
        "text" => text(block, "text"),
        "document" => {
            let source = block.get("source")?;
            match source.get("type").and_then(Value::as_str)? {
                "text" => text(source, "data"),
                "content" => text_of(source.get("content")?, "").ok(),
                _ => None,
            }
        }
        "search_result" => text_of(block.get("content")?, "").ok(),
        // All tools are in the prompt already.
        "tool_reference" => text(block, "tool_name").map(|name| format!("The tool {name} can be called.")),
        _ => None,
    }
}

/// The text of blocks that hold nothing else.
fn text_of(value: &Value, at: &str) -> Result<String, ApiError> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Array(blocks) => {
            let texts: Option<Vec<String>> = blocks.iter().map(block_text).collect();
            texts.map(|t| t.join("\n")).ok_or_else(|| wrong(at, "holds a block that is no text"))
        }
        _ => Err(wrong(at, "must be a text or a list of blocks")),
    }
}

fn system(value: &Value, settings: &Settings) -> Result<String, ApiError> {
    match value {
        Value::Array(blocks) if !settings.keep_billing => {
            let kept = |b: &&Value| !b.get("text").and_then(Value::as_str).is_some_and(|t| t.starts_with(BILLING));
            let all: Vec<Value> = blocks.iter().filter(kept).cloned().collect();
            if all.len() < blocks.len() && settings.log != Log::Off {
                let why = "it differs from request to request, and nothing after it could be reused";
                crate::log::once(&format!("system blocks that begin with {BILLING} are left out: {why}"));
            }
            text_of(&Value::Array(all), "system")
        }
        other => text_of(other, "system"),
    }
}

/// One message as OpenAI's clients would send it: perhaps several, as results of tools are messages of their own there.
fn message(
    message: &Value,
    at: usize,
    last: bool,
    out: &mut Vec<Value>,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    let here = format!("messages[{at}]");
    let role = message.get("role").and_then(Value::as_str).ok_or_else(|| wrong(&here, "has no role"))?;
    if !matches!(role, "user" | "assistant" | "system") {
        return Err(wrong(&here, format_args!("has the role {role:?}; user and assistant are taken")));
    }
    let blocks = match message.get("content") {
        Some(Value::String(text)) => vec![json!({"type": "text", "text": text})],
        Some(Value::Array(blocks)) => blocks.clone(),
        _ => return Err(wrong(&format!("{here}.content"), "must be a text or a list of blocks")),
    };
    let (mut texts, mut calls, mut thoughts) = (Vec::new(), Vec::new(), String::new());
    // What is new must be read, or the answer misses it; what is old was answered once.
    let new = last && role == "user";
    for block in &blocks {
        let text = |name: &str| block.get(name).and_then(Value::as_str);
        let kind = text("type").unwrap_or("");
        match kind {
            "text" => texts.push(text("text").ok_or_else(|| wrong(&here, "has a text block without text"))?.to_string()),
            "thinking" => thoughts.push_str(text("thinking").unwrap_or("")),
            "redacted_thinking" => {}
            "document" | "search_result" => match block_text(block) {
                Some(text) => texts.push(text),
                None if new => {
                    return Err(wrong(&here, format_args!("holds a {kind} without text; this model reads text only")));
                }
                None => warnings.push(format!("a {kind} without text was left out")),
            },
            "tool_use" => calls.push(json!({
                "id": text("id").unwrap_or(""), "type": "function",
                "function": {"name": text("name").unwrap_or(""), "arguments": block.get("input").cloned().unwrap_or(json!({}))},
            })),
            "tool_result" => {
                let mut content = block.get("content").cloned().unwrap_or_default();
                if let Some(parts) = content.as_array_mut().filter(|_| !new) {
                    let read = |part: &Value| block_text(part).is_some() || part["type"] == "image";
                    for part in parts.iter().filter(|part| !read(part)) {
                        let kind = part["type"].as_str().unwrap_or("").escape_default();
                        warnings.push(format!("a block of type {kind} was left out"));
                    }
                    parts.retain(read);
                }
                let said = text_of(&content, &format!("{here}.content"))?;
                let failed = block.get("is_error") == Some(&json!(true));
                let said = if failed { format!("Error: {said}") } else { said };
                out.push(json!({"role": "tool", "tool_call_id": text("tool_use_id"), "content": said}));
            }
            "image" => return Err(wrong(&here, "holds an image; this model reads text only")),
            other if new => {
                return Err(wrong(&here, format_args!("holds a block of type {other:?}, which is not known")));
            }
            other => warnings.push(format!("a block of type {} was left out", other.escape_default())),
        }
    }
    let empty = texts.is_empty() && calls.is_empty() && thoughts.is_empty();
    if empty && blocks.iter().any(|b| b.get("type") == Some(&json!("tool_result"))) {
        return Ok(());
    }
    let content = texts.join("\n");
    // Messages of one role in a row are one.
    if let Some(before) = out.last_mut().filter(|b| b["role"] == role) {
        for (key, more) in [("content", &content), ("reasoning_content", &thoughts)] {
            let joined = match before[key].as_str().unwrap_or("") {
                "" => more.clone(),
                first if more.is_empty() => first.to_string(),
                first => format!("{first}\n\n{more}"),
            };
            if key == "content" || !joined.is_empty() {
                before[key] = json!(joined);
            }
        }
        match before.get_mut("tool_calls").and_then(Value::as_array_mut) {
            Some(all) => all.extend(calls),
            None if calls.is_empty() => {}
            None => before["tool_calls"] = json!(calls),
        }
        return Ok(());
    }
    let mut made = json!({"role": role, "content": content});
    if !calls.is_empty() {
        made["tool_calls"] = json!(calls);
    }
    if !thoughts.is_empty() {
        made["reasoning_content"] = json!(thoughts);
    }
    out.push(made);
    Ok(())
}

fn offered(body: &Body, warnings: &mut Vec<String>) -> Result<Vec<Value>, ApiError> {
    let mut all = Vec::new();
    for (i, tool) in body.get("tools").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let kind = tool.get("type").and_then(Value::as_str).unwrap_or("custom");
        if kind != "custom" {
            warnings.push(format!("the tool {} was left out", kind.escape_default()));
            continue;
        }
        let name = tool.get("name").and_then(Value::as_str).filter(|n| !n.is_empty() && n.len() <= 256);
        let name = name.ok_or_else(|| wrong("tools", format_args!("[{i}] has no name")))?;
        let schema = tool.get("input_schema").cloned().unwrap_or(json!({"type": "object"}));
        if !schema.is_object() {
            return Err(wrong("tools", format_args!("[{i}].input_schema must be a JSON schema")));
        }
        let about = tool.get("description").and_then(Value::as_str).unwrap_or("");
        let mut function = json!({"name": name, "description": about, "parameters": schema});
        if tool.get("strict") == Some(&json!(true)) {
            function["strict"] = json!(true);
        }
        all.push(json!({"type": "function", "function": function}));
    }
    Ok(all)
}

fn choice(body: &Body, ask: &mut Ask) -> Result<(), ApiError> {
    let Some(choice) = body.get("tool_choice") else { return Ok(()) };
    ask.single_call = choice.get("disable_parallel_tool_use") == Some(&json!(true));
    let name = choice.get("name").and_then(Value::as_str);
    ask.tool_choice = match (choice.get("type").and_then(Value::as_str), name) {
        (Some("auto"), _) => ToolChoice::Auto,
        (Some("none"), _) => ToolChoice::None,
        (Some("any"), _) => ToolChoice::Required,
        (Some("tool"), Some(name)) => ToolChoice::Named(name.into()),
        _ => return Err(wrong("tool_choice", "must have the type auto, any, none, or tool with a name")),
    };
    tools::possible(ask, "tool_choice")
}

fn ask(body: &mut Body, settings: &Settings) -> Result<Ask, ApiError> {
    let mut warnings = std::mem::take(&mut body.warnings);
    let list = body.take("messages").unwrap_or_default();
    let list = list.as_array().filter(|l| !l.is_empty()).ok_or_else(|| wrong("messages", "is empty"))?;
    let mut messages = Vec::new();
    let told = system(body.get("system").unwrap_or(&Value::Null), settings)?;
    if !told.is_empty() {
        messages.push(json!({"role": "system", "content": told}));
    }
    for (i, one) in list.iter().enumerate() {
        message(one, i, i + 1 == list.len(), &mut messages, &mut warnings)?;
    }
    let continued = messages.last().is_some_and(|m| m["role"] == "assistant" && m.get("tool_calls").is_none());
    let (mut keywords, mut budget) = (Map::new(), None);
    if let Some(thinking) = body.get("thinking") {
        let on = match thinking.get("type").and_then(Value::as_str) {
            Some("disabled") => false,
            Some("enabled" | "adaptive") => true,
            _ => return Err(wrong("thinking", "must have the type disabled, enabled or adaptive")),
        };
        keywords.insert("enable_thinking".into(), json!(on));
        budget = match thinking.get("budget_tokens") {
            None | Some(Value::Null) => None,
            Some(n) => {
                let n = n.as_u64().ok_or_else(|| wrong("thinking", "has budget_tokens that is no whole number"))?;
                Some(usize::try_from(n).unwrap_or(usize::MAX))
            }
        };
    }
    let config = |key: &str| body.get("output_config").and_then(|o| o.get(key)).filter(|v| !v.is_null());
    let effort =
        config("effort").map(|e| e.as_str().ok_or_else(|| wrong("output_config", "has an effort that is no text")));
    chat::effort(&mut keywords, effort.transpose()?);
    let (at, format) = match config("format") {
        Some(format) => ("output_config", Some(format)),
        None => ("output_format", body.get("output_format")),
    };
    let schema = match format.map(|f| (f.get("type").and_then(Value::as_str), f.get("schema"))) {
        None => None,
        Some((Some("json_schema"), Some(schema))) => Some(schema.clone()),
        Some(_) => return Err(wrong(at, "needs a format of type json_schema with a schema")),
    };
    let mut ask = Ask {
        model: body.text("model").unwrap_or("").to_string(),
        prompt: Some(Prompt::Chat { messages: messages.into(), keywords, template: None, continued }),
        max_tokens: body.count("max_tokens"),
        wishes: Wishes {
            temperature: body.number("temperature"),
            top_p: body.number("top_p"),
            top_k: body.count("top_k"),
            ..Wishes::default()
        },
        stop: body.texts("stop_sequences", 16, 256)?,
        n: 1,
        thinking: budget,
        // This interface promises answers that are valid.
        format: schema.map(
            |schema| json!({"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": true}}),
        ),
        tools: offered(body, &mut warnings)?,
        ..Ask::default()
    };
    choice(body, &mut ask)?;
    body.warnings = warnings;
    Ok(ask)
}

/// `stop_reason` and `stop_sequence`.
fn stop(spoken: &Spoken, asked: Option<usize>, ticket: &Ticket) -> (&'static str, Value) {
    // The operator may allow less than the context holds.
    let full = ticket.prompt.len() + ticket.max_tokens >= ticket.model.context;
    match &spoken.ending {
        Some(Ending::Text(text)) => ("stop_sequence", json!(text)),
        Some(Ending::Length) if full && asked.is_none_or(|n| n > ticket.max_tokens) => {
            ("model_context_window_exceeded", Value::Null)
        }
        Some(Ending::Length) => ("max_tokens", Value::Null),
        _ if !spoken.calls.is_empty() => ("tool_use", Value::Null),
        _ => ("end_turn", Value::Null),
    }
}

/// A name of a call as Anthropic's clients know them.
fn call_id(id: &str) -> String {
    id.strip_prefix("call_").map_or_else(|| id.to_string(), |rest| format!("toolu_{rest}"))
}

fn usage(replies: &Replies, prompt: usize) -> Value {
    json!({
        "input_tokens": prompt - replies.cached.min(prompt), "output_tokens": replies.tokens,
        "cache_read_input_tokens": replies.cached, "cache_creation_input_tokens": 0,
    })
}

/// Answers.
///
/// # Errors
/// What is wrong with the request.
pub(crate) async fn messages(service: Arc<Service>, call: Call) -> Outcome {
    let mut body = Body::read(&call.body, &[MESSAGE])?;
    let ask = ask(&mut body, &service.settings)?;
    let (asked, name) = (ask.max_tokens, ask.model.clone());
    let mut ticket = service.submit(ask, &call).await?;
    body.warnings.append(&mut ticket.warnings);
    let name = if name.is_empty() { ticket.model.id.clone() } else { name };
    let head = json!({
        "id": unique("msg_"), "type": "message", "role": "assistant",
        "model": name, "content": [], "stop_reason": null, "stop_sequence": null,
    });
    let mut replies = Replies::new(1, false);
    let mut answer = if body.flag("stream") == Some(true) {
        let id = call.id;
        answer::stream(move |events| Writer { head, replies, asked, id, block: None, index: 0 }.write(ticket, events))
    } else {
        replies.collect(&mut ticket).await?;
        body.warnings.extend(replies.warnings());
        let spoken = &replies.all[0];
        let mut content = Vec::new();
        if !spoken.reasoning.is_empty() {
            content.push(json!({"type": "thinking", "thinking": spoken.reasoning, "signature": SIGNATURE}));
        }
        if !spoken.text.is_empty() || spoken.calls.is_empty() {
            content.push(json!({"type": "text", "text": spoken.text}));
        }
        for c in &spoken.calls {
            let input: Value = serde_json::from_str(&c.arguments).unwrap_or(json!({}));
            content.push(json!({"type": "tool_use", "id": call_id(&c.id), "name": c.name, "input": input}));
        }
        let (reason, sequence) = stop(spoken, asked, &ticket);
        let mut value = head;
        (value["content"], value["stop_reason"], value["stop_sequence"]) = (content.into(), json!(reason), sequence);
        value["usage"] = usage(&replies, ticket.prompt.len());
        answer::json(200, &value)
    };
    warn(&mut answer, &body.warnings);
    Ok(answer)
}

/// Says how many tokens a message has.
///
/// # Errors
/// What is wrong with the request.
pub(crate) async fn count(service: Arc<Service>, call: Call) -> Outcome {
    let mut body = Body::read(&call.body, &[MESSAGE])?;
    let ask = ask(&mut body, &service.settings)?;
    let loaded = service.loaded(&ask).await?;
    let tokens = blocking(move || service.prompt(&loaded, &ask)).await?;
    let mut answer = answer::json(200, &json!({"input_tokens": tokens.len()}));
    warn(&mut answer, &body.warnings);
    Ok(answer)
}

/// Kinds of blocks of a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
    Call,
}

/// Writes a stream: blocks one after the other, each begun and ended.
struct Writer {
    head: Value,
    replies: Replies,
    asked: Option<usize>,
    id: String,
    block: Option<Block>,
    index: usize,
}

impl Writer {
    /// Ends the block that is open, if any.
    fn close(&mut self, out: &mut Vec<Value>) {
        let Some(block) = self.block.take() else { return };
        let index = self.index;
        if block == Block::Thinking {
            let delta = json!({"type": "signature_delta", "signature": SIGNATURE});
            out.push(json!({"type": "content_block_delta", "index": index, "delta": delta}));
        }
        out.push(json!({"type": "content_block_stop", "index": index}));
        self.index += 1;
    }

    /// Has a block of some kind open.
    fn open(&mut self, block: Block, content: Value, out: &mut Vec<Value>) {
        if self.block == Some(block) && block != Block::Call {
            return;
        }
        self.close(out);
        out.push(json!({"type": "content_block_start", "index": self.index, "content_block": content}));
        self.block = Some(block);
    }

    fn part(&mut self, part: &Part, out: &mut Vec<Value>) {
        let delta = match part {
            Part::Text(text) => {
                self.open(Block::Text, json!({"type": "text", "text": ""}), out);
                json!({"type": "text_delta", "text": text})
            }
            Part::Reasoning(text) => {
                self.open(Block::Thinking, json!({"type": "thinking", "thinking": "", "signature": ""}), out);
                json!({"type": "thinking_delta", "thinking": text})
            }
            Part::Call { index, .. } => {
                let Some(call) = self.replies.all[0].calls.get(*index) else { return };
                let begun = json!({"type": "tool_use", "id": call_id(&call.id), "name": call.name, "input": {}});
                return self.open(Block::Call, begun, out);
            }
            Part::Arguments { json, .. } => json!({"type": "input_json_delta", "partial_json": json}),
        };
        out.push(json!({"type": "content_block_delta", "index": self.index, "delta": delta}));
    }

    async fn write(mut self, mut ticket: Ticket, events: Events) -> Result<(), Gone> {
        let send = async |value: Value| {
            let name = value["type"].as_str().unwrap_or("error").to_string();
            events.send(answer::event(Some(&name), &value.to_string())).await
        };
        let prompt = ticket.prompt.len();
        // At once: what is known of the prompt already is told at the end.
        let mut message = self.head.clone();
        message["usage"] = usage(&self.replies, prompt);
        send(json!({"type": "message_start", "message": message})).await?;
        while !self.replies.are_over() {
            let beat = || answer::event(Some("ping"), "{\"type\": \"ping\"}");
            let update = match events.during(ticket.next(), beat).await? {
                Ok(update) => update,
                Err(error) => return send(error.body(Dialect::Anthropic, &self.id)).await,
            };
            self.replies.hear(&update);
            if let Update::Said { parts, .. } = &update {
                let mut out = Vec::new();
                for part in parts {
                    self.part(part, &mut out);
                }
                for event in out {
                    send(event).await?;
                }
            }
        }
        let mut out = Vec::new();
        if self.index == 0 && self.block.is_none() {
            self.open(Block::Text, json!({"type": "text", "text": ""}), &mut out);
        }
        self.close(&mut out);
        let (reason, sequence) = stop(&self.replies.all[0], self.asked, &ticket);
        out.push(json!({
            "type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": usage(&self.replies, prompt),
        }));
        out.push(json!({"type": "message_stop"}));
        for event in out {
            send(event).await?;
        }
        ticket.finished();
        Ok(())
    }
}
