//! Items of a response's input as the messages of a chat.

use super::offered::Offered;
use crate::error::ApiError;
use crate::openai::custom;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Items at most.
const ITEMS: usize = 10_000;

fn wrong(at: &str, what: impl std::fmt::Display) -> ApiError {
    ApiError { param: Some("input".into()), ..ApiError::new(400, format!("{at} {what}")) }
}

fn text<'a>(item: &'a Value, key: &str) -> Option<&'a str> {
    item.get(key).and_then(Value::as_str)
}

/// The text of a content or of what a tool gave: a text, or parts of it.
fn joined(content: Option<&Value>, at: &str) -> Result<String, ApiError> {
    let parts = match content {
        None | Some(Value::Null) => return Ok(String::new()),
        Some(Value::String(text)) => return Ok(text.clone()),
        Some(Value::Array(parts)) => parts,
        Some(_) => return Err(wrong(at, "must be a text or a list of parts")),
    };
    let mut all = String::new();
    for part in parts {
        let key = match text(part, "type") {
            Some("input_text" | "output_text" | "text" | "reasoning_text" | "summary_text") => "text",
            Some("refusal") => "refusal",
            Some(kind) => {
                let kind = kind.chars().take(60).collect::<String>();
                return Err(wrong(at, format_args!("has a part of type {kind:?}; this model reads text only")));
            }
            None => return Err(wrong(at, "has a part without a type")),
        };
        all += text(part, key).ok_or_else(|| wrong(at, format_args!("has a part without {key}")))?;
    }
    Ok(all)
}

/// The messages so far.
struct Reader<'a> {
    offered: &'a Offered,
    messages: Vec<Value>,
    /// What was thought before the next message of the model.
    thoughts: String,
    /// Names of functions by calls.
    called: HashMap<String, String>,
}

impl Reader<'_> {
    /// The message of the model that calls belong to: the latest, or a new one.
    fn caller(&mut self) -> &mut Value {
        if self.messages.last().is_none_or(|m| m["role"] != "assistant") || !self.thoughts.is_empty() {
            self.push("assistant", String::new());
        }
        let at = self.messages.len() - 1;
        &mut self.messages[at]
    }

    fn push(&mut self, role: &str, content: String) {
        let mut message = json!({"role": role, "content": content});
        let thoughts = std::mem::take(&mut self.thoughts);
        if role == "assistant" && !thoughts.is_empty() {
            message["reasoning_content"] = json!(thoughts);
        }
        self.messages.push(message);
    }

    fn call(&mut self, item: &Value, at: &str, custom: bool) -> Result<(), ApiError> {
        let name = text(item, "name").ok_or_else(|| wrong(at, "has no name"))?;
        let id = text(item, "call_id").ok_or_else(|| wrong(at, "has no call_id"))?;
        let arguments = match custom {
            true => custom::arguments(&joined(item.get("input"), &format!("{at}.input"))?),
            false => item.get("arguments").cloned().unwrap_or(json!("{}")),
        };
        let name = self.offered.known(text(item, "namespace"), name);
        self.called.insert(id.to_string(), name.clone());
        let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let message = self.caller();
        match message.get_mut("tool_calls").and_then(Value::as_array_mut) {
            Some(calls) => calls.push(call),
            None => message["tool_calls"] = json!([call]),
        }
        Ok(())
    }

    fn item(&mut self, item: &Value, at: &str, warnings: &mut Vec<String>) -> Result<(), ApiError> {
        if !item.is_object() {
            return Err(wrong(at, "must be an object"));
        }
        let kind = text(item, "type").unwrap_or(if item.get("role").is_some() { "message" } else { "item_reference" });
        match kind {
            "message" => {
                let role = text(item, "role").ok_or_else(|| wrong(at, "has no role"))?;
                if !matches!(role, "user" | "assistant" | "system" | "developer") {
                    return Err(wrong(at, "has a role that is none of user, assistant, system and developer"));
                }
                let content = joined(item.get("content"), &format!("{at}.content"))?;
                self.push(role, content);
            }
            "function_call" => self.call(item, at, false)?,
            "custom_tool_call" => self.call(item, at, true)?,
            "function_call_output" | "custom_tool_call_output" => {
                let id = text(item, "call_id").ok_or_else(|| wrong(at, "has no call_id"))?;
                let content = joined(item.get("output"), &format!("{at}.output"))?;
                let mut message = json!({"role": "tool", "tool_call_id": id, "content": content});
                if let Some(name) = self.called.get(id) {
                    message["name"] = json!(name);
                }
                self.messages.push(message);
            }
            "reasoning" => {
                let own = joined(item.get("content"), &format!("{at}.content"))?;
                let told = if own.is_empty() { joined(item.get("summary"), &format!("{at}.summary"))? } else { own };
                if !self.thoughts.is_empty() && !told.is_empty() {
                    self.thoughts.push('\n');
                }
                self.thoughts += &told;
            }
            "item_reference" => {
                return Err(wrong(at, "refers to an item, and nothing is stored: send the item itself"));
            }
            other => {
                let other: String = other.chars().take(60).collect();
                warnings.push(format!("{at}: an item of type {} was left out", other.escape_default()));
            }
        }
        Ok(())
    }
}

/// The messages of an input.
///
/// # Errors
/// Items that are none, that hold more than text, or that refer to what is not there.
pub(crate) fn messages(
    input: &Value,
    instructions: Option<&str>,
    offered: &Offered,
    warnings: &mut Vec<String>,
) -> Result<Vec<Value>, ApiError> {
    let mut reader = Reader { offered, messages: Vec::new(), thoughts: String::new(), called: HashMap::new() };
    if let Some(told) = instructions.filter(|t| !t.is_empty()) {
        reader.push("system", told.to_string());
    }
    match input {
        Value::String(text) => reader.push("user", text.clone()),
        Value::Array(items) if items.len() > ITEMS => {
            return Err(wrong("input", format_args!("has {} items; {ITEMS} are taken", items.len())));
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                reader.item(item, &format!("input[{i}]"), warnings)?;
            }
        }
        _ => return Err(wrong("input", "must be a text or a list of items")),
    }
    // Clients ask with nothing at all to see whether somebody answers; templates want somebody who speaks.
    if reader.messages.iter().all(|m| m["role"] == "system" || m["role"] == "developer") {
        reader.push("user", String::new());
    }
    Ok(reader.messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: Value) -> (Result<Vec<Value>, ApiError>, Vec<String>) {
        let tools = json!([{"type": "custom", "name": "patch"},
            {"type": "namespace", "name": "mail", "tools": [{"type": "function", "name": "send"}]}]);
        let mut warnings = Vec::new();
        let offered = Offered::read(tools.as_array().unwrap(), &mut warnings).unwrap();
        (messages(&input, Some("Be kind."), &offered, &mut warnings), warnings)
    }

    #[test]
    fn items_are_messages() {
        let (got, warnings) = read(json!([
            {"role": "user", "content": "hi"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "a", "name": "send", "namespace": "mail", "arguments": "{\"to\": 1}"},
            {"type": "custom_tool_call", "call_id": "b", "name": "patch", "input": "+ x"},
            {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "sent"}]},
            {"type": "custom_tool_call_output", "call_id": "b", "output": "done"},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "xyz"},
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        ]));
        assert_eq!(
            got.unwrap(),
            [
                json!({"role": "system", "content": "Be kind."}),
                json!({"role": "user", "content": "hi"}),
                json!({"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "mail__send", "arguments": "{\"to\": 1}"}},
                    {"id": "b", "type": "function", "function": {"name": "patch", "arguments": {"input": "+ x"}}}]}),
                json!({"role": "tool", "tool_call_id": "a", "content": "sent", "name": "mail__send"}),
                json!({"role": "tool", "tool_call_id": "b", "content": "done", "name": "patch"}),
                json!({"role": "developer", "content": "Be brief."}),
            ]
        );
        assert_eq!(warnings, ["input[7]: an item of type web_search_call was left out"]);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for bad in [
            json!(5),
            json!([5]),
            json!([{"id": "msg_1"}]),
            json!([{"type": "item_reference", "id": "msg_1"}]),
            json!([{"role": "robot", "content": "hi"}]),
            json!([{"role": "user", "content": 5}]),
            json!([{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]),
            json!([{"type": "function_call", "name": "f"}]),
            json!([{"type": "function_call_output", "output": "x"}]),
        ] {
            let error = read(bad.clone()).0.err().unwrap_or_else(|| panic!("{bad}"));
            assert_eq!((error.status, error.param.as_deref()), (400, Some("input")), "{bad}");
        }
        assert_eq!(read(json!([])).0.unwrap().last().unwrap()["role"], "user", "a probe");
    }
}
