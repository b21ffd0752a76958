//! `/v1/chat/completions`.

use super::calls::{self, Calls};
use super::{scores, tools};
use crate::error::{ApiError, Dialect};
use crate::fields::{Body, Effect, Field, Kind, field, nothing};
use crate::http::answer::{self, Answer, Events, Gone, Outcome};
use crate::http::request::{Call, warn};
use crate::job::{Ending, Scored, Update};
use crate::models::{Loaded, seconds};
use crate::reply::{Replies, Spoken};
use crate::sampling::wishes;
use crate::service::{Ask, Prompt, Service, Ticket, unique};
use crate::settings::ReasoningField;
use lapis_lm::reply::Part;
use lapis_lm::template::RESERVED;
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Fields of all interfaces of OpenAI that write.
pub(crate) const COMMON: &[Field] = &[
    field("model", Kind::Text, "A name of a model; absent, the start-up model."),
    field(
        "max_tokens",
        Kind::Integer(1, i64::MAX as i128),
        "Tokens of a reply at most; absent, what the context holds.",
    ),
    field("n", Kind::Integer(1, 16), "Replies."),
    field("stop", Kind::Any, "A text, or up to 16, that end a reply and are not part of it."),
    field("stream", Kind::Flag, "Send pieces as they come."),
    field("stream_options", Kind::Object, "include_usage: counts at the end of a stream."),
    field("response_format", Kind::Object, "text, json_object, json_schema; also regex and grammar (Lark)."),
    field("prompt_cache_key", Kind::Text, "Beginnings of prompts are shared among requests with the same."),
    field("cache_salt", Kind::Text, "As prompt_cache_key."),
    nothing("store"),
    nothing("metadata"),
    nothing("user"),
    nothing("safety_identifier"),
    nothing("service_tier"),
    nothing("prediction"),
    nothing("verbosity"),
    nothing("prompt_cache_retention"),
    nothing("web_search_options"),
    nothing("moderation"),
    field("ttl", Kind::Integer(-1, i64::MAX as i128), "Seconds that the model stays loaded without work; -1 for ever."),
    field("keep_alive", Kind::Any, "As ttl: seconds, or a text such as 5m."),
    nothing("draft_model"),
    nothing("num_draft_tokens"),
    field("adapters", Kind::Text, "An adapter on the model: its name, or its path below --adapters-dir."),
];

/// Fields of a chat.
pub(crate) const CHAT: &[Field] = &[
    field("messages", Kind::List(10_000), "The conversation: objects with role and content.").needed(),
    field("max_completion_tokens", Kind::Integer(1, i64::MAX as i128), "As max_tokens, and counts first."),
    field("logprobs", Kind::Flag, "Tell log-probabilities of tokens."),
    field("top_logprobs", Kind::Integer(0, 20), "And of so many likely others at each place."),
    field("tools", Kind::List(512), "Functions and custom tools that the model may call."),
    field("tool_choice", Kind::Any, "auto, none, required, a tool, or allowed_tools."),
    field("parallel_tool_calls", Kind::Flag, "Several calls in one reply."),
    field("functions", Kind::List(512), "The older form of tools."),
    field("function_call", Kind::Any, "The older form of tool_choice."),
    field("reasoning_effort", Kind::Text, "How much to think, as the model's template has it; none switches it off."),
    field("thinking_budget", Kind::Integer(0, i64::MAX as i128), "Tokens of thinking at most; the model answers then."),
    field("enable_thinking", Kind::Flag, "Whether the model thinks before it answers."),
    field("chat_template_kwargs", Kind::Object, "Variables of the chat template."),
    field("chat_template", Kind::Text, "A template in place of the model's."),
    field(
        "role_mapping",
        Kind::Object,
        "What stands before each role's words, and after (stop): where the model has no template.",
    ),
    field("add_generation_prompt", Kind::Flag, "Whether a reply is begun; true by default."),
    field("continue_final_message", Kind::Flag, "Go on with the last message."),
    Field { effect: Effect::Refused, ..field("audio", Kind::Any, "no model here speaks") },
    field("modalities", Kind::List(8), "Text."),
];

/// Who says something in a conversation.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// What is asked for in a chat, and the names of its custom tools.
///
/// # Errors
/// Fields that contradict each other, or hold what they may not.
pub(crate) fn ask(body: &mut Body, service: &Service) -> Result<(Ask, HashSet<String>), ApiError> {
    let mut ask = common(body)?;
    if let Some(modes) = body.get("modalities").and_then(Value::as_array)
        && let Some(other) = modes.iter().find(|m| m.as_str() != Some("text"))
    {
        return Err(ApiError::field("modalities", format!("modalities holds {other}; models here write text")));
    }
    ask.max_tokens = body.count("max_completion_tokens").or(ask.max_tokens);
    ask.top = match (body.flag("logprobs"), body.count("top_logprobs")) {
        (Some(true), top) => Some(top.unwrap_or(0)),
        (_, Some(1..)) => return Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs: true")),
        _ => None,
    };
    ask.thinking = body.count("thinking_budget");
    let customs = tools::read(body, &mut ask)?;
    ask.prompt = Some(conversation(body, service)?);
    Ok((ask, customs))
}

/// The conversation of a body.
///
/// # Errors
/// No messages.
pub(crate) fn conversation(body: &mut Body, _service: &Service) -> Result<Prompt, ApiError> {
    let mut keywords = match body.take("chat_template_kwargs") {
        Some(Value::Object(keywords)) => keywords,
        _ => Map::new(),
    };
    if let Some(name) = RESERVED.iter().find(|name| keywords.contains_key(**name)) {
        let why = format!("chat_template_kwargs.{name} is reserved: use another name");
        return Err(ApiError::field("chat_template_kwargs", why));
    }
    if let Some(thinks) = body.flag("enable_thinking") {
        keywords.insert("enable_thinking".into(), json!(thinks));
    }
    effort(&mut keywords, body.text("reasoning_effort"));
    let mut messages = body.take("messages").unwrap_or_default();
    calls::history(&mut messages)?;
    let list = messages.as_array().map_or(&[][..], Vec::as_slice);
    if list.is_empty() {
        return Err(ApiError::field("messages", "messages is empty: give one at least"));
    }
    for (i, role) in list.iter().enumerate().filter_map(|(i, m)| Some((i, m.get("role")?))) {
        if !role.as_str().is_some_and(|role| ROLES.contains(&role)) {
            let shown: String = role.to_string().chars().take(60).collect();
            let why = format!("messages[{i}].role is {shown}; it must be one of {}", ROLES.join(", "));
            return Err(ApiError::field("messages", why));
        }
    }
    let continued = body.flag("continue_final_message").unwrap_or(false);
    let template = body.text("chat_template").map(str::to_string);
    if let Some(roles) = body.take("role_mapping") {
        keywords.insert("role_mapping".into(), roles);
    }
    Ok(Prompt::Chat { messages, keywords, template, continued })
}

/// How much to think, in the words that templates know.
pub(crate) fn effort(keywords: &mut Map<String, Value>, effort: Option<&str>) {
    match effort {
        None => {}
        Some("none") => {
            keywords.insert("enable_thinking".into(), json!(false));
        }
        Some(effort) => {
            keywords.entry("enable_thinking").or_insert(json!(true));
            // Templates know three.
            let known = match effort {
                "minimal" => "low",
                "xhigh" | "max" => "high",
                other => other,
            };
            keywords.insert("reasoning_effort".into(), json!(known));
        }
    }
}

/// What all interfaces of OpenAI that write have in common.
///
/// # Errors
/// As [`ask`].
pub(crate) fn common(body: &Body) -> Result<Ask, ApiError> {
    let format = body.get("response_format").filter(|f| f.get("type") != Some(&json!("text"))).cloned();
    let salt = ["prompt_cache_key", "cache_salt"].map(|name| body.text(name).unwrap_or(""));
    Ok(Ask {
        model: body.text("model").unwrap_or("").to_string(),
        adapter: body.text("adapters").map(str::to_string),
        max_tokens: body.count("max_tokens"),
        wishes: wishes(body)?,
        stop: body.texts("stop", 16, 256)?,
        n: body.count("n").unwrap_or(1),
        format,
        ttl: ttl(body)?,
        salt: if salt == ["", ""] { String::new() } else { salt.join("\n") },
        ..Ask::default()
    })
}

/// How long the model is to stay loaded without work; any time that is beyond counting is for ever.
fn ttl(body: &Body) -> Result<Option<Duration>, ApiError> {
    let seconds = |n: f64| if n < 0.0 { Some(Duration::MAX) } else { Duration::try_from_secs_f64(n).ok() };
    if let Some(n) = body.integer("ttl") {
        return Ok(seconds(n as f64).or(Some(Duration::MAX)));
    }
    let Some(given) = body.get("keep_alive") else { return Ok(None) };
    let unit = |text: &str| {
        let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let times = match &text[at..] {
            "" | "s" => 1.0,
            "ms" => 1e-3,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        Some(text[..at].parse::<f64>().ok().filter(|n| n.is_finite())? * times)
    };
    let n = given.as_f64().or_else(|| unit(given.as_str()?));
    match n {
        Some(n) => Ok(seconds(n).or(Some(Duration::MAX))),
        None => Err(ApiError::field("keep_alive", "keep_alive must be a number of seconds or a text such as 5m")),
    }
}

/// What every answer about one request begins with.
pub(crate) struct Head {
    /// Its number.
    pub id: String,
    /// `chat.completion` and the like.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model, as it was asked for.
    pub model: String,
    /// Version and weights.
    pub fingerprint: String,
}

impl Head {
    /// Of a new answer.
    pub(crate) fn new(prefix: &str, object: &'static str, asked: &str, loaded: &Loaded) -> Head {
        Head {
            id: unique(prefix),
            object,
            created: seconds(SystemTime::now()),
            model: if asked.is_empty() { loaded.id.clone() } else { asked.to_string() },
            fingerprint: loaded.fingerprint.clone(),
        }
    }

    /// The answer, or a part of it.
    pub(crate) fn with(&self, choices: Value) -> Value {
        json!({
            "id": self.id, "object": self.object, "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint, "choices": choices,
        })
    }
}

/// `finish_reason`.
pub(crate) fn finish(ending: &Ending, calls: usize) -> &'static str {
    match ending {
        Ending::Length => "length",
        _ if calls > 0 => "tool_calls",
        _ => "stop",
    }
}

fn reasoning(fields: ReasoningField, message: &mut Value, text: &str) {
    if text.is_empty() {
        return;
    }
    if fields != ReasoningField::Plain {
        message["reasoning_content"] = json!(text);
    }
    if fields != ReasoningField::Content {
        message["reasoning"] = json!(text);
    }
}

fn message(spoken: &Spoken, calls: &Calls, fields: ReasoningField) -> Value {
    let empty = spoken.text.is_empty() && !spoken.calls.is_empty();
    let mut message = json!({"role": "assistant", "content": if empty { Value::Null } else { json!(spoken.text) }});
    reasoning(fields, &mut message, &spoken.reasoning);
    if !spoken.calls.is_empty() {
        message["tool_calls"] = spoken.calls.iter().map(|c| calls.whole(c)).collect();
    }
    message
}

/// Answers.
///
/// # Errors
/// What is wrong with the request.
pub(crate) async fn run(service: Arc<Service>, call: Call) -> Outcome {
    let mut body = Body::read(&call.body, &[COMMON, crate::sampling::SAMPLING, CHAT])?;
    let (ask, customs) = ask(&mut body, &service)?;
    let streams = body.flag("stream") == Some(true);
    let counts = body.get("stream_options").and_then(|o| o.get("include_usage")) == Some(&json!(true));
    let (name, n, top) = (ask.model.clone(), ask.n, ask.top);
    let mut ticket = service.submit(ask, &call).await?;
    body.warnings.append(&mut ticket.warnings);
    let (fields, calls) = (service.settings.reasoning_field, Calls::new(customs, n));
    let mut answer = if streams {
        let head = Head::new("chatcmpl-", "chat.completion.chunk", &name, &ticket.model);
        let writer = Writer {
            head,
            fields,
            counts,
            top,
            pending: vec![Vec::new(); n],
            replies: Replies::new(n, false),
            calls,
            id: call.id,
        };
        answer::stream(move |events| writer.write(ticket, events))
    } else {
        let head = Head::new("chatcmpl-", "chat.completion", &name, &ticket.model);
        let mut replies = Replies::new(n, top.is_some());
        replies.collect(&mut ticket).await?;
        body.warnings.extend(replies.warnings());
        whole(&head, &replies, &calls, &ticket, fields, top.is_some())
    };
    warn(&mut answer, &body.warnings);
    Ok(answer)
}

fn whole(
    head: &Head,
    replies: &Replies,
    calls: &Calls,
    ticket: &Ticket,
    fields: ReasoningField,
    scores: bool,
) -> Answer {
    let choice = |(index, spoken): (usize, &Spoken)| {
        let ending = spoken.ending.as_ref().unwrap_or(&Ending::Stop);
        let mut choice = json!({
            "index": index, "message": message(spoken, calls, fields), "finish_reason": finish(ending, spoken.calls.len()),
        });
        if scores {
            choice["logprobs"] = scores::chat(&ticket.model.model.tokenizer, &spoken.scored);
        }
        choice
    };
    let mut value = head.with(replies.all.iter().enumerate().map(choice).collect());
    value["usage"] = replies.usage(ticket.prompt.len());
    value["timings"] = replies.timings(ticket);
    answer::json(200, &value)
}

/// Writes a stream.
struct Writer {
    head: Head,
    fields: ReasoningField,
    counts: bool,
    top: Option<usize>,
    /// Tokens whose text has not come out yet.
    pending: Vec<Vec<Scored>>,
    replies: Replies,
    calls: Calls,
    id: String,
}

impl Writer {
    fn chunk(&self, index: usize, delta: Value, finish: Option<&str>) -> Value {
        let mut chunk = self.head.with(json!([{"index": index, "delta": delta, "finish_reason": finish}]));
        if self.counts {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// The deltas of an update.
    fn deltas(&mut self, choice: usize, parts: &[Part], scored: &Scored, ticket: &Ticket) -> Vec<Value> {
        let mut out = Vec::new();
        let thinks = parts.iter().any(|p| matches!(p, Part::Reasoning(_)));
        if self.top.is_some() && !thinks {
            self.pending[choice].push(scored.clone());
        }
        for part in parts {
            let mut delta = json!({});
            match part {
                Part::Text(text) => delta["content"] = json!(text),
                Part::Reasoning(text) => reasoning(self.fields, &mut delta, text),
                Part::Call { index, .. } => {
                    let Some(call) = self.replies.all[choice].calls.get(*index) else { continue };
                    // What the call before it had held back comes first.
                    let rest = self.calls.end(choice);
                    let begun = self.calls.begin(choice, *index, call);
                    delta["tool_calls"] = rest.into_iter().chain([begun]).collect();
                }
                Part::Arguments { index, json } => {
                    let Some(more) = self.calls.go_on(choice, *index, json) else { continue };
                    delta["tool_calls"] = json!([more]);
                }
            }
            let mut chunk = self.chunk(choice, delta, None);
            if matches!(part, Part::Text(_)) && !self.pending[choice].is_empty() {
                let scored = std::mem::take(&mut self.pending[choice]);
                chunk["choices"][0]["logprobs"] = scores::chat(&ticket.model.model.tokenizer, &scored);
            }
            out.push(chunk);
        }
        out
    }

    async fn write(mut self, mut ticket: Ticket, events: Events) -> Result<(), Gone> {
        let send = async |value: Value| events.send(answer::event(None, &value.to_string())).await;
        for index in 0..self.replies.all.len() {
            send(self.chunk(index, json!({"role": "assistant", "content": ""}), None)).await?;
        }
        let (mut done, total) = (0, ticket.prompt.len());
        while !self.replies.are_over() {
            let beat = || format!(": keepalive {done}/{total}\n\n").into();
            let update = match events.during(ticket.next(), beat).await? {
                Ok(update) => update,
                Err(error) => return send(error.body(Dialect::OpenAi, &self.id)).await,
            };
            self.replies.hear(&update);
            match update {
                Update::Progress { done: read, .. } => done = read,
                Update::Said { choice, parts, scored, .. } => {
                    for chunk in self.deltas(choice, &parts, &scored, &ticket) {
                        send(chunk).await?;
                    }
                }
                Update::Ended { choice, ending, .. } => {
                    if let Some(rest) = self.calls.end(choice) {
                        send(self.chunk(choice, json!({"tool_calls": [rest]}), None)).await?;
                    }
                    let calls = self.replies.all[choice].calls.len();
                    let mut chunk = self.chunk(choice, json!({}), Some(finish(&ending, calls)));
                    if !self.pending[choice].is_empty() {
                        let scored = std::mem::take(&mut self.pending[choice]);
                        chunk["choices"][0]["logprobs"] = scores::chat(&ticket.model.model.tokenizer, &scored);
                    }
                    send(chunk).await?;
                }
                _ => {}
            }
        }
        ticket.finished();
        if self.counts {
            let mut last = self.head.with(json!([]));
            last["usage"] = self.replies.usage(total);
            last["timings"] = self.replies.timings(&ticket);
            send(last).await?;
        }
        events.send(answer::event(None, "[DONE]")).await
    }
}
