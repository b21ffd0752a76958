//! `/admin`: models and what is remembered, for the operator.

use crate::adapters::Generation;
use crate::error::ApiError;
use crate::fields::{Body, Field, Kind, field};
use crate::http::answer::{self, Outcome};
use crate::http::request::{Call, warn};
use crate::service::{Service, blocking};
use crate::worker::Command;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Fields of `POST /admin/models`.
pub(crate) const LOAD: &[Field] = &[field("model", Kind::Text, "A name of a model.").needed()];

/// Fields of `POST /admin/adapters`.
pub(crate) const ADAPTER: &[Field] = &[
    field("name", Kind::Text, "What requests call it.").needed(),
    field("path", Kind::Text, "Where it is below --adapters-dir; absent, the name."),
    field("generation", Kind::Integer(0, i64::MAX as i128), "The one that it may take the place of; 0: none."),
];

/// The adapters, and what they are loaded on.
///
/// # Errors
/// None.
pub(crate) async fn adapters(service: Arc<Service>, _call: Call) -> Outcome {
    let loaded = service.models.all_loaded();
    let one = |g: &Arc<Generation>| {
        let own = loaded.iter().filter(|l| l.variant.as_ref().is_some_and(|v| v.1.number == g.number));
        let on = own.map(|l| json!({"id": l.id, "jobs": l.jobs.load(Relaxed)})).collect::<Vec<_>>();
        json!({"name": g.name, "generation": g.number, "kind": g.adapter.kind, "rank": g.adapter.rank(),
            "bytes": g.adapter.bytes, "created": g.created, "base": g.adapter.base, "loaded": on})
    };
    let all: Vec<Value> = service.models.adapters.list().iter().map(one).collect();
    Ok(answer::json(200, &json!({"adapters": all})))
}

/// Loads an adapter, in place of one of its name.
///
/// # Errors
/// A directory that there is not below the folder of adapters, or that is no adapter; another generation than expected.
pub(crate) async fn load_adapter(service: Arc<Service>, call: Call) -> Outcome {
    let body = Body::read(&call.body, &[ADAPTER])?;
    let name = body.text("name").unwrap_or("").to_string();
    let path = body.text("path").unwrap_or(&name).to_string();
    let expected = body.count("generation").map(|n| n as u64);
    let warnings = body.warnings;
    let loaded = blocking(move || {
        let loaded = service.models.adapters.load(&name, &path, expected)?;
        service.models.retire();
        Ok(loaded)
    })
    .await?;
    let adapter = &loaded.adapter;
    let about = json!({"name": loaded.name, "generation": loaded.number, "kind": adapter.kind, "rank": adapter.rank(),
        "bytes": adapter.bytes});
    let mut answer = answer::json(200, &about);
    warn(&mut answer, &warnings);
    Ok(answer)
}

/// Lets an adapter go: requests that have it keep it.
///
/// # Errors
/// It is not loaded.
pub(crate) async fn unload_adapter(service: Arc<Service>, call: Call) -> Outcome {
    if !service.models.adapters.remove(&call.tail) {
        return Err(ApiError::new(404, "no adapter of this name is loaded"));
    }
    service.models.retire();
    Ok(answer::json(200, &json!({"name": call.tail, "unloaded": true})))
}

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
    let about = json!({"id": loaded.id, "context": loaded.context, "bytes": loaded.fit.weights});
    let mut answer = answer::json(200, &about);
    warn(&mut answer, &body.warnings);
    Ok(answer)
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
