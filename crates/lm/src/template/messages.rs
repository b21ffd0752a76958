//! Messages as people send them, made into what templates expect.
//!
//! Contents that are lists of texts become one text, none becomes the empty one, arguments of calls that come as JSON
//! text become objects. Templates that know nothing of a role, or take one system message, lose nothing: `developer` is
//! then `system`, and system messages are one.

use super::{Chat, Template};
use lapis::{Error, Result};
use serde_json::{Map, Value, json};

/// The text of a content: a string, none, or parts of it.
fn text(content: &Value, at: usize) -> Result<Value> {
    let wrong = |what: &str| Error::value(format!("[chat] messages[{at}].content {what}"));
    match content {
        Value::Null => Ok(json!("")),
        Value::String(_) => Ok(content.clone()),
        Value::Array(parts) => {
            let mut joined = String::new();
            for part in parts {
                let kind = part.get("type").and_then(Value::as_str);
                let piece = match (kind, part) {
                    (_, Value::String(piece)) => Some(piece.as_str()),
                    (Some("text" | "input_text" | "output_text"), part) => part.get("text").and_then(Value::as_str),
                    (Some("refusal"), part) => part.get("refusal").and_then(Value::as_str),
                    (Some(kind), _) => {
                        return Err(wrong(&format!("has a part of type {kind:?}; this model reads text only")));
                    }
                    _ => None,
                };
                joined.push_str(
                    piece.ok_or_else(|| wrong("has a part that is no text: {\"type\": \"text\", \"text\": ...} is"))?,
                );
            }
            Ok(Value::String(joined))
        }
        _ => Err(wrong("is neither a text nor a list of parts")),
    }
}

/// Arguments of calls are objects for templates; clients keep them as text.
fn calls(message: &mut Map<String, Value>) {
    let open = |f: &mut Value| {
        if let Some(arguments) = f.get_mut("arguments")
            && let Some(text) = arguments.as_str()
            && let Ok(object @ Value::Object(_)) =
                serde_json::from_str(if text.trim().is_empty() { "{}" } else { text })
        {
            *arguments = object;
        }
    };
    match message.get_mut("tool_calls") {
        Some(Value::Array(calls)) => calls.iter_mut().filter_map(|c| c.get_mut("function")).for_each(open),
        // None is written by clients that write all fields.
        Some(Value::Null) => drop(message.remove("tool_calls")),
        _ => {}
    }
}

/// Calls and results in their older form are those that templates know.
fn modern(message: &mut Map<String, Value>) {
    if let Some(call) = message.remove("function_call").filter(Value::is_object)
        && !message.get("tool_calls").is_some_and(Value::is_array)
    {
        message.insert("tool_calls".into(), json!([{"id": "call_0", "type": "function", "function": call}]));
    }
    if message.get("role").is_some_and(|role| role == "function") {
        message.insert("role".into(), json!("tool"));
        message.entry("tool_call_id").or_insert(json!("call_0"));
    }
}

/// Messages with plain contents. `developer` stays where `keeps_developer`.
fn plain(messages: &Value, keeps_developer: bool) -> Result<Vec<Value>> {
    let all = messages.as_array().ok_or_else(|| Error::value("[chat] messages is not a list"))?;
    let mut done = Vec::new();
    for (at, message) in all.iter().enumerate() {
        let wrong = |what: &str| Error::value(format!("[chat] messages[{at}] {what}"));
        let mut message = message.as_object().ok_or_else(|| wrong("is not an object"))?.clone();
        let role = message.get("role").and_then(Value::as_str).ok_or_else(|| wrong("has no role"))?;
        if role == "developer" && !keeps_developer {
            message.insert("role".into(), json!("system"));
        }
        let content = text(message.get("content").unwrap_or(&Value::Null), at)?;
        message.insert("content".into(), content);
        modern(&mut message);
        calls(&mut message);
        done.push(Value::Object(message));
    }
    Ok(done)
}

fn is_system(message: &Value) -> bool {
    matches!(message["role"].as_str(), Some("system" | "developer"))
}

/// One system message, at the beginning, that says what all of them said.
fn merged(messages: &[Value]) -> Vec<Value> {
    let texts: Vec<&str> = messages.iter().filter(|m| is_system(m)).filter_map(|m| m["content"].as_str()).collect();
    let first = json!({"role": "system", "content": texts.join("\n\n")});
    std::iter::once(first).chain(messages.iter().filter(|m| !is_system(m)).cloned()).collect()
}

impl Template {
    /// As [`Template::render`], for messages as clients send them.
    ///
    /// # Errors
    /// As [`Template::render`]; a message that is none, with its place.
    pub fn converse(&self, chat: &Chat<'_>) -> Result<String> {
        let messages = plain(chat.messages, self.source().contains("developer"))?;
        let several = messages.iter().filter(|m| is_system(m)).count() > 1;
        let late = messages.iter().skip(1).any(is_system);
        let render = |messages: &Value| self.render(&Chat { messages, ..chat.clone() });
        let whole = Value::Array(messages);
        let rendered = render(&whole);
        if !several && !late {
            return rendered;
        }
        let Value::Array(messages) = whole else { return rendered };
        let told = |text: &String| {
            let systems = messages.iter().filter(|m| is_system(m));
            systems.filter_map(|m| m["content"].as_str()).all(|content| text.contains(content.trim()))
        };
        match rendered {
            Ok(text) if told(&text) => Ok(text),
            _ => render(&Value::Array(merged(&messages))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\
                         {% for c in m.tool_calls or [] %} {{ c.function.arguments.city }}{% endfor %}{{ '\\n' }}{% endfor %}";

    fn said(source: &str, messages: Value) -> Result<String> {
        Template::new(source).unwrap().converse(&Chat { messages: &messages, ..Chat::default() })
    }

    #[test]
    fn parts_are_joined_and_arguments_opened() {
        let got = said(
            PLAIN,
            json!([
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": null,
                 "tool_calls": [{"function": {"name": "f", "arguments": "{\"city\": \"Rome\"}"}}]},
                {"role": "assistant", "content": "c", "tool_calls": null},
            ]),
        );
        assert_eq!(got.unwrap(), "[user] ab\n[assistant]  Rome\n[assistant] c\n");
    }

    #[test]
    fn calls_in_their_older_form_are_calls() {
        let older = json!([
            {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{\"city\": \"Rome\"}"}},
            {"role": "function", "name": "f", "content": "sunny"},
            {"role": "assistant", "content": "It is sunny.", "function_call": null},
        ]);
        assert_eq!(said(PLAIN, older).unwrap(), "[assistant]  Rome\n[tool] sunny\n[assistant] It is sunny.\n");
    }

    #[test]
    fn no_system_message_is_lost() {
        let two = json!([{"role": "system", "content": "one"}, {"role": "user", "content": "hi"},
                         {"role": "developer", "content": "two"}]);
        assert_eq!(said(PLAIN, two.clone()).unwrap(), "[system] one\n[user] hi\n[system] two\n");
        let strict = "{% if messages[0].role == 'system' %}<{{ messages[0].content }}>{% set messages = messages[1:] %}\
                      {% endif %}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('late') }}\
                      {% endif %}{{ m.content }}{% endfor %}";
        assert_eq!(said(strict, two.clone()).unwrap(), "<one\n\ntwo>hi");
        let deaf = "{% if messages[0].role == 'system' %}<{{ messages[0].content }}>{% endif %}";
        assert_eq!(said(deaf, two).unwrap(), "<one\n\ntwo>");
    }

    #[test]
    fn what_is_no_message_is_named() {
        let why = |messages| said(PLAIN, messages).unwrap_err().to_string();
        assert!(why(json!([{"role": "user", "content": 5}])).contains("messages[0].content is neither"));
        assert!(why(json!([{"role": "user", "content": "a"}, 7])).contains("messages[1] is not an object"));
        let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]);
        assert!(why(image).contains("\"image_url\"; this model reads text only"));
    }
}
