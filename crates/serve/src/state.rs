//! How the server is: `/health`, `/ready`, `/metrics`.

use crate::error::ApiError;
use crate::http::answer::{self, Outcome};
use crate::http::request::Call;
use crate::service::Service;
use lapis::memory;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Whether the server lives.
///
/// # Errors
/// None.
pub(crate) async fn health(service: Arc<Service>, _call: Call) -> Outcome {
    Ok(match service.metrics.is_stuck() {
        false => answer::json(200, &json!({"status": "ok"})),
        true => answer::json(503, &json!({"status": "unavailable"})),
    })
}

/// In a word: `ready`, `draining`, `overloaded`, `failed` or `loading`.
pub(crate) fn word(service: &Service) -> &'static str {
    if service.draining.load(Relaxed) {
        "draining"
    } else if service.metrics.is_stuck() || service.metrics.queued.load(Relaxed) >= service.settings.queue_size {
        "overloaded"
    } else if service.models.failure().is_some() {
        "failed"
    } else if service.models.ready().is_none() {
        "loading"
    } else {
        "ready"
    }
}

/// Whether a request would be served now.
///
/// # Errors
/// None.
pub(crate) async fn ready(service: Arc<Service>, _call: Call) -> Outcome {
    let word = word(&service);
    let mut state = json!({"status": word});
    if let Some(error) = service.models.failure().filter(|_| word == "failed") {
        state["message"] = json!(error.message);
    }
    Ok(answer::json(if word == "ready" { 200 } else { 503 }, &state))
}

/// Numbers for Prometheus.
///
/// # Errors
/// None.
pub(crate) async fn metrics(service: Arc<Service>, _call: Call) -> Outcome {
    if !service.settings.metrics {
        return Err(ApiError::new(404, "this server was started with --no-metrics"));
    }
    let loaded = service.models.all_loaded();
    let weights: u64 = loaded.iter().map(|l| l.fit.weights).sum();
    let gauges = [
        ("models_loaded", "Models that are loaded.", loaded.len() as f64),
        ("models_loads", "Models loaded since the start.", service.models.loads.load(Relaxed) as f64),
        ("models_unloads", "Models let go since the start.", service.models.unloads.load(Relaxed) as f64),
        ("weights_bytes", "Bytes of their weights.", weights as f64),
        ("memory_bytes", "Bytes of arrays.", memory::active() as f64),
        ("memory_limit_bytes", "Bytes that may be used.", service.settings.memory_limit as f64),
    ];
    Ok(answer::text(200, "text/plain; version=0.0.4; charset=utf-8", service.metrics.text(&gauges)))
}
