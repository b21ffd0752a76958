//! The table of routes: what there is, who may ask, what a body holds, who answers.

use crate::error::{ApiError, Dialect};
use crate::fields::Field;
use crate::http::answer::Outcome;
use crate::http::request::Call;
use crate::openai::{chat, completions, embeddings, models, rerank, responses};
use crate::sampling::SAMPLING;
use crate::service::Service;
use crate::{admin, anthropic, dashboard, ollama, openapi, state, tokens, web};
use hyper::Method;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// Who may ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Everybody.
    Open,
    /// Those with a key, where there are keys.
    Key,
    /// The operator.
    Admin,
}

/// What a route answers, by the names of [`crate::schemas`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Says {
    /// JSON.
    Json(&'static str),
    /// JSON, or a stream whose events hold that.
    Events(&'static str, &'static str),
    /// Something of this type.
    Other(&'static str),
}

/// Who answers.
type Handler = fn(Arc<Service>, Call) -> Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A route.
pub(crate) struct Route {
    /// The method.
    pub method: Method,
    /// The path; a last part `{id}` takes all that follows.
    pub path: &'static str,
    /// Who may ask.
    pub access: Access,
    /// What it is for.
    pub about: &'static str,
    /// What its body may hold.
    pub body: &'static [&'static [Field]],
    /// What it answers.
    pub says: Says,
    /// Who answers.
    pub call: Handler,
}

use Says::{Events, Json, Other};

macro_rules! routes {
    ($($method:ident $path:literal $access:ident $body:expr, $call:path => $says:expr, $about:literal;)*) => {
        &[$(Route {
            method: Method::$method, path: $path, access: Access::$access, about: $about, body: $body, says: $says,
            call: |service, call| Box::pin($call(service, call)),
        }),*]
    };
}

const CHAT_BODY: &[&[Field]] = &[chat::COMMON, SAMPLING, chat::CHAT];
const COMPLETION_BODY: &[&[Field]] = &[completions::COMPLETION, chat::COMMON, SAMPLING];
const RESPONSE_BODY: &[&[Field]] = &[responses::RESPONSE, SAMPLING];
const TOKENIZE_BODY: &[&[Field]] = &[tokens::TOKENIZE, tokens::CONVERSATION];

const CHAT: Says = Events("ChatCompletion", "ChatChunk");
const COMPLETION: Says = Events("Completion", "CompletionChunk");
const RESPONSE: Says = Events("Response", "ResponseEvent");

/// All routes.
pub(crate) static ROUTES: &[Route] = routes! {
    POST "/v1/chat/completions" Key CHAT_BODY, chat::run => CHAT, "Go on with a conversation.";
    POST "/chat/completions" Key CHAT_BODY, chat::run => CHAT, "As /v1/chat/completions.";
    POST "/v1/completions" Key COMPLETION_BODY, completions::run => COMPLETION, "Go on with a text.";
    POST "/completions" Key COMPLETION_BODY, completions::run => COMPLETION, "As /v1/completions.";
    POST "/v1/responses" Key RESPONSE_BODY, responses::run => RESPONSE, "Go on with a conversation, in items.";
    POST "/responses" Key RESPONSE_BODY, responses::run => RESPONSE, "As /v1/responses.";
    POST "/v1/embeddings" Key &[embeddings::EMBEDDING], embeddings::run => Json("Embeddings"), "Vectors of texts.";
    POST "/embeddings" Key &[embeddings::EMBEDDING], embeddings::run => Json("Embeddings"), "As /v1/embeddings.";
    POST "/v1/rerank" Key &[rerank::RERANK], rerank::run => Json("Ranking"), "Which documents are nearest to a question.";
    POST "/rerank" Key &[rerank::RERANK], rerank::run => Json("Ranking"), "As /v1/rerank.";
    GET "/v1/models" Key &[], models::list => Json("Models"), "The models that there are.";
    GET "/models" Key &[], models::list => Json("Models"), "As /v1/models.";
    GET "/v1/models/{id}" Key &[], models::one => Json("Model"), "One model.";
    POST "/tokenize" Key TOKENIZE_BODY, tokens::tokenize => Json("Tokens"), "A text or a conversation to tokens.";
    POST "/v1/tokenize" Key TOKENIZE_BODY, tokens::tokenize => Json("Tokens"), "As /tokenize.";
    POST "/detokenize" Key &[tokens::DETOKENIZE], tokens::detokenize => Json("Text"), "Tokens to a text.";
    POST "/v1/detokenize" Key &[tokens::DETOKENIZE], tokens::detokenize => Json("Text"), "As /detokenize.";
    POST "/apply-template" Key &[tokens::MODEL, tokens::CONVERSATION], tokens::apply_template => Json("Prompt"), "A conversation to a text.";
    POST "/v1/apply-template" Key &[tokens::MODEL, tokens::CONVERSATION], tokens::apply_template => Json("Prompt"), "As /apply-template.";
    POST "/v1/messages" Key &[anthropic::MESSAGE], anthropic::messages => Events("Message", "MessageEvent"), "Anthropic's messages.";
    POST "/v1/messages/count_tokens" Key &[anthropic::MESSAGE], anthropic::count => Json("TokenCount"), "How many tokens a message has.";
    GET "/api/version" Key &[], ollama::version => Json("Version"), "The version, as Ollama's clients ask for it.";
    GET "/api/tags" Key &[], ollama::tags => Json("Tags"), "The models, as Ollama's clients ask for them.";
    GET "/api/ps" Key &[], ollama::running => Json("Running"), "The loaded models, as Ollama's clients ask for them.";
    POST "/api/show" Key &[ollama::SHOW], ollama::show => Json("Shown"), "One model, as Ollama's clients ask for it.";
    GET "/openapi.json" Key &[], openapi::json => Other("application/json"), "This interface for programs.";
    GET "/docs" Key &[], openapi::page => Other("text/html"), "This interface for people.";
    GET "/admin/models" Admin &[], admin::models => Json("LoadedModels"), "What is loaded.";
    POST "/admin/models" Admin &[admin::LOAD], admin::load => Json("LoadedModel"), "Load a model.";
    DELETE "/admin/models/{id}" Admin &[], admin::unload => Json("UnloadedModel"), "Let a model go.";
    GET "/admin/adapters" Admin &[], admin::adapters => Json("Adapters"), "Which adapters are loaded.";
    POST "/admin/adapters" Admin &[admin::ADAPTER], admin::load_adapter => Json("Adapter"), "Load an adapter, in place of one of its name.";
    DELETE "/admin/adapters/{id}" Admin &[], admin::unload_adapter => Json("UnloadedAdapter"), "Let an adapter go.";
    GET "/admin/cache" Admin &[], admin::cache => Json("Cache"), "How much is remembered of prompts.";
    DELETE "/admin/cache" Admin &[], admin::clear => Json("Cleared"), "Forget all of it.";
    GET "/" Open &[], web::page => Other("text/html"), "A chat in the browser.";
    GET "/favicon.ico" Open &[], web::icon => Other("image/svg+xml"), "Its mark.";
    GET "/style.css" Open &[], web::style => Other("text/css"), "How it looks.";
    GET "/app.js" Open &[], web::script => Other("text/javascript"), "What it does.";
    GET "/dashboard" Open &[], web::dashboard => Other("text/html"), "The server at this moment, in the browser.";
    GET "/dashboard.css" Open &[], web::dashboard_style => Other("text/css"), "How that looks.";
    GET "/dashboard.js" Open &[], web::dashboard_script => Other("text/javascript"), "What that does.";
    GET "/dashboard.json" Key &[], dashboard::now => Json("Dashboard"), "The server at this moment.";
    GET "/health" Open &[], state::health => Json("Health"), "Whether the server lives.";
    GET "/ready" Open &[], state::ready => Json("Ready"), "Whether a request would be served now.";
    GET "/metrics" Key &[], state::metrics => Other("text/plain"), "Numbers for Prometheus.";
};

/// What a path leads to.
pub(crate) enum Found {
    /// A route, and what its path leaves open.
    Route(&'static Route, String),
    /// Routes that take other methods: which.
    Method(String),
    /// No route.
    Nothing,
}

/// The form in which errors of a path come.
pub(crate) fn dialect(path: &str) -> Dialect {
    match path {
        p if p.starts_with("/v1/messages") => Dialect::Anthropic,
        p if p.starts_with("/api/") => Dialect::Ollama,
        _ => Dialect::OpenAi,
    }
}

/// The route of a method and a path, and the form in which its errors come.
pub(crate) fn find(method: &Method, path: &str) -> (Found, Dialect) {
    let dialect = dialect(path);
    let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    let fits = |route: &Route| match route.path.strip_suffix("{id}") {
        None => (route.path == path).then(String::new),
        Some(head) => path.strip_prefix(head).filter(|rest| !rest.is_empty()).map(decoded),
    };
    let mut methods = Vec::new();
    for route in ROUTES {
        let Some(tail) = fits(route) else { continue };
        if route.method == *method || (*method == Method::HEAD && route.method == Method::GET) {
            return (Found::Route(route, tail), dialect);
        }
        methods.push(route.method.as_str());
    }
    match methods.is_empty() {
        true => (Found::Nothing, dialect),
        false => (Found::Method(methods.join(", ")), dialect),
    }
}

/// A part of a path with its `%xx` as bytes.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut i) = (Vec::with_capacity(bytes.len()), 0);
    while i < bytes.len() {
        let hex =
            (bytes[i] == b'%').then(|| text.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(h, 16).ok())).flatten();
        out.push(hex.unwrap_or(bytes[i]));
        i += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What is said of a path that leads nowhere.
pub(crate) fn nothing(path: &str) -> ApiError {
    let hint = if path.starts_with("/api/") {
        "; this is no Ollama: clients of OpenAI's interface take the base URL http://HOST:PORT/v1"
    } else if path.ends_with("/chat/completions")
        || path.ends_with("/completions")
        || path.ends_with("/responses")
        || path.ends_with("/models")
    {
        "; the base URL is http://HOST:PORT/v1"
    } else if path.ends_with("/messages") {
        "; the base URL of Anthropic's clients is http://HOST:PORT"
    } else {
        "; the base URL is http://HOST:PORT/v1, and /openapi.json lists what there is"
    };
    let shown: String = path.chars().filter(|c| !c.is_control()).take(100).collect();
    ApiError::new(404, format!("there is nothing at {shown}{hint}"))
}
