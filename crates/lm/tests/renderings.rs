//! Published chat templates render as transformers renders them: text for text, and where it raises, an error.
//!
//! Reads `templates/renderings.json` of the data beside the repository.

mod shared;

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use lapis_lm::template::{Chat, Template};
use serde_json::{Map, Value};
use shared::shared;

/// 2024-07-26 12:34:56, the time at which the expected texts were made.
const NOW: Duration = Duration::from_secs(1_721_997_296);

#[test]
fn renderings_equal_those_of_transformers() {
    let Some(path) = shared("data/templates/renderings.json") else { return };
    let data: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let templates: BTreeMap<&str, _> = data["templates"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, source)| (name.as_str(), Template::new(source.as_str().unwrap())))
        .collect();
    let (mut total, mut wrong) = (0, Vec::new());
    for case in data["renderings"].as_array().unwrap() {
        let (name, context) = (case["template"].as_str().unwrap(), case["context"].as_str().unwrap());
        total += 1;
        let found = match &templates[name] {
            Ok(template) => render(template, &data["contexts"][context]),
            Err(e) => Err(e.clone()),
        };
        let fault = match (&found, case["output"].as_str(), case["error"].as_str()) {
            (Ok(text), Some(expected), _) => (text != expected).then(|| difference(text, expected)),
            (Err(e), _, Some(expected)) => raised(expected)
                .filter(|message| !e.message().contains(message))
                .map(|message| format!("raised {e:?}, not {message:?}")),
            (Ok(text), _, Some(expected)) => Some(format!("gave {text:?}, not the error {expected:?}")),
            (Err(e), ..) => Some(format!("raised {e:?}")),
            _ => Some("the case has neither output nor error".into()),
        };
        wrong.extend(fault.map(|fault| format!("{name} x {context}: {fault}")));
    }
    println!("{} of {total} renderings are equal", total - wrong.len());
    assert!(total > 0);
    assert!(wrong.is_empty(), "{} of {total} renderings differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn render(template: &Template, context: &Value) -> lapis::Result<String> {
    let mut keywords: Map<String, Value> = context.as_object().unwrap().clone();
    let mut take = |name: &str| keywords.remove(name).unwrap_or(Value::Null);
    let (messages, tools, prompt) = (take("messages"), take("tools"), take("add_generation_prompt"));
    template.render(&Chat {
        messages: &messages,
        tools: (!tools.is_null()).then_some(&tools),
        add_generation_prompt: prompt.as_bool().unwrap_or(false),
        keywords: Some(&keywords),
        now: Some(UNIX_EPOCH + NOW),
        ..Chat::default()
    })
}

/// The text of an exception that the template itself raises.
fn raised(error: &str) -> Option<&str> {
    error.strip_prefix("TemplateError: ")
}

/// Where two texts part.
fn difference(found: &str, expected: &str) -> String {
    let at = found.char_indices().zip(expected.chars()).find(|((_, a), b)| a != b);
    let at = at.map_or(found.len().min(expected.len()), |((at, _), _)| at);
    let part = |text: &str| text.get(at..).unwrap_or("").chars().take(60).collect::<String>();
    format!("gave {:?}, not {:?} after {at} bytes", part(found), part(expected))
}
