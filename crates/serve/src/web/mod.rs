//! The pages: at `/` a chat that lives in the browser, at `/dashboard` the server at this moment. Files inside the program,
//! nothing from elsewhere.

use crate::error::ApiError;
use crate::http::answer::{self, Answer, Outcome};
use crate::http::request::Call;
use crate::service::Service;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue};
use std::sync::Arc;

/// What the page may do: its own files, and this server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(service: &Service, kind: &'static str, text: &'static str) -> Outcome {
    if !service.settings.ui {
        return Err(ApiError::new(404, "this server was started without a page; the base URL is http://HOST:PORT/v1"));
    }
    Ok(guarded(answer::text(200, kind, text)))
}

/// A page with what browsers are told about it.
pub(crate) fn guarded(mut answer: Answer) -> Answer {
    let headers = answer.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    headers.insert(HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer"));
    answer
}

/// The page.
///
/// # Errors
/// The server has none.
pub(crate) async fn page(service: Arc<Service>, _call: Call) -> Outcome {
    file(&service, "text/html; charset=utf-8", include_str!("index.html"))
}

/// Its mark, which browsers ask for beside whatever they show.
///
/// # Errors
/// As [`page`].
pub(crate) async fn icon(service: Arc<Service>, _call: Call) -> Outcome {
    file(&service, "image/svg+xml", include_str!("icon.svg"))
}

/// How it looks.
///
/// # Errors
/// As [`page`].
pub(crate) async fn style(service: Arc<Service>, _call: Call) -> Outcome {
    file(&service, "text/css; charset=utf-8", include_str!("style.css"))
}

/// What it does.
///
/// # Errors
/// As [`page`].
pub(crate) async fn script(service: Arc<Service>, _call: Call) -> Outcome {
    file(&service, "text/javascript; charset=utf-8", include_str!("app.js"))
}

/// The server at this moment.
///
/// # Errors
/// As [`page`].
pub(crate) async fn dashboard(service: Arc<Service>, _call: Call) -> Outcome {
    file(&service, "text/html; charset=utf-8", include_str!("dashboard.html"))
}

/// How it looks, beside [`style`].
///
/// # Errors
/// As [`page`].
pub(crate) async fn dashboard_style(service: Arc<Service>, _call: Call) -> Outcome {
    file(&service, "text/css; charset=utf-8", include_str!("dashboard.css"))
}

/// What it does.
///
/// # Errors
/// As [`page`].
pub(crate) async fn dashboard_script(service: Arc<Service>, _call: Call) -> Outcome {
    file(&service, "text/javascript; charset=utf-8", include_str!("dashboard.js"))
}
