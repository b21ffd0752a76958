//! `/tokenize`, `/detokenize`, `/apply-template`.

use crate::error::ApiError;
use crate::fields::{Body, Field, Kind, field};
use crate::http::answer::{self, Answer, Outcome};
use crate::http::request::{Call, warn};
use crate::openai::{chat, tools};
use crate::service::{Ask, Service, blocking};
use serde_json::{Value, json};
use std::sync::Arc;

/// Fields of `/tokenize`.
pub(crate) const TOKENIZE: &[Field] = &[
    field("model", Kind::Text, "A name of a model."),
    field("content", Kind::Text, "The text."),
    field("prompt", Kind::Text, "As content."),
    field("text", Kind::Text, "As content."),
    field("add_special", Kind::Flag, "With the tokens that begin a text; true by default."),
    field("add_special_tokens", Kind::Flag, "As add_special."),
    field("with_pieces", Kind::Flag, "Tell the text of each token."),
];

/// Fields of a conversation that is only put into text.
pub(crate) const CONVERSATION: &[Field] = &[
    field("messages", Kind::List(10_000), "A conversation in place of a text."),
    field("tools", Kind::List(512), "Functions and custom tools that the model may call."),
    field("tool_choice", Kind::Any, "none leaves them out."),
    field("parallel_tool_calls", Kind::Flag, "Taken; the text is the same."),
    field("functions", Kind::List(512), "The older form of tools."),
    field("function_call", Kind::Any, "The older form of tool_choice."),
    field("chat_template", Kind::Text, "A template in place of the model's."),
    field("role_mapping", Kind::Object, "What stands before each role's words: where the model has no template."),
    field("continue_final_message", Kind::Flag, "Go on with the last message."),
    field("chat_template_kwargs", Kind::Object, "Variables of the chat template."),
    field("add_generation_prompt", Kind::Flag, "Whether a reply is begun; true by default."),
    field("enable_thinking", Kind::Flag, "Whether the model thinks before it answers."),
    field("reasoning_effort", Kind::Text, "How much to think."),
];

/// Fields of `/detokenize`.
pub(crate) const DETOKENIZE: &[Field] =
    &[field("model", Kind::Text, "A name of a model."), field("tokens", Kind::List(1 << 22), "Tokens.").needed()];

/// Fields of `/apply-template` beside a conversation.
pub(crate) const MODEL: &[Field] = &[field("model", Kind::Text, "A name of a model.")];

/// The model, and the conversation with it as a request would have it.
fn conversation(service: &Service, body: &mut Body) -> Result<Ask, ApiError> {
    let mut ask = Ask { model: body.text("model").unwrap_or("").to_string(), ..Ask::default() };
    tools::read(body, &mut ask)?;
    ask.prompt = Some(chat::conversation(body, service)?);
    Ok(ask)
}

/// Whether the model has the next word.
fn begins(body: &Body) -> bool {
    body.flag("add_generation_prompt").unwrap_or(true)
}

/// An answer, with what is said of the request beside it.
fn told(value: &Value, warnings: &[String]) -> Answer {
    let mut answer = answer::json(200, value);
    warn(&mut answer, warnings);
    answer
}

/// A text, or a conversation, to tokens.
///
/// # Errors
/// What is wrong with the request.
pub(crate) async fn tokenize(service: Arc<Service>, call: Call) -> Outcome {
    let mut body = Body::read(&call.body, &[TOKENIZE, CONVERSATION])?;
    let warnings = std::mem::take(&mut body.warnings);
    let text = ["content", "prompt", "text"].iter().find_map(|name| body.text(name)).map(str::to_string);
    let ask = match &text {
        None if body.get("messages").is_some() => conversation(&service, &mut body)?,
        None => return Err(ApiError::field("content", "content is missing: a text, or messages")),
        Some(_) => Ask { model: body.text("model").unwrap_or("").to_string(), ..Ask::default() },
    };
    let loaded = service.loaded(&ask).await?;
    let value = blocking(move || {
        let tokenizer = &loaded.model.tokenizer;
        let special = body.flag("add_special").or(body.flag("add_special_tokens")).unwrap_or(true);
        let tokens = match text {
            Some(text) => tokenizer.encode(&text, special)?,
            None => tokenizer.encode(&service.chat_text(&loaded, &ask, begins(&body))?, false)?,
        };
        let count = tokens.len();
        let piece = |&id: &u32| {
            let bytes = tokenizer.token_bytes(id);
            json!({"id": id, "piece": String::from_utf8(bytes).map_or_else(|e| json!(e.into_bytes()), |text| json!(text))})
        };
        let tokens: Value = match body.flag("with_pieces") {
            Some(true) => tokens.iter().map(piece).collect(),
            _ => json!(tokens),
        };
        Ok(json!({"tokens": tokens, "count": count, "max_model_len": loaded.context}))
    })
    .await?;
    Ok(told(&value, &warnings))
}

/// Tokens to a text.
///
/// # Errors
/// What is wrong with the request.
pub(crate) async fn detokenize(service: Arc<Service>, call: Call) -> Outcome {
    let mut body = Body::read(&call.body, &[DETOKENIZE])?;
    let warnings = std::mem::take(&mut body.warnings);
    let loaded = service.models.get(body.text("model").unwrap_or("")).await?;
    let value = blocking(move || {
        let wrong = |v: &Value| {
            let most = loaded.model.vocabulary;
            ApiError::field(
                "tokens",
                format!("tokens holds {v}, which is no token of this model: they are below {most}"),
            )
        };
        let list = body.get("tokens").and_then(Value::as_array).map_or(&[][..], |l| l);
        let one = |v: &Value| {
            v.as_u64().filter(|&n| (n as usize) < loaded.model.vocabulary).map(|n| n as u32).ok_or_else(|| wrong(v))
        };
        let tokens = list.iter().map(one).collect::<Result<Vec<u32>, ApiError>>()?;
        let text = loaded.model.tokenizer.decode(&tokens, false)?;
        Ok(json!({"content": text, "prompt": text}))
    })
    .await?;
    Ok(told(&value, &warnings))
}

/// A conversation to the text that the model reads.
///
/// # Errors
/// What is wrong with the request.
pub(crate) async fn apply_template(service: Arc<Service>, call: Call) -> Outcome {
    let mut body = Body::read(&call.body, &[MODEL, CONVERSATION])?;
    let warnings = std::mem::take(&mut body.warnings);
    let ask = conversation(&service, &mut body)?;
    let loaded = service.loaded(&ask).await?;
    let text = blocking(move || service.chat_text(&loaded, &ask, begins(&body))).await?;
    Ok(told(&json!({"prompt": text}), &warnings))
}
