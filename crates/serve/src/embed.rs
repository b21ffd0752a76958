//! Embeddings on the thread of the engine, a slice between two steps, so that replies that are being written go on.
//!
//! Only one slice waits for the engine at a time, whoever asks; a request whose client has gone sends no more of them.

use crate::error::ApiError;
use crate::http::request::Call;
use crate::job::InUse;
use crate::metrics::Metrics;
use crate::models::Loaded;
use crate::service::Service;
use crate::worker::Command;
use lapis_lm::embed::{Pooling, Reading};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Tokens in the first slice, whose pace is not known.
const FIRST: usize = 64;
/// Tokens in a slice at least, and at most.
const ROWS: (usize, usize) = (16, 2048);
/// A slice may take so long while nobody writes, and while somebody does.
const SECONDS: (f64, f64) = (0.2, 0.03);
/// How long a request waits for memory.
const PATIENCE: Duration = Duration::from_secs(30);

/// Memory that is set aside while this lives.
struct Reserved(Arc<Metrics>, u64);

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.embedding.fetch_sub(self.1, Relaxed);
    }
}

/// Sets memory aside for texts of up to so many tokens; waits for a while if others have it.
async fn reserve(service: &Service, loaded: &Loaded, longest: usize) -> Result<Reserved, ApiError> {
    let (bytes, limit) = (loaded.fit.working + loaded.fit.remembered(longest), service.settings.memory_limit);
    let human = lapis::io::atomic::human;
    if loaded.bytes() + bytes > limit {
        let why = format!("a text needs {} of memory; there is {}", human(loaded.bytes() + bytes), human(limit));
        return Err(ApiError::field("input", why));
    }
    let metrics = &service.metrics;
    let until = Instant::now() + PATIENCE;
    loop {
        let weights: u64 = service.models.all_loaded().iter().map(|l| l.fit.weights).sum();
        let before = metrics.embedding.fetch_add(bytes, Relaxed);
        let reserved = Reserved(Arc::clone(metrics), bytes);
        let others = before + metrics.reserved.load(Relaxed);
        if others == 0 || weights + others + bytes <= limit {
            return Ok(reserved);
        }
        drop(reserved);
        if Instant::now() > until {
            return Err(ApiError::later(503, 5, "others use the memory that these texts need; try again later")
                .code("no_memory"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A vector for each text of tokens.
///
/// # Errors
/// Texts that the model cannot take; no room; a server that stops.
pub(crate) async fn run(
    service: &Arc<Service>,
    loaded: &Arc<Loaded>,
    texts: Vec<Vec<u32>>,
    pooling: Pooling,
    call: &Call,
) -> Result<Vec<Vec<f32>>, ApiError> {
    let _used = InUse::new(Arc::clone(loaded));
    let _guard = service.enter(&call.owner)?;
    let (longest, total) = (texts.iter().map(Vec::len).max().unwrap_or(0), texts.iter().map(Vec::len).sum::<usize>());
    let most = loaded.context;
    if longest > most {
        let at = texts.iter().position(|t| t.len() > most).unwrap_or(0);
        let why = format!("input {at} has {} tokens, and the model's context is {most}: shorten it", texts[at].len());
        return Err(ApiError::field("input", why).code("context_length_exceeded"));
    }
    let mut reading = Reading::new(&loaded.model, texts, pooling).map_err(|e| ApiError::from(e).about("input"))?;
    let _room = reserve(service, loaded, longest).await?;
    service.metrics.prompt_tokens.fetch_add(total as u64, Relaxed);
    call.record.asks(&loaded.id, total);
    let mut rows = FIRST;
    while !reading.is_over() {
        let _turn = service.slices.acquire().await.map_err(|_| ApiError::stopping())?;
        let (sender, receiver) = oneshot::channel();
        let work = move || {
            let began = Instant::now();
            let done = reading.step(rows);
            // Nobody may listen any more.
            let _ = sender.send((reading, done, began.elapsed().as_secs_f64()));
        };
        service.commands.send(Command::Compute(Box::new(work))).map_err(|_| ApiError::stopping())?;
        let broke = |_| match service.draining() {
            Ok(()) => ApiError::new(500, "a step of the model broke down"),
            Err(stopping) => stopping,
        };
        let (back, done, seconds) = receiver.await.map_err(broke)?;
        let done = done?;
        let time = if service.metrics.running.load(Relaxed) == 0 { SECONDS.0 } else { SECONDS.1 };
        rows = ((time * done as f64 / seconds.max(1e-9)) as usize).clamp(ROWS.0, ROWS.1);
        reading = back;
    }
    Ok(reading.into_vectors())
}
