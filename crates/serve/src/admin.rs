//! `/admin`: models and what is remembered, for the operator.

use crate::error::ApiError;
use crate::fields::{Body, Field, Kind, field};
use crate::http::answer::{self, Outcome};
use crate::http::request::Call;
use crate::service::{Service, blocking};
use crate::worker::Command;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Fields of `POST /admin/models`.
pub(crate) const LOAD: &[Field] = &[field("model", Kind::Text, "A name of a model.").needed()];

/// The models, and what loaded ones take.
///
/// # Errors
/// None.
pub(crate) async fn models(service: Arc<Service>, _call: Call) -> Outcome {
    let all = service.models.all_loaded();
    let one = |l: &Arc<crate::models::Loaded>| json!({"id": l.id, "jobs": l.jobs.load(Relaxed), "bytes": l.fit.weights, "context": l.context, "created": l.created});
    Ok(answer::json(200, &json!({"models": all.iter().map(one).collect::<Vec<Value>>()})))
}

/// Loads a model.
///
/// # Errors
/// A name that there is not, a model that cannot be loaded.
pub(crate) async fn load(service: Arc<Service>, call: Call) -> Outcome {
    let body = Body::read(&call.body, &[LOAD])?;
    let loaded = service.models.get(body.text("model").unwrap_or("")).await?;
    Ok(answer::json(200, &json!({"id": loaded.id, "context": loaded.context, "bytes": loaded.fit.weights})))
}

/// Lets a model go.
///
/// # Errors
/// It is not loaded, or works.
pub(crate) async fn unload(service: Arc<Service>, call: Call) -> Outcome {
    if !service.models.all_loaded().iter().any(|l| l.id == call.tail) {
        return Err(ApiError::new(404, "no model of this name is loaded"));
    }
    match service.models.unload(&call.tail) {
        true => Ok(answer::json(200, &json!({"id": call.tail, "unloaded": true}))),
        false => Err(ApiError::new(409, "the model works; try again when it is idle")),
    }
}

/// How much is remembered.
///
/// # Errors
/// None.
pub(crate) async fn cache(service: Arc<Service>, _call: Call) -> Outcome {
    let m = &service.metrics;
    let disk = service.disk.as_ref().map(|disk| {
        let (usage, c) = (disk.usage(), disk.counts());
        json!({
            "dir": disk.dir(), "files": usage.files, "bytes": usage.bytes, "limit": disk.limit(),
            "hits": c.hits.load(Relaxed), "misses": c.misses.load(Relaxed), "read_tokens": c.tokens.load(Relaxed),
            "written": c.written.load(Relaxed), "evictions": c.evicted.load(Relaxed),
            "damaged": c.damaged.load(Relaxed), "dropped": c.dropped.load(Relaxed),
        })
    });
    Ok(answer::json(
        200,
        &json!({
            "entries": m.cache_entries.load(Relaxed), "bytes": m.cache_bytes.load(Relaxed),
            "hits": m.cache_hits.load(Relaxed), "misses": m.cache_misses.load(Relaxed),
            "evictions": m.cache_evictions.load(Relaxed), "reused_tokens": m.cached_tokens.load(Relaxed),
            "disk": disk,
        }),
    ))
}

/// Forgets everything, in memory and on disk.
///
/// # Errors
/// The engine does not answer.
pub(crate) async fn clear(service: Arc<Service>, _call: Call) -> Outcome {
    let cleared = blocking(move || {
        let (sender, receiver) = std::sync::mpsc::channel();
        let sent = service.commands.send(Command::ClearCache(sender)).is_ok();
        let count = receiver.recv_timeout(Duration::from_secs(10)).ok().filter(|_| sent);
        let count = count.ok_or_else(|| ApiError::later(503, 5, "the engine does not answer"))?;
        let gone = service.disk.as_ref().map(|disk| disk.clear());
        Ok((count, gone))
    });
    let (count, gone) = cleared.await?;
    let disk = gone.map(|g| json!({"files": g.files, "bytes": g.bytes}));
    Ok(answer::json(200, &json!({"cleared": count, "disk": disk})))
}
