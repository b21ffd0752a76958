//! Answers: JSON, text, and events as they come.

use crate::error::ApiError;
use hyper::body::{Bytes, Frame, SizeHint};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::Value;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// A body.
pub(crate) enum Body {
    /// All of it.
    Whole(Option<Bytes>),
    /// Pieces as they come.
    Events(mpsc::Receiver<Bytes>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Body::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Body::Events(events) => events.poll_recv(cx).map(|b| b.map(|b| Ok(Frame::data(b)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Body::Events(_) => SizeHint::default(),
        }
    }
}

/// An answer.
pub(crate) type Answer = Response<Body>;

/// A text of some type.
pub(crate) fn text(status: u16, kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Body::Whole(Some(text.into())));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// JSON.
pub(crate) fn json(status: u16, value: &Value) -> Answer {
    text(status, "application/json", value.to_string())
}

/// One event of a stream: its name, where it has one, and its data.
pub(crate) fn event(name: Option<&str>, data: &str) -> Bytes {
    match name {
        Some(name) => format!("event: {name}\ndata: {data}\n\n").into(),
        None => format!("data: {data}\n\n").into(),
    }
}

/// Where a stream's events go.
pub(crate) struct Events(mpsc::Sender<Bytes>);

impl Events {
    /// Sends an event. An error when nobody listens any more.
    ///
    /// # Errors
    /// The client has gone.
    pub(crate) async fn send(&self, event: Bytes) -> Result<(), Gone> {
        self.0.send(event).await.map_err(|_| Gone)
    }

    /// Waits for something; ends at once when nobody listens any more, and sends `beat()` where it takes long.
    ///
    /// # Errors
    /// The client has gone.
    pub(crate) async fn during<T>(&self, work: impl Future<Output = T>, beat: impl Fn() -> Bytes) -> Result<T, Gone> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = self.0.closed() => return Err(Gone),
                () = tokio::time::sleep(BEAT) => self.send(beat()).await?,
            }
        }
    }
}

/// A stream is not silent for longer.
const BEAT: Duration = Duration::from_secs(8);

/// The client has gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone;

/// A stream of events that `write` sends.
pub(crate) fn stream<F: Future<Output = Result<(), Gone>> + Send + 'static>(write: impl FnOnce(Events) -> F) -> Answer {
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(write(Events(sender)));
    let mut answer = Response::new(Body::Events(receiver));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    answer
}

/// What a handler gives.
pub(crate) type Outcome = Result<Answer, ApiError>;
