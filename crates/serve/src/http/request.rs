//! A request from its first byte to its answer: checks in their order, then the route's handler.

use super::answer::{Answer, Body, json};
use super::guard::{self, Origin};
use crate::error::{ApiError, Dialect};
use crate::record::Record;
use crate::routes::{self, Access, Found, Route};
use crate::service::{Owner, Service, late, random};
use crate::settings::{Log, Settings};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ALLOW, CONNECTION,
    CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, VARY,
};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::task::JoinSet;

/// Bytes of a body at most.
const BODY: u64 = 32 << 20;
/// Bytes and lines of headers at most.
const HEADERS: usize = 32 << 10;
const LINES: usize = 100;
/// Bytes of the body of a refused request that are read, and how long.
const SHORT: u64 = 1 << 20;
const LINGER: Duration = Duration::from_secs(1);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The same where Anthropic's clients look for it.
const ANTHROPIC_ID: HeaderName = HeaderName::from_static("request-id");
const WARNINGS: HeaderName = HeaderName::from_static("x-lapis-warnings");
const ALLOW_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");
const ASK_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");

/// What a handler is given.
pub(crate) struct Call {
    /// What the route's path leaves open.
    pub tail: String,
    /// The body.
    pub body: Bytes,
    /// Whose request it is.
    pub owner: Owner,
    /// Its number, for the log.
    pub id: String,
    /// What is known of it.
    pub record: Arc<Record>,
}

/// How a connection came.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    /// From this machine's own addresses only.
    pub loopback: bool,
    /// Through a Unix socket.
    pub unix: bool,
}

/// Answers a request.
pub(crate) async fn answer(service: Arc<Service>, request: Request<Incoming>, way: Way) -> Answer {
    let id = request_id(request.headers());
    let origin = guard::check_origin(request.headers(), &service.settings);
    let path = request.uri().path().to_string();
    let method = request.method().clone();
    let (found, dialect) = routes::find(&method, &path);
    let name = match &found {
        Found::Route(route, _) => route.path,
        _ => "other",
    };
    let asked_headers = request.headers().get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let network = request.headers().contains_key(ASK_NETWORK);
    let record = Record::new(&id, [method.as_str(), &path], name, &service.settings, &service.metrics);
    let known = || {
        let target = request.uri().authority().map(|a| a.as_str());
        way.unix || guard::check_host(request.headers(), target, &service.settings, way.loopback).is_ok()
    };
    let done = if method == Method::OPTIONS && origin.is_ok() && known() {
        let (parts, mut body) = request.into_parts();
        let mut answer = preflight(asked_headers, network);
        if !rest(&parts.headers, &mut body).await {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(answer)
    } else {
        let work = attend(&service, request, way, found, Arc::clone(&record));
        match service.settings.request_timeout {
            None => work.await,
            Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or(Err(late(limit).into())),
        }
    };
    if let Err(refusal) = &done {
        record.failed(&refusal.error);
    }
    let mut answer = done.unwrap_or_else(|e| e.answer(dialect, &id));
    let headers = answer.headers_mut();
    if let Ok(Origin::Allowed(value)) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, value);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-request-id, x-lapis-warnings"));
        headers.insert(VARY, HeaderValue::from_static("origin"));
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        if dialect == Dialect::Anthropic {
            headers.insert(ANTHROPIC_ID, value.clone());
        }
        headers.insert(REQUEST_ID, value);
    }
    if let Some(warnings) = headers.get(WARNINGS).and_then(|v| v.to_str().ok()) {
        for warning in warnings.split("; ") {
            match service.settings.log {
                Log::Off => {}
                Log::Text => crate::log::once(&format!("warning: {path}: {warning}")),
                Log::Json => crate::log::once(&serde_json::json!({"path": path, "warning": warning}).to_string()),
            }
        }
    }
    record.answered(answer.status().as_u16());
    answer
}

/// The checks between an allowed origin and a handler, and the handler.
async fn attend(
    service: &Arc<Service>,
    request: Request<Incoming>,
    way: Way,
    found: Found,
    record: Arc<Record>,
) -> Result<Answer, Refusal> {
    let (parts, mut body) = request.into_parts();
    let (route, tail, owner) = match check(&service.settings, &parts, way, found) {
        Ok(passed) => passed,
        Err(refusal) => {
            return Err(Refusal { closes: !rest(&parts.headers, &mut body).await, ..refusal });
        }
    };
    record.of(&owner.name);
    let body = read(&parts.headers, body, service.settings.body_stall).await;
    let body = body.map_err(|error| Refusal { closes: true, ..error.into() })?;
    let call = Call { tail, body, owner, id: record.id.clone(), record };
    // A task of its own: a fault in it is an answer, and it ends with the connection.
    let mut task = JoinSet::new();
    task.spawn((route.call)(Arc::clone(service), call));
    match task.join_next().await {
        Some(Ok(outcome)) => outcome.map_err(Refusal::from),
        _ => {
            service.metrics.faults.fetch_add(1, Relaxed);
            Err(ApiError::new(500, "the handler broke down").into())
        }
    }
}

/// An error, and what its answer needs beside it.
#[derive(Clone)]
struct Refusal {
    error: ApiError,
    /// The methods that the route takes.
    allow: Option<String>,
    /// The body was not read: the connection cannot go on.
    closes: bool,
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Refusal {
        Refusal { error, allow: None, closes: false }
    }
}

impl Refusal {
    fn answer(&self, dialect: Dialect, id: &str) -> Answer {
        let mut answer = json(self.error.status, &self.error.body(dialect, id));
        let headers = answer.headers_mut();
        if let Some(seconds) = self.error.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allowed) = self.allow.as_ref().and_then(|a| HeaderValue::from_str(a).ok()) {
            headers.insert(ALLOW, allowed);
        }
        if self.closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

/// What can be said of a request before its body: the route, what its path leaves open, and whose request it is.
fn check(
    settings: &Settings,
    parts: &Parts,
    way: Way,
    found: Found,
) -> Result<(&'static Route, String, Owner), Refusal> {
    guard::check_origin(&parts.headers, settings)?;
    if !way.unix {
        let target = parts.uri.authority().map(|a| a.as_str());
        guard::check_host(&parts.headers, target, settings, way.loopback)?;
    }
    let size: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let lines = parts.headers.len();
    if size > HEADERS || lines > LINES {
        let why = format!("the headers have {size} bytes in {lines} lines; {HEADERS} bytes in {LINES} lines are taken");
        return Err(ApiError::new(413, why).code("headers_too_large").into());
    }
    let (route, tail) = match found {
        Found::Route(route, tail) => (route, tail),
        // Whether a route exists is told to those with a key only.
        Found::Method(allowed) => {
            guard::check_key(&parts.headers, settings)?;
            let error = ApiError::new(405, format!("this route takes {allowed}"));
            return Err(Refusal { allow: Some(allowed), ..error.into() });
        }
        Found::Nothing => {
            guard::check_key(&parts.headers, settings)?;
            return Err(routes::nothing(parts.uri.path()).into());
        }
    };
    let owner = match route.access {
        Access::Open => Owner { number: 0, name: "-".into() },
        Access::Key => guard::check_key(&parts.headers, settings)?,
        Access::Admin => {
            guard::check_admin(&parts.headers, settings, way.unix)?;
            Owner { number: 0, name: "admin".into() }
        }
    };
    if parts.method == Method::POST {
        let kind = parts.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let plain = kind.split(';').next().unwrap_or("").trim();
        if !plain.eq_ignore_ascii_case("application/json") {
            let shown: String = plain.chars().take(60).collect();
            let error = ApiError::new(415, format!("the content type must be application/json, and is {shown:?}"))
                .code("unsupported_media_type");
            return Err(error.into());
        }
    }
    Ok((route, tail, owner))
}

/// Reads a body that nobody wants, if it is short: a client that still writes does not hear, and what is left over
/// ends the connection. `false` if it was not read.
async fn rest(headers: &HeaderMap, body: &mut Incoming) -> bool {
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    stated(headers).is_none_or(|n| n <= SHORT) && tokio::time::timeout(LINGER, all).await.is_ok()
}

/// How long the body says it is.
fn stated(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok())
}

/// The whole body.
async fn read(headers: &HeaderMap, mut body: Incoming, stall: Duration) -> Result<Bytes, ApiError> {
    let large = || ApiError::new(413, format!("the body is larger than {} MiB", BODY >> 20)).code("body_too_large");
    let stated = stated(headers);
    if stated.is_some_and(|n| n > BODY) {
        return Err(large());
    }
    let mut all = Vec::with_capacity(stated.unwrap_or(0) as usize);
    loop {
        let frame = match tokio::time::timeout(stall, body.frame()).await {
            Err(_) => return Err(ApiError::new(408, "the body does not come").code("body_timeout")),
            Ok(None) => return Ok(all.into()),
            Ok(Some(Err(e))) => return Err(ApiError::new(400, format!("the body broke off: {e}"))),
            Ok(Some(Ok(frame))) => frame,
        };
        if let Ok(data) = frame.into_data() {
            if all.len() as u64 + data.len() as u64 > BODY {
                return Err(large());
            }
            all.extend_from_slice(&data);
        }
    }
}

/// The caller's number for a request, if it is a plain one, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let plain = |id: &&str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    };
    let given = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok()).filter(plain);
    given.map_or_else(|| format!("req_{:016x}", random()), str::to_string)
}

/// An answer to a browser that asks whether a page may ask.
fn preflight(asked: Option<HeaderValue>, network: bool) -> Answer {
    let mut answer = Response::new(Body::Whole(None));
    *answer.status_mut() = hyper::StatusCode::NO_CONTENT;
    let headers = answer.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE, OPTIONS"));
    let allowed = asked.as_ref().and_then(|v| v.to_str().ok()).unwrap_or("content-type");
    let known = |name: &&str| {
        matches!(*name, "authorization" | "content-type" | "accept" | "x-api-key" | "x-request-id" | "user-agent")
            || ["x-stainless-", "anthropic-", "openai-"].iter().any(|p| name.starts_with(p))
    };
    let lower = allowed.to_ascii_lowercase();
    let list: Vec<&str> = lower.split(',').map(str::trim).filter(known).collect();
    if let Ok(value) = HeaderValue::from_str(&list.join(", ")) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, value);
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    if network {
        headers.insert(ALLOW_NETWORK, HeaderValue::from_static("true"));
    }
    answer
}

/// Puts warnings in the header of an answer.
pub(crate) fn warn(answer: &mut Answer, warnings: &[String]) {
    if warnings.is_empty() {
        return;
    }
    let text: String = warnings.join("; ").chars().filter(|c| (' '..='~').contains(c)).take(1000).collect();
    if let Ok(value) = HeaderValue::from_str(&text) {
        answer.headers_mut().insert(WARNINGS, value);
    }
}
