//! `/v1/models`.

use crate::error::ApiError;
use crate::http::answer::{self, Outcome};
use crate::http::request::Call;
use crate::models::{Listing, Progress};
use crate::service::{Service, blocking};
use serde_json::{Value, json};
use std::sync::Arc;

/// How far a model is that is being loaded.
pub(crate) fn loading(progress: &Progress) -> Value {
    let mut value = json!({"seconds": progress.seconds()});
    if let Some((fetched, bytes)) = progress.fetched() {
        (value["fetched"], value["bytes"]) = (json!(fetched), json!(bytes));
    }
    value
}

fn entry(model: &Listing) -> Value {
    let mut entry = json!({
        "id": model.id, "object": "model", "created": model.created, "owned_by": "lapis", "loaded": model.loaded,
        "capabilities": model.capabilities,
        // What Anthropic's clients read.
        "type": "model", "display_name": model.id, "created_at": crate::ollama::time(model.created),
    });
    entry["state"] = json!(match (&model.progress, &model.failure) {
        _ if model.loaded => "ready",
        (Some(_), _) => "loading",
        (None, Some(_)) => "failed",
        (None, None) => "absent",
    });
    if let Some(progress) = &model.progress {
        entry["loading"] = loading(progress);
    }
    if let Some(failure) = &model.failure {
        entry["failure"] = json!(failure);
    }
    if let Some(context) = model.context {
        entry["context_length"] = json!(context);
        entry["max_model_len"] = json!(context);
    }
    if let Some(quantization) = &model.quantization {
        entry["quantization"] = json!(quantization);
    }
    entry
}

/// What Codex tells a model first, where the server does not know better.
const CODING: &str = "You are a coding agent in the terminal of the user's machine. Read before you change, keep changes \
                      small, use the tools that you are given, and say in a few words what you did.";

/// What Codex reads: it takes a list only if every model has all of these.
fn slug(model: &Listing) -> Value {
    json!({
        "slug": model.id, "display_name": model.id, "description": null, "context_window": model.context,
        "supported_reasoning_levels": [], "supports_parallel_tool_calls": true, "input_modalities": ["text"],
        "visibility": "list", "supported_in_api": true, "priority": 0, "upgrade": null, "base_instructions": CODING,
        "shell_type": "shell_command", "apply_patch_tool_type": null, "supports_reasoning_summaries": false,
        "support_verbosity": false, "default_verbosity": null, "experimental_supported_tools": [],
        "truncation_policy": {"mode": "bytes", "limit": 10_000},
    })
}

/// All models.
///
/// # Errors
/// None.
pub(crate) async fn list(service: Arc<Service>, _call: Call) -> Outcome {
    let models = blocking(move || Ok(service.models.list())).await?;
    let data: Vec<Value> = models.iter().map(entry).collect();
    let slugs: Vec<Value> = models.iter().map(slug).collect();
    let id = |entry: Option<&Value>| entry.map_or(Value::Null, |e| e["id"].clone());
    let (first, last) = (id(data.first()), id(data.last()));
    Ok(answer::json(
        200,
        &json!({
            "object": "list", "data": data, "has_more": false, "first_id": first, "last_id": last, "models": slugs,
        }),
    ))
}

/// One model.
///
/// # Errors
/// A name that there is not.
pub(crate) async fn one(service: Arc<Service>, call: Call) -> Outcome {
    if call.tail.is_empty() {
        return Err(ApiError::new(404, "there is no model without a name"));
    }
    let listing = blocking(move || service.models.listing(&call.tail)).await?;
    Ok(answer::json(200, &entry(&listing)))
}
