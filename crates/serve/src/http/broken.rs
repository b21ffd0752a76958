//! What is no HTTP is answered in words, too.
//!
//! `hyper` answers lines that it cannot read by itself, with a status and no body, and no handler hears of them. Here
//! such an answer is found on its way out and gets the error object that every other refusal has.

use crate::error::{ApiError, Dialect};
use crate::service::{Service, random};
use crate::settings::Log;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection whose refusals all have a body.
pub(super) struct Worded<S> {
    inner: S,
    service: Arc<Service>,
    /// The form of the last request's interface, by its first bytes.
    dialect: Dialect,
    /// An answer in place of the one without words, while it is written.
    instead: Option<Instead>,
}

struct Instead {
    bytes: Vec<u8>,
    written: usize,
    /// Bytes that it takes the place of.
    of: usize,
}

/// The longest head that `hyper` writes by itself is shorter.
const HEAD: usize = 256;

impl<S> Worded<S> {
    pub(super) fn new(inner: S, service: Arc<Service>) -> Worded<S> {
        Worded { inner, service, dialect: Dialect::OpenAi, instead: None }
    }

    /// The bytes to write in place of these, if they end in an answer without words.
    fn find(&self, bufs: &[IoSlice<'_>]) -> Option<Instead> {
        let last = bufs.iter().rfind(|b| !b.is_empty())?;
        let (before, status) = silent(last)?;
        let error = match status {
            400 => ApiError::new(400, "this is no HTTP/1.1: the first line, a header or a length cannot be read"),
            _ => ApiError::new(413, "the headers or the address are too large").code("headers_too_large"),
        };
        let whole = answer(&self.service, self.dialect, &error);
        let of = bufs.iter().map(|b| b.len()).sum();
        let mut bytes: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).take(of - last.len() + before).collect();
        bytes.extend_from_slice(&whole);
        Some(Instead { bytes, written: 0, of })
    }
}

/// A refusal (400, or 413) as it is written to a connection that then ends; metrics and the log hear of it.
pub(super) fn answer(service: &Service, dialect: Dialect, error: &ApiError) -> Vec<u8> {
    let id = format!("req_{:016x}", random());
    let body = error.body(dialect, &id).to_string();
    let line = if error.status == 400 { "400 Bad Request" } else { "413 Payload Too Large" };
    service.metrics.answered("other", error.status, 0.0);
    service.metrics.erred(error);
    match service.settings.log {
        Log::Off => {}
        Log::Text => crate::log::line(&format!("no HTTP {} · {id}", error.status)),
        Log::Json => {
            crate::log::line(
                &serde_json::json!({"id": id, "status": error.status, "error": error.message}).to_string(),
            );
        }
    }
    let length = body.len();
    format!(
        "HTTP/1.1 {line}\r\ncontent-type: application/json\r\nx-request-id: {id}\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Where an answer without words begins at the end of some bytes, and its status. Ours all have a number.
fn silent(bytes: &[u8]) -> Option<(usize, u16)> {
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let from = bytes.len().saturating_sub(HEAD);
    let tail = std::str::from_utf8(&bytes[from..]).ok()?;
    let at = tail.rfind("HTTP/1.")?;
    let head = tail[at..].to_ascii_lowercase();
    let status = head.get(9..12)?.parse().ok().filter(|s| [400, 414, 431].contains(s))?;
    let ours = head.contains("x-request-id:") || !head.contains("\r\ncontent-length: 0\r\n");
    (!ours).then_some((from + at, status))
}

/// The interface that a request asks for, if these are its first bytes.
fn dialect(bytes: &[u8]) -> Option<Dialect> {
    let line = &bytes[..bytes.len().min(64)];
    let space =
        line.iter().position(|&b| b == b' ').filter(|&at| at > 0 && line[..at].iter().all(u8::is_ascii_uppercase))?;
    let path = &line[space + 1..];
    match path {
        p if p.starts_with(b"/v1/messages") => Some(Dialect::Anthropic),
        p if p.starts_with(b"/api/") => Some(Dialect::Ollama),
        p if p.starts_with(b"/") => Some(Dialect::OpenAi),
        _ => None,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Worded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Some(dialect) = dialect(&buf.filled()[before..]) {
            self.dialect = dialect;
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Worded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.instead.is_none() {
            this.instead = this.find(bufs);
        }
        let Some(instead) = &mut this.instead else { return Pin::new(&mut this.inner).poll_write_vectored(cx, bufs) };
        while instead.written < instead.bytes.len() {
            match Pin::new(&mut this.inner).poll_write(cx, &instead.bytes[instead.written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(0)),
                Poll::Ready(Ok(n)) => instead.written += n,
                other => return other,
            }
        }
        let of = instead.of;
        this.instead = None;
        Poll::Ready(Ok(of))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_words_is_told_from_ours() {
        let canned = "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        assert_eq!(silent(canned.as_bytes()), Some((0, 431)));
        let after = format!("HTTP/1.1 200 OK\r\nx-request-id: a\r\ncontent-length: 2\r\n\r\n{{}}{canned}");
        assert_eq!(silent(after.as_bytes()), Some((after.len() - canned.len(), 431)));
        for ours in [
            "HTTP/1.1 400 Bad Request\r\nx-request-id: a\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\n\r\n",
            "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
            "0\r\n\r\n",
            "data: {}\n\n",
            "",
        ] {
            assert_eq!(silent(ours.as_bytes()), None, "{ours}");
        }
    }

    #[test]
    fn first_bytes_say_whose_form_an_error_has() {
        assert_eq!(dialect(b"POST /v1/messages?beta=true HTTP/1.1\r\n"), Some(Dialect::Anthropic));
        assert_eq!(dialect(b"GET /api/tags HTTP/1.1\r\n"), Some(Dialect::Ollama));
        assert_eq!(dialect(b"GET /v1/models HTTP/1.1\r\n"), Some(Dialect::OpenAi));
        for other in [&b"hello\r\n"[..], b"", b"{\"a\": \"GET /api/\"}", b"\x16\x03 "] {
            assert_eq!(dialect(other), None);
        }
    }
}
