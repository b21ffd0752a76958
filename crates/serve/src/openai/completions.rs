//! `/v1/completions`.

use super::chat::{COMMON, Head, common, finish};
use super::scores;
use crate::error::{ApiError, Dialect};
use crate::fields::{Body, Field, Kind, field};
use crate::http::answer::{self, Events, Gone, Outcome};
use crate::http::request::{Call, warn};
use crate::job::{Ending, Scored, Update};
use crate::models::Loaded;
use crate::reply::Replies;
use crate::sampling::SAMPLING;
use crate::service::{Ask, Prompt, Service, Ticket};
use lapis_lm::reply::Part;
use serde_json::{Value, json};
use std::sync::Arc;

/// Fields of a completion.
pub(crate) const COMPLETION: &[Field] = &[
    field(
        "max_tokens",
        Kind::Integer(0, i64::MAX as i128),
        "Tokens of a reply at most; absent, what the context holds; 0, with echo, gives the prompt alone.",
    ),
    field("prompt", Kind::Any, "A text, texts, tokens, or lists of tokens.").needed(),
    field("suffix", Kind::Text, "What follows the text that is written, where the model can fill in."),
    field(
        "echo",
        Kind::Flag,
        "Put the prompt before the reply, with its log-probabilities where logprobs asks for them.",
    ),
    field("logprobs", Kind::Integer(0, 20), "Tell log-probabilities, and of so many likely others."),
    field("best_of", Kind::Integer(1, 16), "Write so many, and give the likeliest n."),
];

/// Prompts at most.
const PROMPTS: usize = 128;

fn prompts(body: &mut Body) -> Result<Vec<Prompt>, ApiError> {
    let wrong = |what: &str| ApiError::field("prompt", format!("prompt {what}"));
    let ids = |list: &[Value]| -> Option<Vec<u32>> {
        list.iter().map(|v| v.as_u64().and_then(|n| u32::try_from(n).ok())).collect()
    };
    let list = match body.take("prompt") {
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(list)) => list,
        _ => return Err(wrong("must be a text, a list of texts, tokens, or lists of tokens")),
    };
    if list.is_empty() {
        return Err(wrong("is empty"));
    }
    if list.iter().all(Value::is_number) {
        return Ok(vec![Prompt::Tokens(ids(&list).ok_or_else(|| wrong("holds a number that is no token"))?)]);
    }
    if list.len() > PROMPTS {
        return Err(wrong(&format!("has {} entries; {PROMPTS} are taken", list.len())));
    }
    if list.iter().any(Value::is_string) && !list.iter().all(Value::is_string) {
        return Err(wrong("must hold texts only, or lists of tokens only"));
    }
    let one = |value: Value| match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(list) => ids(&list).map(Prompt::Tokens).ok_or_else(|| wrong("holds what is no token")),
        _ => Err(wrong("must hold texts only, or lists of tokens only")),
    };
    list.into_iter().map(one).collect()
}

/// The markers that models fill in by: before the beginning, before the end, and where the middle begins.
const MIDDLE: [[&str; 3]; 5] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"],
    ["<PRE>", "<SUF>", "<MID>"],
];

/// A prompt that has the model write what stands between two texts.
fn fill(loaded: &Loaded, prefix: &str, suffix: &str) -> Result<Prompt, ApiError> {
    let why = "suffix is not taken: the model has no tokens to fill in by";
    let model = &loaded.model;
    let known = |marks: &&[&str; 3]| marks.iter().all(|m| model.tokenizer.token_id(m).is_some());
    let [before, after, middle] = MIDDLE.iter().find(known).ok_or_else(|| ApiError::field("suffix", why))?;
    let text = format!("{before}{prefix}{after}{suffix}{middle}");
    Ok(Prompt::Tokens(model.tokenizer.encode(&text, false)?))
}

/// An error in the words of this interface.
fn own(mut error: ApiError) -> ApiError {
    if error.param.as_deref() == Some("messages") {
        error.param = Some("prompt".into());
    }
    error
}

/// A prompt and its replies.
struct Piece {
    ticket: Ticket,
    replies: Replies,
    /// What is put before each reply.
    echo: Option<String>,
}

/// Answers.
///
/// # Errors
/// What is wrong with the request.
pub(crate) async fn run(service: Arc<Service>, call: Call) -> Outcome {
    let mut body = Body::read(&call.body, &[COMPLETION, COMMON, SAMPLING])?;
    let mut ask = common(&body)?;
    let streams = body.flag("stream") == Some(true);
    let echo = body.flag("echo") == Some(true);
    let (n, top) = (ask.n, body.count("logprobs"));
    let best = body.count("best_of").unwrap_or(n);
    if best < n {
        return Err(ApiError::field("best_of", format!("best_of is {best}, and n is {n}; it must be as large")));
    }
    if streams && best > n {
        return Err(ApiError::field("best_of", "best_of does not go with stream"));
    }
    let nothing = ask.max_tokens == Some(0);
    if nothing && !echo {
        return Err(ApiError::field("max_tokens", "max_tokens is 0, and without echo there is nothing to answer"));
    }
    (ask.top, ask.n) = (top, best);
    // A prompt that is only read is scored, whether the scores are told or not.
    ask.scores = top.filter(|_| echo).or(nothing.then_some(0));
    let mut parts = Vec::new();
    let loaded = service.models.get_with(&ask.model, ask.adapter.as_deref()).await?;
    for prompt in prompts(&mut body)? {
        let prompt = match (body.text("suffix"), prompt) {
            (Some(suffix), Prompt::Text(prefix)) if !suffix.is_empty() => fill(&loaded, &prefix, suffix)?,
            (_, prompt) => prompt,
        };
        let shown = match &prompt {
            Prompt::Text(text) => Some(text.clone()),
            _ => None,
        };
        // The tickets of all prompts are kept to the end, so that the first one's count is enough.
        let ask = Ask { prompt: Some(prompt), further: !parts.is_empty(), ..ask.clone() };
        let mut ticket = service.submit(ask, &call).await.map_err(own)?;
        // Of the first prompt: those of the others are the same.
        if parts.is_empty() {
            body.warnings.append(&mut ticket.warnings);
        }
        let decoded = || ticket.model.model.tokenizer.decode(&ticket.prompt, true).unwrap_or_default();
        let echo = echo.then(|| shown.unwrap_or_else(decoded));
        parts.push(Piece { replies: Replies::new(best, top.is_some() || best > n), ticket, echo });
    }
    let head = Head::new("cmpl-", "text_completion", &ask.model, &parts[0].ticket.model);
    let counts = body.get("stream_options").and_then(|o| o.get("include_usage")) == Some(&json!(true));
    let mut answer = if streams {
        answer::stream(move |events| write(parts, head, n, top, counts, call.id, events))
    } else {
        let mut choices = Vec::new();
        for part in &mut parts {
            part.replies.collect(&mut part.ticket).await?;
        }
        for part in &parts {
            let mut all: Vec<&crate::reply::Spoken> = part.replies.all.iter().collect();
            let mean = |s: &crate::reply::Spoken| {
                s.scored.iter().map(|x| f64::from(x.logprob)).sum::<f64>() / s.scored.len().max(1) as f64
            };
            if best > n {
                all.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
            }
            for spoken in all.into_iter().take(n) {
                let before = part.echo.clone().unwrap_or_default();
                let ending = spoken.ending.as_ref().unwrap_or(&Ending::Stop);
                let mut choice = json!({
                    "index": choices.len(), "text": format!("{before}{}", spoken.text),
                    "finish_reason": finish(ending, 0),
                });
                if let Some(top) = top {
                    let written = legacy(&part.ticket, &spoken.scored, before.chars().count(), top);
                    choice["logprobs"] = match &part.echo {
                        Some(text) => joined(prompt_scores(part, text, top), written),
                        None => written,
                    };
                }
                choices.push(choice);
            }
        }
        let mut value = head.with(Value::Array(choices));
        value["usage"] = usage(&parts);
        value["timings"] = parts[0].replies.timings(&parts[0].ticket);
        answer::json(200, &value)
    };
    warn(&mut answer, &body.warnings);
    Ok(answer)
}

fn legacy(ticket: &Ticket, scored: &[Scored], offset: usize, top: usize) -> Value {
    let tokens: Vec<u32> = scored.iter().map(|s| s.token).collect();
    let scored: Vec<Option<Scored>> = scored.iter().cloned().map(Some).collect();
    scores::legacy(&ticket.model.model.tokenizer, &scored, &tokens, offset, top)
}

/// Log-probabilities of the prompt, whose first token has none.
fn prompt_scores(part: &Piece, text: &str, top: usize) -> Value {
    let scored: Vec<Option<Scored>> =
        std::iter::once(None).chain(part.replies.prompt.iter().cloned().map(Some)).collect();
    let tokenizer = &part.ticket.model.model.tokenizer;
    let mut value = scores::legacy(tokenizer, &scored, &part.ticket.prompt, 0, top);
    value["text_offset"] = json!(scores::places(tokenizer, &part.ticket.prompt, text));
    value
}

/// Two lists of log-probabilities, one after the other.
fn joined(mut first: Value, mut second: Value) -> Value {
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        if let (Some(a), Some(b)) = (first[key].as_array_mut(), second[key].as_array_mut()) {
            a.append(b);
        }
    }
    first
}

fn usage(parts: &[Piece]) -> Value {
    let sum = |f: fn(&Piece) -> usize| parts.iter().map(f).sum::<usize>();
    let (prompt, tokens) = (sum(|p| p.ticket.prompt.len()), sum(|p| p.replies.tokens));
    json!({
        "prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens,
        "prompt_tokens_details": {"cached_tokens": sum(|p| p.replies.cached)},
    })
}

async fn write(
    mut parts: Vec<Piece>,
    head: Head,
    n: usize,
    top: Option<usize>,
    counts: bool,
    id: String,
    events: Events,
) -> Result<(), Gone> {
    let send = async |value: Value| events.send(answer::event(None, &value.to_string())).await;
    let chunk = |index: usize, text: &str, finish: Option<&str>, logprobs: Value| {
        let mut chunk = head.with(json!([{"index": index, "text": text, "finish_reason": finish}]));
        if !logprobs.is_null() {
            chunk["choices"][0]["logprobs"] = logprobs;
        }
        if counts {
            chunk["usage"] = Value::Null;
        }
        chunk
    };
    for (number, part) in parts.iter_mut().enumerate() {
        let mut offsets = vec![part.echo.as_ref().map_or(0, |text| text.chars().count()); n];
        // With scores, the prompt is sent when they are there.
        let mut echoed = vec![part.echo.is_none(); n];
        if let Some(echo) = part.echo.as_ref().filter(|_| top.is_none()) {
            for (choice, echoed) in echoed.iter_mut().enumerate() {
                *echoed = true;
                send(chunk(number * n + choice, echo, None, Value::Null)).await?;
            }
        }
        while !part.replies.are_over() {
            let beat = || ": keepalive\n\n".into();
            let update = match events.during(part.ticket.next(), beat).await? {
                Ok(update) => update,
                Err(error) => return send(error.body(Dialect::OpenAi, &id)).await,
            };
            part.replies.hear(&update);
            if let (Update::Said { choice, .. } | Update::Ended { choice, .. }, Some(text)) = (&update, &part.echo)
                && !std::mem::replace(&mut echoed[*choice], true)
            {
                let logprobs = top.map_or(Value::Null, |top| prompt_scores(part, text, top));
                send(chunk(number * n + choice, text, None, logprobs)).await?;
            }
            match update {
                Update::Said { choice, parts: pieces, scored, .. } => {
                    let text: String = pieces
                        .iter()
                        .filter_map(|p| if let Part::Text(t) = p { Some(t.as_str()) } else { None })
                        .collect();
                    let logprobs = top.map_or(Value::Null, |top| legacy(&part.ticket, &[scored], offsets[choice], top));
                    offsets[choice] += text.chars().count();
                    if !text.is_empty() || !logprobs.is_null() {
                        send(chunk(number * n + choice, &text, None, logprobs)).await?;
                    }
                }
                Update::Ended { choice, ending, .. } => {
                    send(chunk(number * n + choice, "", Some(finish(&ending, 0)), Value::Null)).await?;
                }
                _ => {}
            }
        }
        part.ticket.finished();
    }
    if counts {
        let mut last = head.with(json!([]));
        last["usage"] = usage(&parts);
        send(last).await?;
    }
    events.send(answer::event(None, "[DONE]")).await
}
