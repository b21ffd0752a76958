//! `/openapi.json` and `/docs`, from the table of routes, of fields and of [`crate::schemas`].

use crate::error::Dialect;
use crate::fields::Effect;
use crate::http::answer::{self, Outcome};
use crate::http::request::Call;
use crate::routes::{self, Access, ROUTES, Route, Says};
use crate::schemas;
use crate::service::Service;
use crate::web;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::sync::Arc;

/// What a route answers: by status, or any other, which is an error.
fn answers(route: &Route) -> Value {
    let error = match routes::dialect(route.path) {
        Dialect::OpenAi => "Error",
        Dialect::Anthropic => "AnthropicError",
        Dialect::Ollama => "OllamaError",
    };
    let of = |name: &str| json!({"schema": schemas::named(name)});
    let content = match route.says {
        Says::Json(name) => json!({"application/json": of(name)}),
        // Each event's data; one that ends the stream early is an error.
        Says::Events(name, event) => {
            let events = json!({"anyOf": [schemas::named(event), schemas::named(error)]});
            json!({"application/json": of(name), "text/event-stream": {"schema": events}})
        }
        Says::Other(kind) => json!({kind: {}}),
    };
    let mut answers = json!({
        "200": {"description": "The answer.", "content": content.clone()},
        "default": {"description": "An error.", "content": {"application/json": of(error)}},
    });
    // How the server is has the same form whether it is well or not.
    if matches!(route.path, "/health" | "/ready") {
        answers["503"] = json!({"description": "Not now.", "content": content});
    }
    answers
}

fn operation(route: &Route) -> Value {
    let answers = answers(route);
    let mut operation = json!({"summary": route.about, "responses": answers});
    operation["security"] = match route.access {
        Access::Open => json!([]),
        _ => json!([{"key": []}]),
    };
    if route.path.contains("{id}") {
        operation["parameters"] = json!([{"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}]);
    }
    if !route.body.is_empty() {
        let fields = || route.body.iter().flat_map(|t| t.iter());
        let mut properties: Map<String, Value> = Map::new();
        for field in fields() {
            // Of two fields with one name the first counts, as in `Body::read`.
            properties.entry(field.name).or_insert_with(|| field.schema());
        }
        let needed: Vec<&str> = fields().filter(|f| f.effect == Effect::Needed).map(|f| f.name).collect();
        let schema = json!({"type": "object", "properties": properties, "required": needed});
        operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    operation
}

fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "lapis", "version": env!("CARGO_PKG_VERSION"), "description": "Language models on your own machine."},
        "paths": paths,
        "components": {"schemas": schemas::all(), "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    })
}

/// The description for programs.
///
/// # Errors
/// None.
pub(crate) async fn json(_service: Arc<Service>, _call: Call) -> Outcome {
    Ok(answer::json(200, &document()))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The description for people.
///
/// # Errors
/// None.
pub(crate) async fn page(_service: Arc<Service>, _call: Call) -> Outcome {
    let mut out = String::from(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>Interface · lapis</title><link rel=\"icon\" href=\"/favicon.ico\" type=\"image/svg+xml\">\
         <link rel=\"stylesheet\" href=\"/style.css\"><link rel=\"stylesheet\" href=\"/dashboard.css\"></head>\
         <body class=\"board\"><header><h1>lapis: the interface</h1><nav aria-label=\"Pages\"><a href=\"/\">Chat</a>\
         <a href=\"/dashboard\">Dashboard</a><a href=\"/openapi.json\">openapi.json</a></nav></header><main class=\"docs\">",
    );
    for route in ROUTES {
        let who = match route.access {
            Access::Open => " <small>open</small>",
            Access::Key => "",
            Access::Admin => " <small>operator</small>",
        };
        let (method, path) = (&route.method, escaped(route.path));
        let _ = write!(out, "<section><h2><b>{method}</b> {path}{who}</h2><p>{}</p>", escaped(route.about));
        if !route.body.is_empty() {
            out.push_str("<details><summary>Fields</summary><dl>");
            for field in route.body.iter().flat_map(|t| t.iter()) {
                let note = match field.effect {
                    Effect::Needed => " needed",
                    Effect::Refused => " refused",
                    _ => "",
                };
                let (name, about) = (escaped(field.name), escaped(field.about));
                let _ = write!(out, "<dt><code>{name}</code>{note}</dt><dd>{about}</dd>");
            }
            out.push_str("</dl></details>");
        }
        out.push_str("</section>");
    }
    out.push_str("</main></body></html>");
    Ok(web::guarded(answer::text(200, "text/html; charset=utf-8", out)))
}
