//! The response object: what was asked for, said again, and what came of it.

use super::memory::Memory;
use super::output::Output;
use crate::error::ApiError;
use crate::fields::Body;
use crate::job::Ending;
use crate::models::seconds;
use crate::reply::Replies;
use crate::service::{Ticket, unique};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::SystemTime;

/// The response object of a request.
pub(crate) struct Shape {
    base: Value,
    /// Where it is remembered, for whom, and what led to it.
    kept: Option<(Arc<Memory>, u64, Vec<Value>)>,
}

impl Shape {
    /// Of a request for a model.
    pub(crate) fn new(body: &Body, model: &str) -> Shape {
        let given = |name: &str, otherwise: Value| body.get(name).cloned().unwrap_or(otherwise);
        let inner = |name: &str, key: &str| body.get(name).and_then(|v| v.get(key)).cloned().unwrap_or(Value::Null);
        let format = Some(inner("text", "format")).filter(|f| !f.is_null()).unwrap_or(json!({"type": "text"}));
        let mut text = json!({"format": format});
        if let Some(verbosity) = Some(inner("text", "verbosity")).filter(|v| !v.is_null()) {
            text["verbosity"] = verbosity;
        }
        let summary = match inner("reasoning", "summary") {
            Value::Null => inner("reasoning", "generate_summary"),
            summary => summary,
        };
        let mut base = json!({
            "id": unique("resp_"), "object": "response", "created_at": seconds(SystemTime::now()),
            "status": "in_progress", "background": false, "error": null, "incomplete_details": null,
            "instructions": given("instructions", Value::Null),
            "max_output_tokens": given("max_output_tokens", Value::Null),
            "metadata": body.get("metadata").filter(|m| m.is_object()).cloned().unwrap_or(json!({})),
            "model": model, "output": [], "parallel_tool_calls": given("parallel_tool_calls", json!(true)),
            "previous_response_id": given("previous_response_id", Value::Null), "reasoning": {"effort": inner("reasoning", "effort"), "summary": summary},
            "service_tier": "default", "store": false, "temperature": given("temperature", Value::Null), "text": text,
            "tool_choice": given("tool_choice", json!("auto")), "tools": given("tools", json!([])),
            "top_logprobs": given("top_logprobs", json!(0)), "top_p": given("top_p", Value::Null),
            "truncation": given("truncation", json!("disabled")), "usage": null,
        });
        for name in ["prompt_cache_key", "safety_identifier", "user", "max_tool_calls"] {
            if let Some(value) = body.get(name) {
                base[name] = value.clone();
            }
        }
        Shape { base, kept: None }
    }

    /// Lets it be remembered when it is over, after the items that led to it.
    pub(crate) fn keep(&mut self, memory: Arc<Memory>, owner: u64, items: Vec<Value>) {
        self.base["store"] = json!(true);
        self.kept = Some((memory, owner, items));
    }

    /// As it begins.
    pub(crate) fn begun(&self) -> Value {
        self.base.clone()
    }

    /// As it ends.
    pub(crate) fn over(&self, output: &Output, replies: &Replies, ticket: &Ticket) -> Value {
        let mut value = self.begun();
        let cut = replies.all[0].ending == Some(Ending::Length);
        value["status"] = json!(if cut { "incomplete" } else { "completed" });
        if cut {
            value["incomplete_details"] = json!({"reason": "max_output_tokens"});
        } else {
            value["completed_at"] = json!(seconds(SystemTime::now()));
        }
        value["output"] = json!(output.items);
        let prompt = ticket.prompt.len();
        value["usage"] = json!({
            "input_tokens": prompt, "output_tokens": replies.tokens, "total_tokens": prompt + replies.tokens,
            "input_tokens_details": {"cached_tokens": replies.cached, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": replies.reasoning},
        });
        value["timings"] = replies.timings(ticket);
        if let Some((memory, owner, items)) = &self.kept {
            let all: Vec<Value> = items.iter().chain(&output.items).cloned().collect();
            memory.keep(value["id"].as_str().unwrap_or(""), *owner, &all);
        }
        value
    }

    /// As it comes to grief.
    pub(crate) fn failed(&self, output: &Output, error: &ApiError, message: &str) -> Value {
        let mut value = self.begun();
        value["status"] = json!("failed");
        value["output"] = json!(output.items);
        value["error"] = json!({"code": code(error), "message": message});
        value
    }
}

/// A name of an error for programs.
pub(crate) fn code(error: &ApiError) -> &'static str {
    match (error.code, error.status) {
        (Some(code), _) => code,
        (None, 429) => "rate_limit_exceeded",
        (None, 500..) => "server_error",
        (None, _) => "invalid_prompt",
    }
}
