//! `/dashboard.json`: the server at this moment, for the page at `/dashboard`, which asks every second.
//!
//! Counters grow for ever; the page makes rates of them. There is nothing in it that clients have written.

use crate::error::ApiError;
use crate::http::answer::{self, Outcome};
use crate::http::request::Call;
use crate::metrics::Times;
use crate::models::Loaded;
use crate::routes::ROUTES;
use crate::service::Service;
use crate::state;
use lapis::memory;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

fn times(times: &Times) -> Value {
    let (count, seconds) = times.total();
    json!({"count": count, "seconds": seconds})
}

fn model(loaded: &Arc<Loaded>) -> Value {
    json!({
        "id": loaded.id, "context": loaded.context, "jobs": loaded.jobs.load(Relaxed), "bytes": loaded.fit.weights,
        "parameters": loaded.fit.parameters,
    })
}

/// The server at this moment.
///
/// # Errors
/// The server tells no numbers.
pub(crate) async fn now(service: Arc<Service>, _call: Call) -> Outcome {
    let (m, settings) = (&service.metrics, &service.settings);
    if !settings.metrics {
        return Err(ApiError::new(404, "this server was started with --no-metrics"));
    }
    // Of pages, only what went wrong; nothing of probes.
    let probe = |route: &str| matches!(route, "/ready" | "/health");
    let posts = |route: &str| ROUTES.iter().any(|r| r.path == route && r.method == "POST");
    let tells = |route: &str, status: u16| posts(route) || (status >= 400 && !probe(route));
    let answers = m.answers().into_iter().filter(|&(route, status, _)| tells(route, status));
    let answers: Vec<Value> = answers.map(|(r, s, n)| json!({"route": r, "status": s, "count": n})).collect();
    let models: Vec<Value> = service.models.all_loaded().iter().map(model).collect();
    Ok(answer::json(
        200,
        &json!({
            "version": env!("CARGO_PKG_VERSION"), "state": state::word(&service), "uptime": m.uptime(),
            "connections": m.connections.load(Relaxed),
            "queue": {"jobs": m.queued.load(Relaxed), "limit": settings.queue_size, "waiting": m.waiting.load(Relaxed)},
            "batch": {"running": m.running.load(Relaxed), "limit": settings.decode_concurrency},
            "tokens": {"prompt": m.prompt_tokens.load(Relaxed), "cached": m.cached_tokens.load(Relaxed),
                "output": m.output_tokens.load(Relaxed), "guessed": m.drafted.load(Relaxed)},
            "cache": {"entries": m.cache_entries.load(Relaxed), "limit": settings.prompt_cache_size,
                "bytes": m.cache_bytes.load(Relaxed), "hits": m.cache_hits.load(Relaxed),
                "misses": m.cache_misses.load(Relaxed), "evictions": m.cache_evictions.load(Relaxed)},
            "memory": {"used": memory::active(), "limit": settings.memory_limit, "reserved": m.reserved.load(Relaxed)},
            "times": {"queue": times(&m.queue_time), "first": times(&m.first_token), "between": times(&m.between_tokens),
                "step": times(&m.steps)},
            "requests": answers, "cancelled": m.cancelled.load(Relaxed), "refused": m.rejected("queue_full") + m.rejected("key_limit"),
            "faults": m.faults.load(Relaxed), "models": models,
        }),
    ))
}
