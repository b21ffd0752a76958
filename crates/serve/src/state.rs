//! How the server is: `/health`, `/ready`, `/metrics`.

use crate::error::ApiError;
use crate::http::answer::{self, Outcome};
use crate::http::request::Call;
use crate::service::Service;
use lapis::memory;
use lapis::ops::fast::KEY_BLOCK;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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
    if word == "loading"
        && let Some(progress) = service.models.progress(service.models.start())
    {
        state["progress"] = crate::openai::models::loading(&progress);
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
    let limit = service.settings.memory_limit;
    // Of all models, the one whose blocks are the largest.
    let page = loaded.iter().map(|l| l.fit.remembered(KEY_BLOCK)).max().unwrap_or(0);
    let pages = limit.saturating_sub(weights).checked_div(page).unwrap_or(0);
    let running = service.metrics.running.load(Relaxed) as f64;
    let batch = service.settings.decode_concurrency.max(1) as f64;
    let with_adapters = loaded.iter().filter(|l| l.variant.is_some()).count();
    let models = &service.models;
    let mut counters = vec![
        ("model_loads_total", "Models loaded since the start.", models.loads.load(Relaxed) as f64),
        ("model_unloads_total", "Models let go since the start.", models.unloads.load(Relaxed) as f64),
    ];
    let mut gauges = vec![
        ("models_loaded", "Models that are loaded.", loaded.len() as f64),
        ("models_with_adapters", "Those of them that have an adapter.", with_adapters as f64),
        ("adapters", "Adapters that are loaded.", models.adapters.list().len() as f64),
        ("batch_limit", "Replies that are computed at once at most.", batch),
        ("batch_occupancy", "Replies that are computed now, of those.", running / batch),
        ("kv_pages_total", "Blocks of 512 positions that fit beside the weights.", pages as f64),
        ("weights_bytes", "Bytes of their weights.", weights as f64),
        ("memory_bytes", "Bytes of arrays.", memory::active() as f64),
        ("memory_limit_bytes", "Bytes that may be used.", limit as f64),
    ];
    if let Some(disk) = &service.disk {
        let (usage, c) = (disk.usage(), disk.counts());
        let n = |a: &AtomicU64| a.load(Relaxed) as f64;
        gauges.extend([
            ("prefix_disk_files", "Files of remembered prompts, of all processes.", usage.files as f64),
            ("prefix_disk_bytes", "Their bytes.", usage.bytes as f64),
            ("prefix_disk_limit_bytes", "Bytes that they may take.", disk.limit() as f64),
        ]);
        counters.extend([
            ("prefix_disk_hits_total", "Prompts of which files told more than memory knew.", n(&c.hits)),
            ("prefix_disk_misses_total", "Prompts of which they did not.", n(&c.misses)),
            ("prefix_disk_read_tokens_total", "Tokens that files told of.", n(&c.tokens)),
            ("prefix_disk_written_total", "Files written.", n(&c.written)),
            ("prefix_disk_evictions_total", "Files let go for room.", n(&c.evicted)),
            ("prefix_disk_damaged_total", "Files that were damaged.", n(&c.damaged)),
            ("prefix_disk_dropped_total", "Prompts that were not written.", n(&c.dropped)),
        ]);
    }
    Ok(answer::text(200, "text/plain; version=0.0.4; charset=utf-8", service.metrics.text(&counters, &gauges)))
}
