//! Calls of tools as the messages and deltas of a chat have them: of functions, and of custom tools.

use super::custom;
use crate::error::ApiError;
use crate::reply::ToolCall;
use serde_json::{Value, json};
use std::collections::HashSet;

/// Writes the calls of a request's replies.
pub(crate) struct Calls {
    /// Names of the custom tools.
    customs: HashSet<String>,
    /// The call of a custom tool that each reply is in, by its index.
    open: Vec<Option<(usize, custom::Input)>>,
}

impl Calls {
    /// Of `n` replies.
    pub(crate) fn new(customs: HashSet<String>, n: usize) -> Calls {
        Calls { customs, open: (0..n).map(|_| None).collect() }
    }

    /// A call that is over.
    pub(crate) fn whole(&self, call: &ToolCall) -> Value {
        if self.customs.contains(&call.name) {
            let input = custom::input(&call.arguments);
            return json!({"id": call.id, "type": "custom", "custom": {"name": call.name, "input": input}});
        }
        json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
    }

    /// A call begins.
    pub(crate) fn begin(&mut self, choice: usize, index: usize, call: &ToolCall) -> Value {
        let (id, name) = (&call.id, &call.name);
        if self.customs.contains(name) {
            self.open[choice] = Some((index, custom::Input::default()));
            return json!({"index": index, "id": id, "type": "custom", "custom": {"name": name, "input": ""}});
        }
        json!({"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}})
    }

    /// A call goes on with more JSON of its arguments.
    pub(crate) fn go_on(&mut self, choice: usize, index: usize, json: &str) -> Option<Value> {
        match &mut self.open[choice] {
            Some((_, input)) => said(index, &input.add(json)),
            None => Some(json!({"index": index, "function": {"arguments": json}})),
        }
    }

    /// The call that a reply is in is over; what had not come out of its input.
    pub(crate) fn end(&mut self, choice: usize) -> Option<Value> {
        let (index, input) = self.open[choice].take()?;
        said(index, &input.rest())
    }
}

fn said(index: usize, input: &str) -> Option<Value> {
    (!input.is_empty()).then(|| json!({"index": index, "custom": {"input": input}}))
}

/// Lets calls of custom tools in a conversation be those of the functions that the model knows.
///
/// # Errors
/// Calls without a name or an input.
pub(crate) fn history(messages: &mut Value) -> Result<(), ApiError> {
    for (i, message) in messages.as_array_mut().into_iter().flatten().enumerate() {
        let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
        for (k, call) in calls.into_iter().flatten().enumerate() {
            if call.get("type").and_then(Value::as_str) != Some("custom") {
                continue;
            }
            let text = |key: &str| {
                let at = format!("messages[{i}].tool_calls[{k}].custom.{key}");
                let text = call.get("custom").and_then(|c| c.get(key)).and_then(Value::as_str);
                text.ok_or_else(|| ApiError::field("messages", format!("{at} is missing, or no text")))
            };
            let function = json!({"name": text("name")?, "arguments": custom::arguments(text("input")?)});
            if let Value::Object(call) = call {
                call.remove("custom");
                call.insert("type".into(), json!("function"));
                call.insert("function".into(), function);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, arguments: &str) -> ToolCall {
        ToolCall { id: "c".into(), name: name.into(), arguments: arguments.into() }
    }

    #[test]
    fn calls_in_pieces_are_those_in_one_piece() {
        // The last two are what a model writes that nothing holds.
        for arguments in [r#"{"input": "a\n\"b\""}"#, r#"{"patch": 5}"#, "{}"] {
            for name in ["f", "patch"] {
                let call = call(name, arguments);
                let mut calls = Calls::new(HashSet::from(["patch".to_string()]), 2);
                let begun = calls.begin(1, 3, &call);
                assert!(calls.open[0].is_none() && begun["index"] == 3, "{begun}");
                let (kind, key) = if name == "f" { ("function", "arguments") } else { ("custom", "input") };
                let mut said = begun[kind][key].as_str().unwrap().to_string();
                for piece in arguments.chars() {
                    let more = calls.go_on(1, 3, &piece.to_string());
                    said.extend(more.iter().map(|m| m[kind][key].as_str().unwrap().to_string()));
                }
                said.extend(calls.end(1).iter().map(|m| m[kind][key].as_str().unwrap().to_string()));
                let whole = calls.whole(&call);
                assert_eq!((&whole[kind][key], &whole["type"]), (&json!(said), &json!(kind)), "{arguments}");
                assert_eq!((&whole[kind]["name"], calls.end(1)), (&json!(name), None));
            }
        }
    }
}
