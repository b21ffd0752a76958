//! What went wrong, as clients see it: a status and a text, in the form of the interface they speak.

use lapis::ErrorKind;
use serde_json::{Value, json};

/// Whose form an answer has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    /// `{"error": {...}}`
    OpenAi,
    /// `{"type": "error", ...}`
    Anthropic,
    /// `{"error": "text"}`
    Ollama,
}

/// A request that is not answered as it wished.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// What is wrong and what would be right.
    pub message: String,
    /// The field that it is about.
    pub param: Option<String>,
    /// A name for programs.
    pub code: Option<&'static str>,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
}

impl ApiError {
    /// An error of some status.
    pub fn new(status: u16, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A field that cannot be what it is.
    pub fn field(param: &str, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..ApiError::new(400, message) }
    }

    /// Something that will be possible later.
    pub fn later(status: u16, seconds: u64, message: impl Into<String>) -> ApiError {
        ApiError { retry_after: Some(seconds), ..ApiError::new(status, message) }
    }

    /// The server takes no more work.
    pub fn stopping() -> ApiError {
        ApiError::later(503, 10, "the server is stopping").code("draining")
    }

    /// The same with a name for programs.
    pub fn code(mut self, code: &'static str) -> ApiError {
        self.code = Some(code);
        self
    }

    /// What programs call it: its own name, or that of its kind.
    pub fn name(&self) -> &'static str {
        self.code.unwrap_or(kinds(self.status).0)
    }

    /// Whether it says that the server did not take the request, whatever is in it.
    pub fn is_refusal(&self) -> bool {
        matches!(self.status, 401 | 403 | 408 | 413 | 415 | 429 | 503)
    }

    /// The same about a field, unless it is about one already.
    pub fn about(mut self, param: &str) -> ApiError {
        self.param.get_or_insert_with(|| param.into());
        self
    }

    /// The body of the answer. Faults of the server give their number only: the log has the rest.
    pub fn body(&self, dialect: Dialect, request: &str) -> Value {
        let (openai, anthropic) = kinds(self.status);
        let hidden;
        let message = match self.status {
            500 => {
                hidden = format!("a fault of the server; its log has more under {request}");
                &hidden
            }
            _ => &self.message,
        };
        match dialect {
            Dialect::OpenAi => json!({"error": {
                "message": message, "type": openai, "param": self.param, "code": self.code,
            }}),
            Dialect::Anthropic => json!({
                "type": "error", "error": {"type": anthropic, "message": message}, "request_id": request,
            }),
            Dialect::Ollama => json!({"error": message}),
        }
    }
}

/// The `type` of OpenAI's and of Anthropic's errors.
fn kinds(status: u16) -> (&'static str, &'static str) {
    match status {
        401 => ("authentication_error", "authentication_error"),
        403 => ("permission_error", "permission_error"),
        404 | 405 | 415 => ("not_found_error", "not_found_error"),
        409 => ("conflict_error", "invalid_request_error"),
        413 => ("invalid_request_error", "request_too_large"),
        429 => ("rate_limit_error", "rate_limit_error"),
        500 => ("server_error", "api_error"),
        503 => ("overloaded_error", "overloaded_error"),
        _ => ("invalid_request_error", "invalid_request_error"),
    }
}

impl From<lapis::Error> for ApiError {
    fn from(error: lapis::Error) -> ApiError {
        let text = error.message();
        let text = text.split_once("] ").filter(|(op, _)| op.starts_with('[')).map_or(text, |(_, rest)| rest);
        match error.kind() {
            ErrorKind::Value | ErrorKind::Index | ErrorKind::Unsupported => ApiError::new(400, text),
            ErrorKind::Memory => ApiError::later(503, 5, text).code("no_memory"),
            _ => ApiError::new(500, text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_kind_in_each_form_and_faults_tell_their_number_alone() {
        for (status, openai, anthropic) in [
            (400, "invalid_request_error", "invalid_request_error"),
            (401, "authentication_error", "authentication_error"),
            (403, "permission_error", "permission_error"),
            (404, "not_found_error", "not_found_error"),
            (405, "not_found_error", "not_found_error"),
            (408, "invalid_request_error", "invalid_request_error"),
            (409, "conflict_error", "invalid_request_error"),
            (413, "invalid_request_error", "request_too_large"),
            (415, "not_found_error", "not_found_error"),
            (429, "rate_limit_error", "rate_limit_error"),
            (500, "server_error", "api_error"),
            (503, "overloaded_error", "overloaded_error"),
        ] {
            let error = ApiError::new(status, "at crates/x.rs:5").about("top_p").code("c");
            let shown =
                if status == 500 { "a fault of the server; its log has more under req_1" } else { "at crates/x.rs:5" };
            let whole = json!({"error": {"message": shown, "type": openai, "param": "top_p", "code": "c"}});
            assert_eq!(error.body(Dialect::OpenAi, "req_1"), whole);
            let inner = json!({"type": anthropic, "message": shown});
            let whole = json!({"type": "error", "error": inner, "request_id": "req_1"});
            assert_eq!(error.body(Dialect::Anthropic, "req_1"), whole);
            assert_eq!(error.body(Dialect::Ollama, "req_1"), json!({"error": shown}));
        }
    }
}
