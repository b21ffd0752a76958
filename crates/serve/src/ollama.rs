//! What clients of Ollama look at before they ask: versions and models, read-only.

use crate::error::ApiError;
use crate::fields::{Body, Field, Kind, field};
use crate::http::answer::{self, Outcome};
use crate::http::request::{Call, warn};
use crate::models::Listing;
use crate::service::{Service, blocking};
use serde_json::{Value, json};
use std::sync::Arc;

/// Fields of `/api/show`.
pub(crate) const SHOW: &[Field] = &[
    field("model", Kind::Text, "A name of a model."),
    field("name", Kind::Text, "As model."),
    field("verbose", Kind::Flag, "Taken."),
];

/// The version.
///
/// # Errors
/// None.
pub(crate) async fn version(_service: Arc<Service>, _call: Call) -> Outcome {
    Ok(answer::json(200, &json!({"version": env!("CARGO_PKG_VERSION")})))
}

/// Seconds since 1970 as `2026-01-31T00:00:00Z`.
pub(crate) fn time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Civil from days, by eras of 400 years that begin in March.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

fn details(model: &Listing) -> Value {
    let size = model.parameters.map_or(String::new(), |n| format!("{:.1}B", n as f64 / 1e9));
    json!({
        "format": "safetensors", "family": model.family, "families": [model.family], "parameter_size": size,
        "quantization_level": model.quantization.clone().unwrap_or_default(), "parent_model": "",
    })
}

fn entry(model: &Listing) -> Value {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{} {}", model.id, model.bytes).as_bytes());
    let digest: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    json!({
        "name": model.id, "model": model.id, "modified_at": time(model.created), "size": model.bytes,
        "digest": digest, "details": details(model),
    })
}

/// All models.
///
/// # Errors
/// None.
pub(crate) async fn tags(service: Arc<Service>, _call: Call) -> Outcome {
    let models = blocking(move || Ok(service.models.list())).await?;
    Ok(answer::json(200, &json!({"models": models.iter().map(entry).collect::<Vec<_>>()})))
}

/// Those that are loaded.
///
/// # Errors
/// None.
pub(crate) async fn running(service: Arc<Service>, _call: Call) -> Outcome {
    let until = std::time::SystemTime::now() + service.settings.model_ttl;
    let models = blocking(move || Ok(service.models.list())).await?;
    let one = |m: &Listing| {
        let mut entry = entry(m);
        entry["expires_at"] = json!(time(crate::models::seconds(until)));
        (entry["size_vram"], entry["context_length"]) = (json!(0), json!(m.context));
        entry
    };
    let all: Vec<Value> = models.iter().filter(|m| m.loaded).map(one).collect();
    Ok(answer::json(200, &json!({"models": all})))
}

/// One model.
///
/// # Errors
/// A name that there is not.
pub(crate) async fn show(service: Arc<Service>, call: Call) -> Outcome {
    let body = Body::read(&call.body, &[SHOW])?;
    let name = body.text("model").or(body.text("name")).unwrap_or("").to_string();
    let found = blocking(move || {
        let listing = service.models.listing(&name).map_err(|e| ApiError { status: 404, ..e })?;
        let loaded = service.models.all_loaded().into_iter().find(|l| l.id == listing.id);
        let template = loaded.and_then(|l| l.model.tokenizer.template().map(|t| t.source().to_string()));
        Ok((listing, template.unwrap_or_default()))
    });
    let (model, template) = found.await?;
    let capabilities: Vec<&str> = model
        .capabilities
        .iter()
        .map(|&c| if c == "embeddings" { "embedding" } else { c })
        .filter(|&c| c != "chat")
        .collect();
    let mut answer = answer::json(
        200,
        &json!({
            "details": details(&model), "modified_at": time(model.created), "template": template, "parameters": "",
            "capabilities": capabilities,
            "model_info": {
                "general.architecture": model.family, "general.parameter_count": model.parameters,
                format!("{}.context_length", model.family): model.context,
            },
        }),
    );
    warn(&mut answer, &body.warnings);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_dates() {
        assert_eq!(super::time(0), "1970-01-01T00:00:00Z");
        assert_eq!(super::time(1_709_210_096), "2024-02-29T12:34:56Z");
        assert_eq!(super::time(1_798_761_599), "2026-12-31T23:59:59Z");
    }
}
