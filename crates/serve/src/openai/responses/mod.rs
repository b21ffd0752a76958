//! `/v1/responses`, stateless: every request brings its whole conversation, unless the operator lets some be remembered.
//!
//! `items` and `offered` read what comes in, `output` makes the items that go out and the events that tell of them,
//! `stream` sends those events. What all of them are about is the same job that a chat is.

mod items;
mod memory;
mod offered;
mod output;
mod shape;
mod stream;
mod turns;

use super::{chat, tools};
use crate::error::ApiError;
use crate::fields::{Body, Field, Kind, field, nothing};
use crate::http::answer::{self, Outcome};
use crate::http::request::{Call, warn};
use crate::job::Update;
use crate::reply::Replies;
use crate::sampling::{SAMPLING, wishes};
use crate::service::{Ask, Prompt, Service};
pub(crate) use memory::Memory;
use offered::Offered;
use output::Output;
use serde_json::{Map, Value, json};
use shape::Shape;
use std::sync::Arc;

/// Fields of a response beside those of sampling.
pub(crate) const RESPONSE: &[Field] = &[
    field("model", Kind::Text, "A name of a model; absent, the start-up model."),
    field("input", Kind::Any, "A text, or items: messages, calls of tools and what they gave, reasoning.").needed(),
    field("instructions", Kind::Text, "What the model is told first."),
    field(
        "max_output_tokens",
        Kind::Integer(1, i64::MAX as i128),
        "Tokens of the reply at most; absent, what the context holds.",
    ),
    field("stream", Kind::Flag, "Send events as they come."),
    field("tools", Kind::List(tools::TOOLS), "Functions, custom tools and namespaces of them; others are left out."),
    field("tool_choice", Kind::Any, "auto, none, required, a function, or allowed_tools."),
    field("parallel_tool_calls", Kind::Flag, "Several calls in one reply."),
    field("reasoning", Kind::Object, "effort: how much to think; summary: tell of it as a summary too."),
    field("text", Kind::Object, "format: text, json_object, or json_schema."),
    field("include", Kind::List(64), "message.output_text.logprobs: tell log-probabilities of tokens."),
    field("top_logprobs", Kind::Integer(0, 20), "Likely others at each place, with their log-probabilities."),
    field("truncation", Kind::Text, "auto: leave the oldest turns out of what is too long; disabled: refuse it."),
    field("prompt_cache_key", Kind::Text, "Beginnings of prompts are shared among requests with the same."),
    field(
        "previous_response_id",
        Kind::Text,
        "A response to go on with; known only where the server was started with --response-memory.",
    ),
    field("background", Kind::Flag, "Nothing is stored: true is refused."),
    field(
        "store",
        Kind::Flag,
        "false: the response is not remembered where --response-memory is on; true stores nothing else.",
    ),
    field("conversation", Kind::Any, "nothing is stored; send the conversation as input").refused(),
    field("prompt", Kind::Any, "nothing is stored; send instructions and input").refused(),
    nothing("metadata"),
    nothing("user"),
    nothing("safety_identifier"),
    nothing("service_tier"),
    nothing("max_tool_calls"),
    nothing("context_management"),
    nothing("stream_options"),
    nothing("prompt_cache_retention"),
    nothing("prompt_cache_options"),
    nothing("moderation"),
];

/// `text.format` in the words of a chat.
fn format(text: Option<&Value>) -> Result<Option<Value>, ApiError> {
    let Some(format) = text.and_then(|t| t.get("format")).filter(|f| !f.is_null()) else { return Ok(None) };
    let wrong = |what: &str| ApiError::field("text.format", format!("text.format {what}"));
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_schema") => {
            let schema = format.get("schema").ok_or_else(|| wrong("has no schema"))?;
            let mut inner = json!({"name": format.get("name").cloned().unwrap_or(json!("reply")), "schema": schema});
            if let Some(strict) = format.get("strict") {
                inner["strict"] = strict.clone();
            }
            Ok(Some(json!({"type": "json_schema", "json_schema": inner})))
        }
        Some(_) => Ok(Some(format.clone())),
        None => Err(wrong("has no type: text, json_object and json_schema are taken")),
    }
}

/// What is asked for, and the tools behind it.
fn ask(body: &mut Body, input: &Value, keeps: bool) -> Result<(Ask, Offered), ApiError> {
    if body.flag("background") == Some(true) {
        return Err(ApiError::field("background", "background: true is not taken, as nothing is stored"));
    }
    let mut warnings = std::mem::take(&mut body.warnings);
    if body.flag("store") == Some(true) && !keeps {
        warnings.push("store: nothing is stored".into());
    }
    let text = body.get("text");
    if text.and_then(|t| t.get("verbosity")).is_some_and(|v| !v.is_null()) {
        warnings.push("text.verbosity: no effect".into());
    }
    let included = body.texts("include", 64, 256)?;
    for other in included.iter().filter(|i| *i != LOGPROBS) {
        warnings.push(format!("include {}: no effect", other.escape_default()));
    }
    if !matches!(body.text("truncation"), None | Some("auto" | "disabled")) {
        return Err(ApiError::field("truncation", "truncation must be auto or disabled"));
    }
    let tools = body.get("tools").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let offered = Offered::read(tools, &mut warnings)?;
    let messages = items::messages(input, body.text("instructions"), &offered, &mut warnings)?;
    let mut keywords = Map::new();
    let effort = body.get("reasoning").and_then(|r| r.get("effort")).filter(|e| !e.is_null());
    let no_text = || ApiError::field("reasoning", "reasoning.effort must be a text");
    chat::effort(&mut keywords, effort.map(|e| e.as_str().ok_or_else(no_text)).transpose()?);
    let top = body.count("top_logprobs");
    let mut ask = Ask {
        model: body.text("model").unwrap_or("").to_string(),
        prompt: Some(Prompt::Chat { messages: messages.into(), keywords, template: None, continued: false }),
        max_tokens: body.count("max_output_tokens"),
        wishes: wishes(body)?,
        n: 1,
        top: if included.iter().any(|i| i == LOGPROBS) { Some(top.unwrap_or(0)) } else { top.filter(|&n| n > 0) },
        format: format(text)?,
        tools: offered.tools.clone(),
        grammars: offered.grammars.clone(),
        single_call: body.flag("parallel_tool_calls") == Some(false),
        salt: body.text("prompt_cache_key").unwrap_or("").to_string(),
        ..Ask::default()
    };
    if let Some(choice) = body.get("tool_choice") {
        tools::choose(&mut ask, "tool_choice", &offered.choice(choice))?;
    }
    body.warnings = warnings;
    Ok((ask, offered))
}

/// What the model reads: the input, after what led to the response that the request goes on with.
fn input(body: &Body, memory: &Memory, owner: u64) -> Result<Value, ApiError> {
    let own = body.get("input").cloned().unwrap_or_default();
    let Some(id) = body.text("previous_response_id") else { return Ok(own) };
    let Some(mut items) = memory.find(id, owner) else {
        let why = if memory.keeps() {
            "there is no such response any more: send the whole conversation as input"
        } else {
            "nothing is stored, so there is no previous response: send the whole conversation as input"
        };
        return Err(ApiError::field("previous_response_id", why).code("previous_response_not_found"));
    };
    items.extend(listed(own));
    Ok(items.into())
}

/// An input as a list of items.
fn listed(input: Value) -> Vec<Value> {
    match input {
        Value::Array(items) => items,
        Value::String(text) if text.is_empty() => Vec::new(),
        text => vec![json!({"type": "message", "role": "user", "content": text})],
    }
}

/// What `include` names log-probabilities.
const LOGPROBS: &str = "message.output_text.logprobs";

/// An error in the words of this interface.
fn own(mut error: ApiError) -> ApiError {
    let word = match error.param.as_deref() {
        Some("messages" | "prompt") => Some("input"),
        Some("response_format") => Some("text.format"),
        _ => None,
    };
    if let Some(word) = word {
        error.param = Some(word.into());
    }
    error
}

/// Answers.
///
/// # Errors
/// What is wrong with the request.
pub(crate) async fn run(service: Arc<Service>, call: Call) -> Outcome {
    let mut body = Body::read(&call.body, &[RESPONSE, SAMPLING])?;
    let memory = Arc::clone(&service.responses);
    let input = input(&body, &memory, call.owner.number)?;
    let (mut ask, offered) = ask(&mut body, &input, memory.keeps())?;
    if body.text("truncation") == Some("auto") {
        let dropped;
        (ask, dropped) = turns::fit(&service, ask).await.map_err(own)?;
        if dropped > 0 {
            body.warnings.push(format!("truncation: {dropped} of the oldest messages were left out"));
        }
    }
    let (name, top) = (ask.model.clone(), ask.top);
    let mut ticket = service.submit(ask, &call).await.map_err(own)?;
    body.warnings.append(&mut ticket.warnings);
    let mut shape = Shape::new(&body, if name.is_empty() { &ticket.model.id } else { &name });
    if memory.keeps() && body.flag("store") != Some(false) {
        shape.keep(memory, call.owner.number, listed(input));
    }
    let summary =
        body.get("reasoning").is_some_and(|r| ["summary", "generate_summary"].iter().any(|k| !r[*k].is_null()));
    let mut output = Output::new(offered, summary, top.is_some());
    let mut replies = Replies::new(1, false);
    let mut answer = if body.flag("stream") == Some(true) {
        answer::stream(move |events| stream::Writer::new(shape, output, replies, call.id).write(ticket, events))
    } else {
        while !replies.are_over() {
            let update = ticket.next().await.map_err(own)?;
            replies.hear(&update);
            if let Update::Said { parts, scored, .. } = &update {
                output.hear(parts, &replies.all[0], scored, &ticket);
            }
        }
        ticket.finished();
        body.warnings.extend(replies.warnings());
        output.end(&replies.all[0]);
        answer::json(200, &shape.over(&output, &replies, &ticket))
    };
    warn(&mut answer, &body.warnings);
    Ok(answer)
}
